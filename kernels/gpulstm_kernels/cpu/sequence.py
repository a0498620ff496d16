"""The walk through time of one direction of one layer, for any cell, forward and backward.

Forward, for each step, panel of units and row of the batch: ``gates = bias + W_ih·x_t + W_hh·h_{t-1}`` in a register
tile, then the cell on the panel just written while it is in the L1 cache, which stores h and the states. Backward
runs the other way: the cell's gradient, then ``dh_{t-1} = W_hhᵀ·dgates_t``. Gradients of weights and input are
matrix products over all steps at once and live in :mod:`.layer`.

Shapes: T steps, B batch, I input, H hidden, P output of the direction (H, or the projection's size), D directions,
G gates, S carried states, V saved values. A panel is U units wide; Hp is H rounded up to whole panels.

======== ================== ==================================================================================
x        (T, B, I)          input
ys       (T + 2, B, D·P)    output of step t at [t + 1]; initial h at [0] forward, at [T + 1] in reverse
states   (S, T + 1, B, Hp)  what the cell carries; (S, 1, B, Hp), updated in place, where nothing is kept
saved    (T, B, Hp·V)       what the cell saves, in panels: (Hp/U, V, U); T = 0 where nothing is kept
hidden   (T, B, H)          h before the projection; T = 1 where nothing is kept, 0 without a projection
gates    (C, B, Hp·G)       scratch for C steps at a time, in panels: (Hp/U, G, U)
dgates   (T, B, Hp·G)       gradient of the gates, in the same order
======== ================== ==================================================================================

Row b is masked from step ``lengths[b]`` on: h and states pass through it unchanged, gradients too.

Threads split the batch and then never wait for each other, or, where ``by_batch`` is false, split the units and meet
at a barrier once a step (twice with a projection).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compile import cell_backward, cell_forward, inline, kernel
from .gemm import DEPTH, multiply_panel, pack_columns, pack_rows, share
from .threads import meet
from .tile import WIDTH, dots, tile_rows, units
from .vector import lanes, load, load_gates, load_saved, load_states, store, store_tuple


class Tape(NamedTuple):
    """What a forward pass of one direction writes, and all that its backward reads; shapes above."""

    ys: np.ndarray
    states: np.ndarray
    saved: np.ndarray
    hidden: np.ndarray


class Weights(NamedTuple):
    """Parameters of one direction, as torch lays them out; ``bias`` (Hp·G,) is summed and in panels."""

    ih: np.ndarray  # (G·H, I)
    hh: np.ndarray  # (G·H, P)
    hr: np.ndarray  # (P, H); (0, 0) without a projection
    bias: np.ndarray


class Scratch(NamedTuple):
    """Room for packed weights, and ``edges`` (threads, ROWS·WIDTH vectors) for panels that are not full."""

    ih: np.ndarray
    hh: np.ndarray
    hr: np.ndarray
    edges: np.ndarray


class Plan(NamedTuple):
    """How a direction is walked."""

    reverse: bool
    column: int  # where the direction's P outputs begin among the D·P columns of ys
    keep: bool  # training: states, saved and hidden hold every step
    packs: bool  # weights are packed for tiles; else they are read where they lie, for a handful of rows
    by_batch: bool  # threads split the batch; else the units


@inline
def _own(like, columns, by_batch, rank, size):
    """The columns of a state that fall to a thread: whole output panels, or all where the batch is split."""
    if by_batch:
        return 0, columns
    across = WIDTH * lanes(like)
    first, last = share((columns + across - 1) // across, rank, size)
    return first * across, min(columns, last * across)


@inline
def _at(array, i, j, k):
    """Byte address of element (i, j, k) of a C-contiguous array."""
    return array.ctypes.data + ((i * array.shape[1] + j) * array.shape[2] + k) * array.itemsize


@inline
def _state_at(states, slot, b, u):
    """Byte address of the first carried state at (slot, b, u)."""
    place = (slot * states.shape[2] + b) * states.shape[3] + u
    return states.ctypes.data + place * states.itemsize


@inline
def _dot_panel(cell, to, row, weight, p, hidden):
    """One row of a panel of gates += a row of input times the panel's rows of ``weight`` as they lie."""
    size, width, k = weight.itemsize, units(cell, weight), weight.shape[1]
    valid = min(width, hidden - p * width)
    for g in range(cell.n_gates):
        rows = weight.ctypes.data + (g * hidden + p * width) * k * size
        dots(weight, to + g * width * size, row, rows, k * size, valid, k)


@inline
def _input_gates(cell, x, weights, packed, packs, gates, t0, n, b0, b1, p0, p1):
    """gates[:n] = bias + x[t0 : t0 + n]·W_ihᵀ, for rows b0 to b1 and panels p0 to p1."""
    size, width, batch, inputs = x.itemsize, units(cell, x), x.shape[1], x.shape[2]
    across, hidden = cell.n_gates * width, weights.ih.shape[0] // cell.n_gates
    ldx, ldg = inputs * size, gates.shape[2] * size
    for p in range(p0, p1):
        for t in range(n):
            for b in range(b0, b1):
                for j in range(p * across, (p + 1) * across):
                    gates[t, b, j] = weights.bias[j]
                if not packs:
                    _dot_panel(cell, _at(gates, t, b, p * across), _at(x, t0 + t, b, 0), weights.ih, p, hidden)
        if not packs:
            continue
        for k0 in range(0, inputs, DEPTH):
            depth = min(DEPTH, inputs - k0)
            right = packed.ctypes.data + (p * inputs + k0) * across * size
            if b1 - b0 == batch:
                to, left = _at(gates, 0, 0, p * across), _at(x, t0, 0, k0)
                tile_rows(cell, x, to, ldg, left, ldx, size, right, n * batch, depth)
            elif b1 - b0 >= n:
                for t in range(n):
                    to, left = _at(gates, t, b0, p * across), _at(x, t0 + t, b0, k0)
                    tile_rows(cell, x, to, ldg, left, ldx, size, right, b1 - b0, depth)
            else:
                for b in range(b0, b1):
                    to, left = _at(gates, 0, b, p * across), _at(x, t0, b, k0)
                    tile_rows(cell, x, to, batch * ldg, left, batch * ldx, size, right, n, depth)


@inline
def _step_cell(cell, gates, at, tape, plan, t, before, after, b, p, hidden):
    """The cell on row ``b`` and panel ``p`` of step ``t``: gates and states in; h, states and saved out."""
    ys = tape.ys
    size, width = ys.itemsize, units(cell, ys)
    stride = tape.states.strides[0]
    for u in range(0, min(width, hidden - p * width), lanes(ys)):
        unit = p * width + u
        a = load_gates(cell, ys, _at(gates, at, b, p * width * cell.n_gates + u), width * size)
        previous = load_states(cell, ys, _state_at(tape.states, before, b, unit), stride)
        h, states, saved = cell_forward(cell, a, previous)
        store_tuple(states, _state_at(tape.states, after, b, unit), stride)
        if plan.keep:
            store_tuple(saved, _at(tape.saved, t, b, p * width * cell.n_saved + u), width * size)
        if tape.hidden.shape[0] > 0:
            to = _at(tape.hidden, t if plan.keep else 0, b, unit)
        else:
            to = _at(ys, t + 1, b, plan.column + unit)
        store(ys, h, to, hidden - unit)


@kernel
def forward(cell, x, weights, lengths, tape, gates, scratch, plan, rank, size, barrier):
    """Fill ``tape`` from ``x``. Each of ``size`` threads calls this with its ``rank``."""
    ys, states, item = tape.ys, tape.states, x.itemsize
    steps, batch, inputs = x.shape
    hidden, outputs = weights.hh.shape[0] // cell.n_gates, weights.hh.shape[1]
    width = units(cell, x)
    across, n_panels = cell.n_gates * width, (hidden + width - 1) // width
    projected = tape.hidden.shape[0] > 0
    b0, b1 = share(batch, rank, size) if plan.by_batch else (0, batch)
    u0, u1 = _own(x, hidden, plan.by_batch, rank, size)
    p0, p1 = u0 // width, (u1 + width - 1) // width
    o0, o1 = _own(x, outputs, plan.by_batch, rank, size)
    out = WIDTH * lanes(x)
    edge = scratch.edges[rank]

    if plan.packs:
        first, last = share(n_panels, rank, size)
        pack_rows(scratch.ih, weights.ih.reshape(-1), inputs, cell.n_gates, hidden, width, first, last)
        pack_rows(scratch.hh, weights.hh.reshape(-1), outputs, cell.n_gates, hidden, width, first, last)
    if projected:
        first, last = share((outputs + out - 1) // out, rank, size)
        pack_rows(scratch.hr, weights.hr.reshape(-1), hidden, 1, outputs, out, first, last)
    meetings = 1
    meet(barrier, meetings, size)

    for s in range(steps):
        t = steps - 1 - s if plan.reverse else s
        if s % gates.shape[0] == 0:
            n = min(gates.shape[0], steps - s)
            t0 = t - n + 1 if plan.reverse else t
            _input_gates(cell, x, weights, scratch.ih, plan.packs, gates, t0, n, b0, b1, p0, p1)
        last = t + 2 if plan.reverse else t  # where ys holds h of the step before
        before = (t + 1 if plan.reverse else t) * plan.keep
        after = (t if plan.reverse else t + 1) * plan.keep
        for b in range(b0, b1):
            masked = t >= lengths[b]
            if masked or projected:
                for j in range(plan.column + o0, plan.column + o1):
                    ys[t + 1, b, j] = ys[last, b, j] if masked else 0
        for p in range(p0, p1):
            if plan.packs:
                right = scratch.hh.ctypes.data + p * outputs * across * item
                to, left = _at(gates, t - t0, b0, p * across), _at(ys, last, b0, plan.column)
                ldg, ldy = gates.shape[2] * item, ys.shape[2] * item
                tile_rows(cell, x, to, ldg, left, ldy, item, right, b1 - b0, outputs)
            for b in range(b0, b1):
                if t < lengths[b]:
                    if not plan.packs:
                        to, left = _at(gates, t - t0, b, p * across), _at(ys, last, b, plan.column)
                        _dot_panel(cell, to, left, weights.hh, p, hidden)
                    _step_cell(cell, gates, t - t0, tape, plan, t, before, after, b, p, hidden)
                    continue
                if plan.keep:
                    for k in range(cell.n_states):
                        for u in range(p * width, (p + 1) * width):
                            states[k, after, b, u] = states[k, before, b, u]
                if projected:
                    for u in range(p * width, min(hidden, (p + 1) * width)):
                        tape.hidden[t * plan.keep, b, u] = 0
        if projected:
            if not plan.by_batch:
                meetings += 1
                meet(barrier, meetings, size)
            to = ((t + 1) * batch + b0) * ys.shape[2] + plan.column
            left = (t * plan.keep * batch + b0) * hidden
            flat, m = tape.hidden.reshape(-1), b1 - b0
            for p in range(o0 // out, (o1 + out - 1) // out):
                multiply_panel(
                    ys.reshape(-1), to, ys.shape[2], outputs, flat, left, hidden, scratch.hr, p, m, hidden, edge
                )
        if not plan.by_batch:
            meetings += 1
            meet(barrier, meetings, size)


@inline
def _step_cell_backward(cell, dy, dh, dstates, dgates, dhidden, tape, plan, t, before, after, b, p, hidden):
    """The cell's gradient on row ``b`` and panel ``p`` of step ``t``: dh and dstates in; dgates and dstates out."""
    ys = tape.ys
    size, width = ys.itemsize, units(cell, ys)
    stride, dstride = tape.states.strides[0], dstates.strides[0]
    valid = min(width, hidden - p * width)
    for u in range(0, valid, lanes(ys)):
        unit = p * width + u
        n = hidden - unit
        if tape.hidden.shape[0] > 0:
            h = load(ys, _at(tape.hidden, t, b, unit), n)
            dh_total = load(ys, _at(dhidden, 0, b, unit), n)
        else:
            h = load(ys, _at(ys, t + 1, b, plan.column + unit), n)
            dh_total = load(ys, _at(dh, 0, b, unit), n) + load(ys, _at(dy, t, b, plan.column + unit), n)
        states = load_states(cell, ys, _state_at(tape.states, after, b, unit), stride)
        previous = load_states(cell, ys, _state_at(tape.states, before, b, unit), stride)
        saved = load_saved(cell, ys, _at(tape.saved, t, b, p * width * cell.n_saved + u), width * size)
        at = _state_at(dstates, 0, b, unit)
        da, dprevious = cell_backward(cell, dh_total, load_states(cell, ys, at, dstride), h, saved, states, previous)
        store_tuple(da, _at(dgates, t, b, p * width * cell.n_gates + u), width * size)
        store_tuple(dprevious, at, dstride)
    past = (valid + lanes(ys) - 1) // lanes(ys) * lanes(ys)  # products run over whole panels
    for g in range(cell.n_gates):
        first = (p * cell.n_gates + g) * width
        dgates[t, b, first + past : first + width] = 0


@kernel
def backward(
    cell, dy, weights, lengths, tape, dh, dstates, dgates, dprojected, dhidden, scratch, plan, rank, size, barrier
):
    """Fill ``dgates`` (and ``dprojected``, the whole gradient of the projection's output) from ``dy`` (T, B, D·P).

    ``dh`` (1, B, P) and ``dstates`` (S, 1, B, Hp) hold the gradients of the final state and end as those of the
    initial one; ``dhidden`` (1, B, H) is scratch for a projection.
    """
    steps, batch = dy.shape[0], dy.shape[1]
    hidden, outputs = weights.hh.shape[0] // cell.n_gates, weights.hh.shape[1]
    width = units(cell, dy)
    n_panels = (hidden + width - 1) // width
    depth = n_panels * width * cell.n_gates
    projected = tape.hidden.shape[0] > 0
    b0, b1 = share(batch, rank, size) if plan.by_batch else (0, batch)
    u0, u1 = _own(dy, hidden, plan.by_batch, rank, size)
    p0, p1 = u0 // width, (u1 + width - 1) // width
    o0, o1 = _own(dy, outputs, plan.by_batch, rank, size)
    out = WIDTH * lanes(dy)
    edge = scratch.edges[rank]
    m = b1 - b0

    first, last = share((outputs + out - 1) // out, rank, size)
    pack_columns(scratch.hh, weights.hh.reshape(-1), outputs, cell.n_gates, hidden, width, first, last)
    if projected:
        first, last = share((hidden + out - 1) // out, rank, size)
        pack_columns(scratch.hr, weights.hr.reshape(-1), hidden, 1, outputs, 1, first, last)
    meetings = 1
    meet(barrier, meetings, size)

    for s in range(steps):
        t = s if plan.reverse else steps - 1 - s
        before, after = (t + 1, t) if plan.reverse else (t, t + 1)
        if projected:
            for b in range(b0, b1):
                for j in range(o0, o1):
                    if t < lengths[b]:
                        dprojected[t, b, j] = dh[0, b, j] + dy[t, b, plan.column + j]
                        dh[0, b, j] = 0
                    else:
                        dprojected[t, b, j] = 0
                if u0 < u1:
                    dhidden[0, b, u0:u1] = 0
            if not plan.by_batch:
                meetings += 1
                meet(barrier, meetings, size)
            left = (t * batch + b0) * outputs
            flat = dprojected.reshape(-1)
            for p in range(u0 // out, (u1 + out - 1) // out):
                multiply_panel(
                    dhidden.reshape(-1),
                    b0 * hidden,
                    hidden,
                    hidden,
                    flat,
                    left,
                    outputs,
                    scratch.hr,
                    p,
                    m,
                    outputs,
                    edge,
                )
        for b in range(b0, b1):
            for p in range(p0, p1):
                if t < lengths[b]:
                    _step_cell_backward(
                        cell, dy, dh, dstates, dgates, dhidden, tape, plan, t, before, after, b, p, hidden
                    )
                else:
                    dgates[t, b, p * width * cell.n_gates : (p + 1) * width * cell.n_gates] = 0
            if t < lengths[b] and not projected:
                dh[0, b, o0:o1] = 0
        if not plan.by_batch:
            meetings += 1
            meet(barrier, meetings, size)
        left = (t * batch + b0) * depth
        for p in range(o0 // out, (o1 + out - 1) // out):
            multiply_panel(
                dh.reshape(-1),
                b0 * outputs,
                outputs,
                outputs,
                dgates.reshape(-1),
                left,
                depth,
                scratch.hh,
                p,
                m,
                depth,
                edge,
            )
