"""The walk back through time of one layer, for any cell.

For each step, from the last to the first: the cell's gradient on each panel of units and row of the batch, then
``dh_{t-1} = W_hhᵀ·dgates_t``. Gradients of weights and input are matrix products over the N steps of a chunk, taken
while the gradients of its gates are in the cache; all threads wait for each other once a chunk. Row b is masked from
step ``lengths[b]`` on: gradients pass through it unchanged. Arguments and shapes: :mod:`.arguments`.
"""

from __future__ import annotations

from ..codegen import activations  # noqa: F401 - what cells call
from ..codegen.compilation import always_inline, cell_backward, expand, kernel
from ..codegen.tile import units
from ..codegen.vector import lanes, load, load_saved, load_states, store_tuple
from ..crew.team import BARRIER, barrier_wait, is_aborted, of_all
from ..gemm import Rows, multiply_rows, outer_rows
from .shares import direction_team, element_address, multiply_panels, share_of_step, state_address


@expand
def _sum_output_gradients(dprojected, dh, dy, lengths, plan, t, own):
    """The whole gradient of the projection's output: what later steps give to h, and dy; zero in masked rows."""
    for b in range(own.b0, own.b1):
        for j in range(own.o0, own.o1):
            dprojected[t, b, j] = dh[0, b, j] + dy[t, b, plan.column + j] if t < lengths[b] else 0


@always_inline
def _apply_cell_backward(cell, dy, dh, dstates, dgates, tape, plan, t, slot, before, after, b, p, hidden):
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
            h = load(ys, element_address(tape.hidden, t, b, unit), n)
            dh_total = load(ys, element_address(dh, 0, b, unit), n)
        else:
            h = load(ys, element_address(ys, t + 1, b, plan.column + unit), n)
            of_y = load(ys, element_address(dy, t, b, plan.column + unit), n)
            dh_total = load(ys, element_address(dh, 0, b, unit), n) + of_y
        states = load_states(cell, ys, state_address(tape.states, after, b, unit), stride)
        previous = load_states(cell, ys, state_address(tape.states, before, b, unit), stride)
        saved = load_saved(cell, ys, element_address(tape.saved, t, b, p * width * cell.n_saved + u), width * size)
        at = state_address(dstates, 0, b, unit)
        da, dprevious = cell_backward(cell, dh_total, load_states(cell, ys, at, dstride), h, saved, states, previous)
        store_tuple(da, element_address(dgates, slot, b, p * width * cell.n_gates + u), width * size)
        store_tuple(dprevious, at, dstride)
    # Products run over whole panels, where a NaN in a lane past the last unit would survive multiplication by zero.
    for g in range(cell.n_gates):
        first = (p * cell.n_gates + g) * width
        dgates[slot, b, first + valid : first + width] = 0


@expand
def _gradients_of_gates(cell, dy, dh, walk, lengths, t, slot, own, width):
    """dgates[slot] of a thread's rows and panels, zero in masked rows; how many of its rows are masked."""
    _, _, tape, _, _, _, dstates, dgates, plan = walk
    before, after = (t + 1, t) if plan.reverse else (t, t + 1)
    across, masked = width * cell.n_gates, 0
    for b in range(own.b0, own.b1):
        masked += t >= lengths[b]
        for p in range(own.p0, own.p1):
            if t < lengths[b]:
                _apply_cell_backward(
                    cell, dy, dh, dstates, dgates, tape, plan, t, slot, before, after, b, p, plan.hidden
                )
            else:
                dgates[slot, b, p * across : (p + 1) * across] = 0
    return masked


@expand
def _clear_dh(dh, lengths, t, own, masked):
    """Where the product with dgates adds to dh, as masked rows keep theirs, the others begin at zero."""
    if masked:
        for b in range(own.b0, own.b1):
            if t < lengths[b]:
                dh[0, b, own.o0 : own.o1] = 0


@expand
def _gradients_of_chunk(cell, x, dx, walk, s0, s1, count, width, scratch, edges, waits, rank, size, barrier):
    """What steps ``s0`` to ``s1`` of a direction give to dx and to the gradients of its weights.

    ``waits``: how often all threads have waited at their barrier before; returned as it is then.
    """
    ih, _, tape, dw, dbias, _, _, dgates, plan = walk
    (steps, batch, inputs), depth, features = x.shape, dgates.shape[2], tape.ys.shape[2]
    rows, first = (s1 - s0) * batch, (s0 if plan.reverse else steps - s1) * batch
    flat, ys = dgates.reshape(-1), tape.ys.reshape(-1)
    start = first * inputs
    multiply_rows(dx, start, inputs, count > 1, flat, 0, depth, ih, rows, depth, edges, rank, size, barrier)
    h_before = (first + 2 * batch if plan.reverse else first) * features + plan.column
    left = Rows(flat, (0, depth), depth)
    of_x = Rows(x.reshape(-1), (start, inputs), inputs)
    of_h = Rows(ys, (h_before, features), plan.outputs)
    gates, add = cell.n_gates, s0 > 0
    return outer_rows(
        dw, dbias, left, of_x, of_h, gates, plan.hidden, width, rows, add, scratch, edges, waits, rank, size, barrier
    )


@kernel
def backward(cell, x, dx, dy, lengths, directions, projections, count, scratch, edges, rank, size, barrier):
    """Walk back the first ``count`` of two ``directions``, :class:`.arguments.Backward`.

    ``projections``: None, or the :class:`.arguments.ProjectionBack` of each direction. Flat dx is added to if there are
    two directions.
    """
    steps, batch, width = x.shape[0], x.shape[1], units(cell, x)
    chunk = directions[0].dgates.shape[0]
    waits, waits_of_all = 0, 0
    for s0 in range(0, steps, chunk):
        s1 = min(steps, s0 + chunk)
        for d in range(count):
            place, team = direction_team(d, count, rank, size)
            if team == 0:
                continue
            walk, own_barrier = directions[d], barrier + d * BARRIER
            hh, dh, dgates, plan = walk.hh, walk.dh, walk.dgates, walk.plan
            depth, hidden, outputs, edge = dgates.shape[2], plan.hidden, plan.outputs, edges[rank]
            own = share_of_step(cell, dy, plan, batch, place, team)
            m = own.b1 - own.b0

            for s in range(s0, s1):
                if is_aborted(barrier, rank, m * depth):
                    return
                t, slot = (s, s - s0) if plan.reverse else (steps - 1 - s, s1 - 1 - s)
                if projections is not None:
                    hr, dprojected, dhidden = projections[d]
                    _sum_output_gradients(dprojected, dh, dy, lengths, plan, t, own)
                    if not plan.by_batch:
                        waits += 1
                        barrier_wait(own_barrier, waits, team)
                    flat, left, to = dprojected.reshape(-1), (t * batch + own.b0) * outputs, own.b0 * hidden
                    multiply_panels(
                        dhidden, to, hidden, False, flat, left, outputs, hr, own.u0, own.u1, m, edge, barrier, rank
                    )
                of_h = dh if projections is None else dhidden
                masked = _gradients_of_gates(cell, dy, of_h, walk, lengths, t, slot, own, width)
                _clear_dh(dh, lengths, t, own, masked)
                if not plan.by_batch:
                    waits += 1
                    barrier_wait(own_barrier, waits, team)
                flat, left, to, add = dgates.reshape(-1), (slot * batch + own.b0) * depth, own.b0 * outputs, masked > 0
                multiply_panels(dh, to, outputs, add, flat, left, depth, hh, own.o0, own.o1, m, edge, barrier, rank)
        waits_of_all += 1
        barrier_wait(of_all(barrier), waits_of_all, size)
        for d in range(count):  # the last barrier inside keeps every thread from the next chunk until all are done
            waits_of_all = _gradients_of_chunk(
                cell, x, dx, directions[d], s0, s1, count, width, scratch, edges, waits_of_all, rank, size, barrier
            )
