"""The arguments of the walks through time: what a direction of a layer reads, writes and is walked by.

Shapes: T steps, B batch, I input, H hidden, P output of the direction (H, or the projection's size), D directions,
G gates of all kinds, Gx of the input's product, Gh of h's, S carried states, V saved values, K parameters, N inputs of
the cell, W wide: H or 1. A panel is U units wide; Hp is H rounded up to whole panels.

======== ================== ==================================================================================
x        (T, B, I)          input; or (T, B, D·Gx·H), pre-activations of the input, in the order of rows of weight_ih
inputs   (N, T, B, W)       inputs of the cell; all sizes are 0 where it has none
params   (K, Hp)            parameters of the cell, zero past the last unit
ys       (T + 2, B, D·P)    output of step t at [t + 1]; initial h at [0] forward, at [T + 1] in reverse
states   (S, T + 1, B, Hp)  what the cell carries; (S, 1, B, Hp), updated in place, without training
saved    (T, B, Hp·V)       what the cell saves, in panels: (Hp/U, V, U); T = 0 without training
hidden   (T, B, H)          h before the projection; T = 1 without training, 0 without a projection
gates    (Hp/U, R, G·U)     scratch in panels: for the R rows of several steps, or (threads, R, G·U) for R rows of one
dgates   (C, B, G·Hp)       gradient of the gates of a chunk of C steps
======== ================== ==================================================================================

In a panel of ``gates`` those of the input's product lie side by side, and those of h's: gates of the input alone, of
both, of h alone. A row of ``dgates`` has a region for each of these three kinds, in panels of its own, (Hp/U, gates of
the kind, U), so that what either product needs lies side by side there too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Tape(NamedTuple):
    """What a forward pass of one direction writes, and all that its backward reads; shapes above."""

    ys: np.ndarray
    states: np.ndarray
    saved: np.ndarray
    hidden: np.ndarray


class Weights(NamedTuple):
    """Matrices of one direction, as torch lays them out or, flat, as :func:`.layouts.columns` packs them.

    ``params`` are in any case those of :func:`.layouts.params`.
    """

    ih: np.ndarray  # (Gx·H, I)
    hh: np.ndarray  # (Gh·H, P); empty without a product of h
    hr: np.ndarray | None  # (P, H); None without a projection
    params: np.ndarray  # (K, Hp)


class Packed(NamedTuple):
    """Packed parameters of one direction, flat; ih and hh are empty where they are not read.

    :mod:`gpulstm_kernels.cpu.packing.layouts` has the orders; gates of the input alone come first. ``bias`` (Hp·G,),
    in panels, is that of one product or the sum of both. ih and hh may be bfloat16 (as uint16) or int8; then
    ``scale_ih`` (Hp·Gx,) and ``scale_hh`` (Hp·Gh,), in panels, are the factors of the matrices' rows.
    """

    ih: np.ndarray
    hh: np.ndarray
    bias: np.ndarray
    scale_ih: np.ndarray
    scale_hh: np.ndarray
    params: np.ndarray


class Resets(NamedTuple):
    """Where sequences of one direction begin, ``begins`` (T, B), not 0 before the step that is the first of one.

    ``h`` (threads, B·P) is scratch of the walk forward: h before a step with zeros in such rows.
    """

    begins: np.ndarray
    h: np.ndarray


class Plan(NamedTuple):
    """How a direction is walked."""

    reverse: bool
    column: int  # where the direction's P outputs begin among the D·P columns of ys
    training: bool  # states, saved and hidden hold every step
    by_batch: bool  # threads split the batch; else the units
    chunk: int  # steps whose inputs are projected together; 0: each step's with its recurrent product
    hidden: int  # H
    outputs: int  # P
    blocks: int  # of the recurrent weights' diagonal that the walk forward multiplies with; 1: with all of them
    blocks_back: int  # likewise of the walk back


class Forward(NamedTuple):
    """All that the forward walk of any direction reads and writes, but x, lengths, inputs and resets.

    ``quantized`` (threads, bytes) is scratch for activations quantized to 16 bits, which narrow weights are multiplied
    with: of the inputs that are projected together, then of h.
    """

    packed: Packed
    tape: Tape
    gates: np.ndarray
    quantized: np.ndarray
    plan: Plan


class Projection(NamedTuple):
    """The projection of one direction: ``hr`` is packed, ``edges`` (threads, ROWS·WIDTH vectors) is scratch."""

    hr: np.ndarray
    edges: np.ndarray


class Backward(NamedTuple):
    """All that the backward walk of any direction reads and writes, but x, dx, dy, lengths, inputs and resets.

    ``ih`` and ``hh`` are packed. ``dw`` (Gx·H·I + Gh·H·P,), the gradients of ih and behind it of hh, and ``dbias``
    (G·Hp,), in the order of ``dgates``, are filled. ``dh`` (1, B, P) and ``dstates`` (S, 1, B, Hp) hold the gradients
    of the final state and end as those of the initial one. ``dparams`` (B, K, Hp), those of parameters of each row of
    the batch, are added to. ``dinputs``, those of the cell's differentiable inputs, are filled where no row is masked:
    (·, T, B, H), or (·, Hp/U, T, B) of each panel where a row's units share an input. ``dgates`` (C, B, G·Hp) is
    scratch.
    """

    ih: np.ndarray
    hh: np.ndarray
    params: np.ndarray
    tape: Tape
    dw: np.ndarray
    dbias: np.ndarray
    dparams: np.ndarray
    dinputs: np.ndarray
    dh: np.ndarray
    dstates: np.ndarray
    dgates: np.ndarray
    plan: Plan


class ProjectionBack(NamedTuple):
    """The projection of one direction in the backward walk: ``hr`` is packed.

    ``dprojected`` (T, B, P), the whole gradient of its output, is filled; ``dhidden`` (1, B, H), of its input, is
    scratch.
    """

    hr: np.ndarray
    dprojected: np.ndarray
    dhidden: np.ndarray
