"""What a walk is given beside the shape of a call: its arrays.

T steps, B batch, H hidden, P outputs of a direction (H without a projection), S states a cell carries, D directions. A
is the type that sums and states are held in: float64 for float64, else float32. G pre-activations of a unit lie one
after another: the x_gates, the gates, the h_gates. Of them the input's product writes the first Gx, and h's product the
last Gh, in the order of the rows of ``weight_hh``. R = G + parameters + differentiable inputs: of all these a step has
gradients of its own. That of h before the step is none of them, it goes into dh. A cell with stages has Q products with
weights of its own, of V different operands, and saves N values that all units of a row share.

Where sequences begin anew within a call, ``resets[t]`` is the border between the steps t - 1 and t of either direction;
``resets[0]`` lies between the initial state and the forward direction's first step, and is none of the reverse one. A
walk takes h and states as zero after it has crossed a border, whatever lies in ys and states, and its gradients do
not cross it. What it writes to ys and states is as without borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Buffers:
    """The arrays of one call, C-contiguous on the device; what a walk does not use is None.

    Attributes:
        weight_hh: (D, Gh·H, P), or None without a recurrent product; of N heads (D, N, Gh·H/N, H/N).
        weight_hr: (D, P, H), with a projection.
        lengths: (B,) int32, where ragged.
        ys: (T+2, B, D·P): step t's h in slot t+1; the initial h in slot 0, and in slot T+1 for the reverse direction.
        states: (S, D, slots, B, H) of A. In training T+1 slots: the forward direction starts in slot 0 and step t
            writes slot t+1; the reverse one starts in slot T and step t writes slot t. Else one slot, updated.
        saved: (D, T, B, saved·H), value by value, in training.
        hidden: (D, T or 1, B, H): h before its projection.
        params: (D, number of parameters, H), where the cell has any.
        inputs: (number of inputs, T, B, W), where it has any; W is H, or 1: a value for all units of a row.
        resets: (T, B) uint8, where sequences begin anew.
        gates: (D, T, B, G·H) of A: x·weight_ihᵀ, or what was given in its place, without bias in its first Gx·H
            columns, nothing yet in those of the h_gates; forward may write over it.
        bias: (D, G·H) of A, or None: of both products where a gate is the sum of both.
        dy: (T, B, D·P), the gradient of ys; ignored past a sequence's length.
        dh: (D, B, P) of A: the gradient of the final h, in the end that of the initial one.
        dstates: (S, D, B, H) of A, likewise.
        dgates: (D, T, B, R·H), written by backward; zero past a sequence's length.
        dprojected: (D, T, B, P), the gradient of the projected h, written by backward.
        own: (D, Q·H, H), the weights of the cell's own products in the order of :func:`.cell_stages.stages_of`.
        rows: (D, T, B, N) of A, in training: what is saved of rows.
        dproducts: (D, T, B, Q·H), the gradients of those products, written by backward; zero past a sequence's length.
        operands: (D, T, B, V·H), what they multiply, likewise.
    """

    weight_hh: Any
    weight_hr: Any
    lengths: Any
    ys: Any
    states: Any
    saved: Any
    hidden: Any
    params: Any = None
    inputs: Any = None
    resets: Any = None
    gates: Any = None
    bias: Any = None
    dy: Any = None
    dh: Any = None
    dstates: Any = None
    dgates: Any = None
    dprojected: Any = None
    own: Any = None
    rows: Any = None
    dproducts: Any = None
    operands: Any = None
