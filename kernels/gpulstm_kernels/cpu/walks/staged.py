"""The walks through time of a cell whose step products and means cut into stages: forward and back.

Threads split the batch alone, so that no stage waits for another thread. For each step and block of rows: the products
of x and h, as plain matrices; then the cell's stages one after another, :mod:`.staged_code`, with its own products
between them. Arrays are in rows as a layer has them; states, slots and saved values are padded to whole registers, H to
Hp.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from ...language import stage_code
from ..codegen import activations  # noqa: F401 - what cells call
from ..codegen.compilation import inline, kernel
from ..codegen.tile import WIDTH
from ..codegen.vector import lanes, load, store
from ..crew.team import is_aborted, share
from ..gemm import multiply_panel
from . import staged_code
from .few_rows import numbers
from .shares import direction_team, element_address


class Forward(NamedTuple):
    """All that the forward walk of a direction reads and writes, but x, lengths, inputs and resets.

    ``ih`` and ``hh`` are packed, with gates in the order of ``cell.preactivations``, as those of ``bias`` (G·H,) are;
    ``weights`` (Q, ·), the cell's own, are packed too; ``params`` (1, P, H). ``ys`` (T + 2, B, D·H), ``states``
    (S, T + 1, B, Hp), or (S, 1, B, Hp) without training, ``saved`` (T, B, V·Hp) and ``rows`` (T, B, R), the saved
    values that all units share, are written. The others are scratch of each thread: ``gates`` (threads, block, G·H),
    ``slots`` (threads, block, N·Hp), ``means`` (threads, block, M), ``begun`` (threads, block, H), and ``edges``.
    """

    ih: np.ndarray
    hh: np.ndarray
    bias: np.ndarray
    weights: np.ndarray
    params: np.ndarray
    ys: np.ndarray
    states: np.ndarray
    saved: np.ndarray
    rows: np.ndarray
    gates: np.ndarray
    slots: np.ndarray
    means: np.ndarray
    begun: np.ndarray
    edges: np.ndarray
    reverse: bool
    column: int


class Backward(NamedTuple):
    """All that the backward walk of a direction reads and writes, but dy, lengths, inputs and resets.

    ``hh`` and ``weights`` are packed as they lie. ``dh`` (1, B, H) and ``dstates`` (S, 1, B, Hp) hold the gradients of
    the final state and end as those of the initial one. ``dgates`` (T, B, G·H), ``dproducts`` and ``operands``
    (T, B, Q·H), and ``dinputs`` (·, T, B, H) are filled, with zeros where a sequence has ended; to ``dparams``
    (1, B, P·H) each step adds its own: a row's sum is the same whatever thread has it.
    """

    hh: np.ndarray
    weights: np.ndarray
    params: np.ndarray
    ys: np.ndarray
    states: np.ndarray
    saved: np.ndarray
    rows: np.ndarray
    dh: np.ndarray
    dstates: np.ndarray
    dgates: np.ndarray
    dparams: np.ndarray
    dproducts: np.ndarray
    operands: np.ndarray
    dinputs: np.ndarray
    slots: np.ndarray
    means: np.ndarray
    edges: np.ndarray
    reverse: bool
    column: int


class At(NamedTuple):
    """A block of rows of a step, and what thread computes it.

    ``before``, ``after``: where states lie; ``row``: of ys, h before the step; ``late``: the row of resets that is
    about this step.
    """

    t: int
    before: int
    after: int
    row: int
    late: int
    r0: int
    m: int
    place: int


@inline
def _multiply(c, offset, ldc, columns, add, a, a_offset, lda, packed, m, k, edge, barrier, rank):
    """C = A·B, or C += A·B if ``add``, for ``m`` rows of flat arrays; it ends early where the call is aborted."""
    across = WIDTH * lanes(c)
    for p in range((columns + across - 1) // across):
        if is_aborted(barrier, rank, m * across * k):
            return
        multiply_panel(c, offset, ldc, columns, add, a, a_offset, lda, packed, p, m, k, edge)


@inline
def _multiply_slots(w, at, of, to, hidden, weight, barrier, rank):
    """Slot ``to`` of all rows = slot ``of`` times the cell's ``weight``."""
    lane = lanes(w.slots)
    padded, slots, ld = (hidden + lane - 1) // lane * lane, w.slots.reshape(-1), w.slots.shape[2]
    base = at.place * w.slots.shape[1] * ld
    a, c, packed, edge = base + of * padded, base + to * padded, w.weights[weight], w.edges[at.place]
    _multiply(slots, c, ld, hidden, False, slots, a, ld, packed, at.m, hidden, edge, barrier, rank)


def stages_forward(cell, like, w, at, hidden, inputs, lengths, resets, training, barrier, rank):
    """The stages of a step of some rows, and the products between them."""


def stages_backward(cell, like, w, at, hidden, dy, inputs, lengths, resets, barrier, rank):
    """The stages of the gradient of a step of some rows, and the products between them."""


def _written(cell: Any, plan: Any, functions: list[Any], given: str, more: str = "") -> Any:
    """The stages' functions, of arguments that are called so, one after another, and the products between them."""
    names: dict[str, Any] = {"multiply_slots": _multiply_slots}
    lines = [f"def stages(cell, like, w, at, hidden, {given}, lengths, resets{more}, barrier, rank):"]
    for number, (stage, function) in enumerate(zip(plan.stages, functions, strict=True)):
        names[f"stage_{number}"] = inline(function)
        lines.append(f"    stage_{number}(like, w, at, hidden, {given}, lengths, resets)")
        for value in stage.products:
            of, to = (stage_code.slot_of(plan, one) for one in (value.arguments[0], value))
            weight = cell.weights.index(value.detail)
            lines.append(f"    multiply_slots(w, at, {of}, {to}, hidden, {weight}, barrier, rank)")
    return staged_code.defined("stages", lines, f"<stages of {cell.maths}>", names)


def _is_given(typ: Any) -> bool:
    return not isinstance(typ, types.NoneType)


# Numba wants an overload's parameters to be those of its implementation, annotations included: hence none.


@overload(stages_forward)
def _stages_forward(cell, like, w, at, hidden, inputs, lengths, resets, training, barrier, rank):
    functions = staged_code.forward_code(cell.cell, _is_given(training), _is_given(resets))
    return _written(cell.cell, stage_code.forward_schedule(cell.cell), functions, "inputs", ", training")


@overload(stages_backward)
def _stages_backward(cell, like, w, at, hidden, dy, inputs, lengths, resets, barrier, rank):
    functions = staged_code.backward_code(cell.cell, _is_given(resets))
    return _written(cell.cell, stage_code.backward_schedule(cell.cell), functions, "dy, inputs")


@inline
def _fill(like, to, source, count):
    """Copy ``count`` elements from one byte address to another."""
    for j in range(0, count, lanes(like)):
        value = load(like, source + j * like.itemsize, count - j)
        store(like, value, to + j * like.itemsize, count - j)


@inline
def _products_of_step(cell, x, w, at, hidden, resets, gates_given, d, barrier, rank):
    """gates = bias + W_ih·x + W_hh·h, of which each product has a run of the gates; of direction ``d``."""
    (_, batch, features), ldy = x.shape, w.ys.shape[2]
    columns, of_x, of_h = w.gates.shape[2], cell.n_x * hidden, cell.n_h * hidden
    gates, edge = w.gates.reshape(-1), w.edges[at.place]
    for r in range(at.m):
        _fill(x, element_address(w.gates, at.place, r, 0), w.bias.ctypes.data, columns)
    to = at.place * w.gates.shape[1] * columns
    source = (at.t * batch + at.r0) * features
    if gates_given is None:
        flat = x.reshape(-1)
        _multiply(gates, to, columns, of_x, True, flat, source, features, w.ih, at.m, features, edge, barrier, rank)
    else:
        for r in range(at.m):
            for g in range(cell.n_x):
                in_x, _, _, _ = numbers(cell, g, 0, 0)
                row, first = to + r * columns + g * hidden, d * of_x + in_x * hidden
                for u in range(hidden):
                    gates[row + u] += x[at.t, at.r0 + r, first + u]
    if of_h == 0:
        return
    left, source, lda = w.ys.reshape(-1), (at.row * batch + at.r0) * ldy + w.column, ldy
    if resets is not None and at.late < len(resets):
        for r in range(at.m):
            held = 0 if resets[at.late, at.r0 + r] else hidden
            for j in range(0, hidden, lanes(x)):
                value = load(x, element_address(w.ys, at.row, at.r0 + r, w.column + j), held - j)
                store(x, value, element_address(w.begun, at.place, r, j), hidden - j)
        left, source, lda = w.begun.reshape(-1), at.place * w.begun.shape[1] * hidden, hidden
    to += cell.first_h * hidden
    _multiply(gates, to, columns, of_h, True, left, source, lda, w.hh, at.m, hidden, edge, barrier, rank)


@kernel
def forward(cell, x, lengths, directions, inputs, resets, training, gates_given, hidden, count, rank, size, barrier):
    """Walk the first ``count`` of two ``directions``, :class:`Forward`.

    ``inputs`` (N, T, B, H or 1); ``resets`` (T, B), or None; ``training``: None where states are not kept step by step;
    ``gates_given``: None, or anything where x holds pre-activations, of each direction one after another.
    """
    steps, batch = x.shape[0], x.shape[1]
    for d in range(count):
        place, team = direction_team(d, count, rank, size)
        if team == 0:
            continue
        w = directions[d]
        block = w.gates.shape[1]
        b0, b1 = share(batch, place, team)
        for s in range(steps):
            t, late = (steps - 1 - s, steps - s) if w.reverse else (s, s)
            before, after, row = (t + 1, t, t + 2) if w.reverse else (t, t + 1, t)
            if training is None:
                before, after = 0, 0
            for r0 in range(b0, b1, block):
                at = At(t, before, after, row, late, r0, min(block, b1 - r0), place)
                if is_aborted(barrier, rank, at.m * w.gates.shape[2]):
                    return
                _products_of_step(cell, x, w, at, hidden, resets, gates_given, d, barrier, rank)
                stages_forward(cell, x, w, at, hidden, inputs, lengths, resets, training, barrier, rank)


@kernel
def backward(cell, dy, lengths, directions, inputs, resets, hidden, count, rank, size, barrier):
    """Walk back the first ``count`` of two ``directions``, :class:`Backward`."""
    steps, batch = dy.shape[0], dy.shape[1]
    of_h = cell.n_h * hidden
    for d in range(count):
        place, team = direction_team(d, count, rank, size)
        if team == 0:
            continue
        w = directions[d]
        block, columns = w.slots.shape[1], w.dgates.shape[2]
        dgates, dh, edge = w.dgates.reshape(-1), w.dh.reshape(-1), w.edges[place]
        b0, b1 = share(batch, place, team)
        for s in range(steps):
            t, late = (s, s + 1) if w.reverse else (steps - 1 - s, steps - 1 - s)
            before, after, row = (t + 1, t, t + 2) if w.reverse else (t, t + 1, t)
            for r0 in range(b0, b1, block):
                at = At(t, before, after, row, late, r0, min(block, b1 - r0), place)
                if is_aborted(barrier, rank, at.m * columns):
                    return
                stages_backward(cell, dy, w, at, hidden, dy, inputs, lengths, resets, barrier, rank)
                if of_h > 0:
                    source, to = (t * batch + r0) * columns + cell.first_h * hidden, r0 * hidden
                    _multiply(
                        dh, to, hidden, hidden, True, dgates, source, columns, w.hh, at.m, of_h, edge, barrier, rank
                    )
                if resets is not None and late < steps:
                    for b in range(r0, r0 + at.m):
                        if resets[late, b] and t < lengths[b]:
                            w.dh[0, b] = 0
                            w.dstates[:, 0, b] = 0
