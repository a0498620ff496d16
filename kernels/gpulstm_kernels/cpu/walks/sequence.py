"""The walk through time of one direction of one layer, for any cell, forward and backward.

Forward, for each step, panel of units and row of the batch: ``gates = bias + W_ih·x_t + W_hh·h_{t-1}`` in a register
tile, then the cell on the panel just written while it is in the L1 cache, which stores h and the states. Backward
runs the other way: the cell's gradient, then ``dh_{t-1} = W_hhᵀ·dgates_t``. Gradients of weights and input are
matrix products over the N steps of a chunk, taken while the gradients of its gates are in the cache.

Shapes: T steps, B batch, I input, H hidden, P output of the direction (H, or the projection's size), D directions,
G gates, S carried states, V saved values. A panel is U units wide; Hp is H rounded up to whole panels.

======== ================== ==================================================================================
x        (T, B, I)          input
ys       (T + 2, B, D·P)    output of step t at [t + 1]; initial h at [0] forward, at [T + 1] in reverse
states   (S, T + 1, B, Hp)  what the cell carries; (S, 1, B, Hp), updated in place, where nothing is kept
saved    (T, B, Hp·V)       what the cell saves, in panels: (Hp/U, V, U); T = 0 where nothing is kept
hidden   (T, B, H)          h before the projection; T = 1 where nothing is kept, 0 without a projection
gates    (Hp/U, R, G·U)     scratch in panels: for the R rows of several steps, or (threads, R, G·U) for R rows of one
dgates   (N, B, Hp·G)       gradient of the gates of a chunk of steps, in the same order
======== ================== ==================================================================================

Row b is masked from step ``lengths[b]`` on: h and states pass through it unchanged, gradients too.

Threads split the batch and then do not wait for each other, or, where ``by_batch`` is false, split the units and meet
at a barrier once a step (twice with a projection). Backward they meet once a chunk too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..codegen import activations  # noqa: F401 - what cells call
from ..codegen.compilation import always_inline, cell_backward, cell_forward, inline, kernel
from ..codegen.narrow import in_blocks, narrowed, packed_depth, row_bytes
from ..codegen.tile import WIDTH, dots, tile_row, tile_row_twice, tile_rows, units
from ..codegen.vector import lanes, load, load_gates, load_saved, load_states, store, store_tuple
from ..crew.team import BARRIER, is_over, meet, of_all, share
from ..gemm import Rows, multiply_panel, multiply_rows, outer_rows


class Tape(NamedTuple):
    """What a forward pass of one direction writes, and all that its backward reads; shapes above."""

    ys: np.ndarray
    states: np.ndarray
    saved: np.ndarray
    hidden: np.ndarray


class Weights(NamedTuple):
    """Matrices of one direction, as torch lays them out or, flat, as :func:`packing.columns` packs them."""

    ih: np.ndarray  # (G·H, I)
    hh: np.ndarray  # (G·H, P)
    hr: np.ndarray | None  # (P, H); None without a projection


class Packed(NamedTuple):
    """Parameters of one direction as :mod:`.packing` gives them, flat; ih and hh are empty where they are not read.

    ``bias`` (Hp·G,) is the sum of both, in panels. ih and hh may be bfloat16 (as uint16) or int8; then ``scale_ih``
    and ``scale_hh`` (Hp·G,), in panels, are what a row of the matrix is to be multiplied with.
    """

    ih: np.ndarray
    hh: np.ndarray
    bias: np.ndarray
    scale_ih: np.ndarray
    scale_hh: np.ndarray


class Plan(NamedTuple):
    """How a direction is walked."""

    reverse: bool
    column: int  # where the direction's P outputs begin among the D·P columns of ys
    keep: bool  # training: states, saved and hidden hold every step
    by_batch: bool  # threads split the batch; else the units
    chunk: int  # steps whose inputs are projected together; 0: each step's with its recurrent product
    hidden: int  # H
    outputs: int  # P


class Forward(NamedTuple):
    """All that the forward walk of any direction reads and writes, but x and lengths.

    ``rows16`` (threads, bytes) is scratch for rows that narrow weights meet in 16 bits: of the inputs that are
    projected together, then of h.
    """

    packed: Packed
    tape: Tape
    gates: np.ndarray
    rows16: np.ndarray
    plan: Plan


class Projection(NamedTuple):
    """The projection of one direction: ``hr`` is packed, ``edges`` (threads, ROWS·WIDTH vectors) is scratch."""

    hr: np.ndarray
    edges: np.ndarray


class Backward(NamedTuple):
    """All that the backward walk of any direction reads and writes, but x, dx, dy and lengths.

    ``ih`` and ``hh`` are packed. ``dw`` (G·H·(I + P),), the gradients of ih and behind it of hh, and ``dbias`` (Hp·G,),
    in panels, are filled. ``dh`` (1, B, P) and ``dstates`` (S, 1, B, Hp) hold the gradients of the final state and end
    as those of the initial one; ``dgates`` (N, B, Hp·G) is scratch.
    """

    ih: np.ndarray
    hh: np.ndarray
    tape: Tape
    dw: np.ndarray
    dbias: np.ndarray
    dh: np.ndarray
    dstates: np.ndarray
    dgates: np.ndarray
    plan: Plan


class ProjectionBack(NamedTuple):
    """The same of a projection: ``hr`` is packed.

    ``dprojected`` (T, B, P), the whole gradient of its output, is filled; ``dhidden`` (1, B, H), of its input, is
    scratch.
    """

    hr: np.ndarray
    dprojected: np.ndarray
    dhidden: np.ndarray


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
def dot_gates(cell, like, to, apart, x, inputs, h, outputs, ih, hh, hidden, unit):
    """A register of each gate of one row, from ``unit`` on: W_ih·x + W_hh·h, weights read where they lie.

    ``to``, ``x``, ``h``, ``ih``, ``hh``: byte addresses; ``apart``: bytes from gate to gate.
    """
    ldx, ldh, valid = inputs * like.itemsize, outputs * like.itemsize, min(lanes(like), hidden - unit)
    for g in range(cell.n_gates):
        row = g * hidden + unit
        gate = dots(like, valid, x, ih + row * ldx, ldx, inputs, h, hh + row * ldh, ldh, outputs)
        store(like, gate, to + g * apart, lanes(like))


@inline
def _dot_panel(cell, to, bias, x, h, ih, hh, p):
    """A panel of gates of one row = bias + W_ih·x + W_hh·h; ``to``, ``bias``, ``x``, ``h``: byte addresses."""
    size, width, hidden = ih.itemsize, units(cell, ih), ih.shape[0] // cell.n_gates
    wx, wh, inputs, outputs = ih.ctypes.data, hh.ctypes.data, ih.shape[1], hh.shape[1]
    for u in range(0, min(width, hidden - p * width), lanes(ih)):
        unit = p * width + u
        dot_gates(cell, ih, to + u * size, width * size, x, inputs, h, outputs, wx, wh, hidden, unit)
        for v in range(u * size, cell.n_gates * width * size, width * size):
            store(ih, load(ih, to + v, lanes(ih)) + load(ih, bias + v, lanes(ih)), to + v, lanes(ih))


@inline
def _input_gates(cell, x, packed, gates, scratch, t0, n, b0, b1, p0, p1, barrier, rank):
    """gates = bias + x[t0 : t0 + n]·W_ihᵀ, for rows b0 to b1 and panels p0 to p1; ``scratch``: a byte address.

    It stops where the call is over.
    """
    size, batch, inputs = x.itemsize, x.shape[1], x.shape[2]
    ldg, depth = gates.shape[2] * size, packed_depth(packed.ih, inputs)
    left, ldx = narrowed(packed.ih, x, scratch, _at(x, t0, b0, 0), inputs * size, b1 - b0, inputs)
    for i in range(1, n):
        narrowed(packed.ih, x, scratch + i * batch * ldx, _at(x, t0 + i, b0, 0), inputs * size, b1 - b0, inputs)
    # All rows lie one after another; or a tile takes those of a step, or of a row of the batch, whichever are more.
    own, of_gates, of_x = b1 - b0, batch * ldg, batch * ldx
    if own == batch:
        times, m, ldc, lda, next_c, next_a = 1, n * batch, ldg, ldx, 0, 0
    elif own > n:
        times, m, ldc, lda, next_c, next_a = n, own, ldg, ldx, of_gates, of_x
    else:
        times, m, ldc, lda, next_c, next_a = own, n, of_gates, of_x, ldg, ldx
    for p in range(p0, p1):
        if is_over(barrier, rank, n * own * inputs * gates.shape[2]):
            return
        start, scale = packed.bias.ctypes.data + p * ldg, packed.scale_ih.ctypes.data + p * ldg
        to = _at(gates, p, b0, 0)
        panel = depth * gates.shape[2] * packed.ih.itemsize
        right = packed.ih.ctypes.data + p * panel
        for i in range(times):
            row, at, ahead = left + i * next_a, to + i * next_c, right + panel
            tile_rows(cell, x, packed.ih, scale, at, ldc, start, 0, row, lda, right, m, inputs, ahead)


@always_inline
def _step_cell(cell, at, tape, plan, t, before, after, b, p, hidden):
    """The cell on row ``b`` and panel ``p`` of step ``t``: gates (an address) and states in; h, states, saved out."""
    ys = tape.ys
    size, width = ys.itemsize, units(cell, ys)
    stride = tape.states.strides[0]
    for u in range(0, min(width, hidden - p * width), lanes(ys)):
        unit = p * width + u
        a = load_gates(cell, ys, at + u * size, width * size)
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


@inline
def _place_in_teams(d, count, rank, size):
    """A thread's rank in direction ``d`` of ``count`` and how many it has; 0 if the thread is not one of them.

    Each direction has a team of its own where there are threads for it; else they are walked one after the other.
    """
    if size < count:
        return 0, 1
    place, team = rank // count, size // count
    return place, team if rank % count == d and place < team else 0


@kernel
def forward(cell, x, lengths, directions, unpacked, projections, count, rank, size, barrier):
    """Walk the first ``count`` of two ``directions``, :class:`Forward`.

    ``unpacked``: None, or for each direction (ih, hh) as torch lays them out, which are read instead of packed ones.
    ``projections``: None, or the :class:`Projection` of each direction. What is None is not compiled.
    """
    steps, batch, inputs = x.shape
    item, width = x.itemsize, units(cell, x)
    across = cell.n_gates * width
    ldg = across * item
    for d in range(count):
        place, team = _place_in_teams(d, count, rank, size)
        if team == 0:
            continue
        packed, tape, gates, rows16, plan = directions[d]
        ys, states = tape.ys, tape.states
        hidden, outputs, ldy = plan.hidden, plan.outputs, ys.shape[2] * item
        projected = projections is not None
        b0, b1 = share(batch, place, team) if plan.by_batch else (0, batch)
        u0, u1 = _own(x, hidden, plan.by_batch, place, team)
        p0, p1 = u0 // width, (u1 + width - 1) // width
        o0, o1 = _own(x, outputs, plan.by_batch, place, team)
        block = batch if plan.chunk else gates.shape[1]  # rows of a panel that are done with before the next
        panel_x = packed_depth(packed.ih, inputs) * across * packed.ih.itemsize  # bytes
        panel_h = packed_depth(packed.hh, outputs) * across * packed.hh.itemsize
        of_x = rows16.ctypes.data + place * rows16.shape[1]
        of_h = of_x + row_bytes(packed.ih, inputs) * batch * max(1, plan.chunk)
        own, meetings = barrier + d * BARRIER, 0
        of_panel = (b1 - b0) * across * (outputs + (0 if plan.chunk else inputs))  # multiply-adds

        for s in range(steps):
            t = steps - 1 - s if plan.reverse else s
            if plan.chunk and s % plan.chunk == 0:
                n = min(plan.chunk, steps - s)
                t0 = t - n + 1 if plan.reverse else t
                _input_gates(cell, x, packed, gates, of_x, t0, n, b0, b1, p0, p1, barrier, rank)
            last = t + 2 if plan.reverse else t  # where ys holds h of the step before
            before = (t + 1 if plan.reverse else t) * plan.keep
            after = (t if plan.reverse else t + 1) * plan.keep
            for b in range(b0, b1):
                masked = t >= lengths[b]
                if masked or projected:
                    for j in range(plan.column + o0, plan.column + o1):
                        ys[t + 1, b, j] = ys[last, b, j] if masked else 0
            if not plan.chunk:
                left_x, ldx = narrowed(packed.ih, x, of_x, _at(x, t, b0, 0), inputs * item, b1 - b0, inputs)
            left_h, ldh = narrowed(packed.hh, x, of_h, _at(ys, last, b0, plan.column), ldy, b1 - b0, outputs)
            forth = 1 - s % 2 * 2
            # A row that is alone whatever the threads: sums in blocks have an order of their own.
            alone = (batch if in_blocks(packed.hh) else b1 - b0) == 1
            in_pairs = alone and plan.chunk > 0  # and takes two panels in a loop
            for i in range(p1 - p0):
                if is_over(barrier, rank, of_panel):
                    return
                p = p0 + i if forth > 0 else p1 - 1 - i  # back and forth: what was read last is still in the cache
                for r0 in range(b0, b1, block):
                    rows = min(block, b1 - r0)
                    bias = packed.bias.ctypes.data + p * ldg
                    to = _at(gates, p, (t - t0) * batch + r0, 0) if plan.chunk else _at(gates, place, 0, 0)
                    h = left_h + (r0 - b0) * ldh
                    if unpacked is None:
                        ih, scale = packed.ih.ctypes.data + p * panel_x, packed.scale_ih.ctypes.data + p * ldg
                        if not plan.chunk:
                            row, ahead = left_x + (r0 - b0) * ldx, ih + forth * panel_x
                            tile_rows(cell, x, packed.ih, scale, to, ldg, bias, 0, row, ldx, ih, rows, inputs, ahead)
                        hh, scale = packed.hh.ctypes.data + p * panel_h, packed.scale_hh.ctypes.data + p * ldg
                        ahead = hh + forth * panel_h
                        if not alone:
                            tile_rows(cell, x, packed.hh, scale, to, ldg, to, ldg, h, ldh, hh, rows, outputs, ahead)
                        elif not in_pairs or (i % 2 == 0 and i + 1 == p1 - p0):
                            tile_row(cell, x, packed.hh, scale, to, to, h, hh, outputs)
                        elif i % 2 == 0:
                            next_to, next_scale = _at(gates, p + forth, (t - t0) * batch + r0, 0), scale + forth * ldg
                            tile_row_twice(cell, x, packed.hh, scale, next_scale, to, next_to, h, hh, ahead, outputs)
                    for b in range(r0, r0 + rows):
                        at = to + (b - r0) * ldg
                        if t < lengths[b]:
                            if unpacked is not None:
                                row, weights = _at(x, t, b, 0), unpacked[d]
                                _dot_panel(cell, at, bias, row, h + (b - r0) * ldh, weights[0], weights[1], p)
                            _step_cell(cell, at, tape, plan, t, before, after, b, p, hidden)
                            continue
                        if plan.keep:
                            for k in range(cell.n_states):
                                for u in range(p * width, (p + 1) * width):
                                    states[k, after, b, u] = states[k, before, b, u]
                        if projected:
                            for u in range(p * width, min(hidden, (p + 1) * width)):
                                tape.hidden[t * plan.keep, b, u] = 0
            if projections is not None:
                if not plan.by_batch:
                    meetings += 1
                    meet(own, meetings, team)
                hr, edges = projections[d]
                flat, left = tape.hidden.reshape(-1), (t * plan.keep * batch + b0) * hidden
                to = ((t + 1) * batch + b0) * ys.shape[2] + plan.column
                edge = edges[place]
                _multiply_panels(ys, to, outputs, True, flat, left, hidden, hr, o0, o1, b1 - b0, edge, barrier, rank)
            if not plan.by_batch:
                meetings += 1
                meet(own, meetings, team)


@inline
def _multiply_panels(c, offset, columns, add, a, a_offset, k, packed, first, last, m, edge, barrier, rank):
    """Columns ``first`` to ``last`` of C = A·B, or C += A·B if ``add``, for ``m`` rows of ``columns`` columns.

    Rows of flat A have ``k`` elements, those of C as many as its last axis. It stops where the call is over.
    """
    across = WIDTH * lanes(c)
    for p in range(first // across, (last + across - 1) // across):
        if is_over(barrier, rank, m * across * k):
            return
        multiply_panel(c.reshape(-1), offset, c.shape[2], columns, add, a, a_offset, k, packed, p, m, k, edge)


@always_inline
def _step_cell_backward(cell, dy, dh, dstates, dgates, tape, plan, t, slot, before, after, b, p, hidden):
    """The cell's gradient on row ``b`` and panel ``p`` of step ``t``: dh, dstates in; dgates[slot], dstates out.

    dh (1, B, H) is that of the cell's own output, or without a projection what later steps give to that of y.
    """
    ys = tape.ys
    size, width = ys.itemsize, units(cell, ys)
    stride, dstride = tape.states.strides[0], dstates.strides[0]
    valid = min(width, hidden - p * width)
    for u in range(0, valid, lanes(ys)):
        unit = p * width + u
        n = hidden - unit
        if tape.hidden.shape[0] > 0:
            h = load(ys, _at(tape.hidden, t, b, unit), n)
            dh_total = load(ys, _at(dh, 0, b, unit), n)
        else:
            h = load(ys, _at(ys, t + 1, b, plan.column + unit), n)
            dh_total = load(ys, _at(dh, 0, b, unit), n) + load(ys, _at(dy, t, b, plan.column + unit), n)
        states = load_states(cell, ys, _state_at(tape.states, after, b, unit), stride)
        previous = load_states(cell, ys, _state_at(tape.states, before, b, unit), stride)
        saved = load_saved(cell, ys, _at(tape.saved, t, b, p * width * cell.n_saved + u), width * size)
        at = _state_at(dstates, 0, b, unit)
        da, dprevious = cell_backward(cell, dh_total, load_states(cell, ys, at, dstride), h, saved, states, previous)
        store_tuple(da, _at(dgates, slot, b, p * width * cell.n_gates + u), width * size)
        store_tuple(dprevious, at, dstride)
    # Products run over whole panels, where a NaN in a lane past the last unit would survive the zeros that it meets.
    for g in range(cell.n_gates):
        first = (p * cell.n_gates + g) * width
        dgates[slot, b, first + valid : first + width] = 0


@kernel
def backward(cell, x, dx, dy, lengths, directions, projections, count, room, edges, rank, size, barrier):
    """As :func:`forward`, with :class:`Backward` directions and, or None, a :class:`ProjectionBack` of each.

    Flat dx is added to if there are two.
    """
    (steps, batch, inputs), width = x.shape, units(cell, x)
    chunk = directions[0].dgates.shape[0]
    met_in_team, met = 0, 0
    for s0 in range(0, steps, chunk):
        s1 = min(steps, s0 + chunk)
        for d in range(count):
            place, team = _place_in_teams(d, count, rank, size)
            if team == 0:
                continue
            own = barrier + d * BARRIER
            _, hh, tape, _, _, dh, dstates, dgates, plan = directions[d]
            depth, hidden, outputs = dgates.shape[2], plan.hidden, plan.outputs
            b0, b1 = share(batch, place, team) if plan.by_batch else (0, batch)
            u0, u1 = _own(dy, hidden, plan.by_batch, place, team)
            p0, p1 = u0 // width, (u1 + width - 1) // width
            o0, o1 = _own(dy, outputs, plan.by_batch, place, team)
            m, edge = b1 - b0, edges[rank]

            for s in range(s0, s1):
                if is_over(barrier, rank, m * depth):
                    return
                t, slot = (s, s - s0) if plan.reverse else (steps - 1 - s, s1 - 1 - s)
                before, after = (t + 1, t) if plan.reverse else (t, t + 1)
                if projections is not None:
                    hr, dprojected, dhidden = projections[d]
                    for b in range(b0, b1):
                        for j in range(o0, o1):
                            dprojected[t, b, j] = dh[0, b, j] + dy[t, b, plan.column + j] if t < lengths[b] else 0
                    if not plan.by_batch:
                        met_in_team += 1
                        meet(own, met_in_team, team)
                    flat, left = dprojected.reshape(-1), (t * batch + b0) * outputs
                    _multiply_panels(
                        dhidden, b0 * hidden, hidden, False, flat, left, outputs, hr, u0, u1, m, edge, barrier, rank
                    )
                masked = 0
                for b in range(b0, b1):
                    masked += t >= lengths[b]
                    for p in range(p0, p1):
                        if t < lengths[b]:
                            of_h = dh if projections is None else dhidden
                            _step_cell_backward(
                                cell, dy, of_h, dstates, dgates, tape, plan, t, slot, before, after, b, p, hidden
                            )
                        else:
                            dgates[slot, b, p * width * cell.n_gates : (p + 1) * width * cell.n_gates] = 0
                if masked:  # those rows keep their dh, and add nothing to it
                    for b in range(b0, b1):
                        if t < lengths[b]:
                            dh[0, b, o0:o1] = 0
                if not plan.by_batch:
                    met_in_team += 1
                    meet(own, met_in_team, team)
                flat, left, to = dgates.reshape(-1), (slot * batch + b0) * depth, b0 * outputs
                _multiply_panels(dh, to, outputs, masked > 0, flat, left, depth, hh, o0, o1, m, edge, barrier, rank)
        met += 1
        meet(of_all(barrier), met, size)
        for d in range(count):  # whose last meeting lets nobody begin the next chunk too early
            ih, _, tape, dw, dbias, _, _, dgates, plan = directions[d]
            depth, features = dgates.shape[2], tape.ys.shape[2]
            rows, first = (s1 - s0) * batch, (s0 if plan.reverse else steps - s1) * batch
            flat, ys = dgates.reshape(-1), tape.ys.reshape(-1)
            start = first * inputs
            multiply_rows(dx, start, inputs, count > 1, flat, 0, depth, ih, rows, depth, edges, rank, size, barrier)
            h_before = (first + 2 * batch if plan.reverse else first) * features + plan.column
            left = Rows(flat, (0, depth), depth)
            of_x = Rows(x.reshape(-1), (start, inputs), inputs)
            of_h = Rows(ys, (h_before, features), plan.outputs)
            gates, hidden, add = cell.n_gates, plan.hidden, s0 > 0
            met = outer_rows(
                dw, dbias, left, of_x, of_h, gates, hidden, width, rows, add, room, edges, met, rank, size, barrier
            )
