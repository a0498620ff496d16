"""What a walk is given beside the shape of a call: its arrays.

T steps, B batch, H hidden, P outputs of a direction (H without a projection), G gates, S states a cell carries, D
directions. A is the type that sums and states are held in: float64 for float64, else float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Buffers:
    """The arrays of one call, C-contiguous on the device; what a walk does not use is None.

    Attributes:
        weight_hh: (D, G·H, P).
        weight_hr: (D, P, H), with a projection.
        lengths: (B,) int32, where ragged.
        ys: (T+2, B, D·P): step t's h in slot t+1; the initial h in slot 0, and in slot T+1 for the reverse direction.
        states: (S, D, slots, B, H) of A. In training T+1 slots: the forward direction starts in slot 0 and step t
            writes slot t+1; the reverse one starts in slot T and step t writes slot t. Else one slot, updated.
        saved: (D, T, B, saved·H), value by value, in training.
        hidden: (D, T or 1, B, H): h before its projection.
        gates: (D, T, B, G·H) of A: x·weight_ihᵀ without bias; forward may write over it.
        bias: (D, G·H) of A, or None.
        dy: (T, B, D·P), the gradient of ys; ignored past a sequence's length.
        dh: (D, B, P) of A: the gradient of the final h, in the end that of the initial one.
        dstates: (S, D, B, H) of A, likewise.
        dgates: (D, T, B, G·H), written by backward; zero past a sequence's length.
        dprojected: (D, T, B, P), the gradient of the projected h, written by backward.
    """

    weight_hh: Any
    weight_hr: Any
    lengths: Any
    ys: Any
    states: Any
    saved: Any
    hidden: Any
    gates: Any = None
    bias: Any = None
    dy: Any = None
    dh: Any = None
    dstates: Any = None
    dgates: Any = None
    dprojected: Any = None
