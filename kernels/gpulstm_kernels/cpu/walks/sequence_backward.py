"""The walk back through time of one layer, for any cell.

For each step, from the last to the first: the cell's gradient on each panel of units and row of the batch, then
``dh_{t-1} = W_hhᵀ·dgates_t``, and what the cell itself says of h before the step. Gradients of weights and input are
matrix products over the steps of a chunk, taken while the gradients of its gates are in the cache; that of an x that
holds pre-activations is a copy. All threads wait for each other once a chunk. Row b is masked from step ``lengths[b]``
on: gradients pass through it unchanged. Arguments and shapes: :mod:`.arguments`.
"""

from __future__ import annotations

from ..codegen import activations  # noqa: F401 - what cells call
from ..codegen.cell_vectors import load_saved, load_some_states, load_states, store_gates, store_tuple
from ..codegen.compilation import always_inline, cell_backward, expand, inline, kernel
from ..codegen.tile import units
from ..codegen.vector import lanes, load, store
from ..crew.team import BARRIER, barrier_wait, is_aborted, of_all, share
from ..gemm import Rows, Runs, multiply_rows, outer_rows
from .few_rows import numbers
from .given import begins, flat_begins, load_given, store_given_gradients
from .shares import (
    direction_team,
    element_address,
    multiply_blocks,
    multiply_panels,
    share_of_step,
    state_address,
)


@expand
def _sum_output_gradients(dprojected, dh, dy, lengths, plan, t, own):
    """The whole gradient of the projection's output: what later steps give to h, and dy; zero in masked rows."""
    for b in range(own.b0, own.b1):
        for j in range(own.o0, own.o1):
            dprojected[t, b, j] = dh[0, b, j] + dy[t, b, plan.column + j] if t < lengths[b] else 0


@inline
def _regions(cell):
    """The (first gate, how many gates) of each region of a row of dgates."""
    return (
        (0, cell.first_h),
        (cell.first_h, cell.n_x - cell.first_h),
        (cell.n_x, cell.n_gates - cell.n_x),
    )


@always_inline
def _apply_cell_backward(cell, dy, dh, walk, inputs, t, slot, b, p, new):
    """The cell's gradient on row ``b`` and panel ``p`` of step ``t``: dh, dstates in; dgates[slot], dstates out.

    dh (1, B, H) is that of the cell's own output, or without a projection ``walk.dh``, what later steps give to that of
    y. Where the cell reads h before the step, dh becomes the gradient of that, but for the product's part. ``new``:
    whether the row begins anew, with h and states of zeros, beyond which no gradient reaches.
    """
    _, _, params, tape, _, _, dparams, dinputs, _, dstates, dgates, plan = walk
    ys, hidden = tape.ys, plan.hidden
    before, after = (t + 1, t) if plan.reverse else (t, t + 1)
    size, width = ys.itemsize, units(cell, ys)
    stride, dstride = tape.states.strides[0], dstates.strides[0]
    valid, padded = min(width, hidden - p * width), (hidden + width - 1) // width * width
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
        previous = load_some_states(
            cell, ys, state_address(tape.states, before, b, unit), stride, 0 if new else lanes(ys)
        )
        h_before = element_address(ys, t + 2 if plan.reverse else t, b, plan.column + unit)
        given = load_given(cell, ys, params, inputs, h_before, t, b, unit, n, new)
        saved = load_saved(cell, ys, element_address(tape.saved, t, b, p * width * cell.n_saved + u), width * size)
        at = state_address(dstates, 0, b, unit)
        dcarried = load_states(cell, ys, at, dstride)
        da, dprevious, dgiven = cell_backward(cell, dh_total, dcarried, h, saved, states, previous, given)
        row = element_address(dgates, slot, b, 0)
        store_gates(cell, da, row, padded * size, p * width * size, u * size, width * size)
        store_tuple(dprevious, at, dstride)
        if new:
            store_tuple(load_some_states(cell, ys, at, dstride, 0), at, dstride)
        shared = inputs.shape[3] == 1
        store_given_gradients(cell, ys, dgiven, dh, dparams, dinputs, t, b, p, u, unit, n, shared)
    # Products run over whole panels, where a NaN in a lane past the last unit would survive multiplication by zero.
    if valid < width:
        for first, count in _regions(cell):
            for g in range(count):
                start = first * padded + (p * count + g) * width
                dgates[slot, b, start + valid : start + width] = 0


@expand
def _gradients_of_gates(cell, dy, dh, walk, inputs, resets, d, lengths, t, slot, own, width):
    """dgates[slot] of a thread's rows and panels, zero in masked rows; how many of its rows are masked."""
    dgates, padded = walk.dgates, walk.dstates.shape[3]
    masked = 0
    for b in range(own.b0, own.b1):
        if t < lengths[b]:
            new = begins(resets, d, t, b)
            for p in range(own.p0, own.p1):
                _apply_cell_backward(cell, dy, dh, walk, inputs, t, slot, b, p, new)
        else:
            masked += 1
            for first, some in _regions(cell):
                start, across = first * padded, width * some
                dgates[slot, b, start + own.p0 * across : start + own.p1 * across] = 0
    return masked


@expand
def _clear_dh(dh, lengths, t, own, masked):
    """Where the product with dgates adds to dh, as masked rows keep theirs, the others begin at zero.

    So they do where there is no product, unless the cell has given the gradient of h before the step.
    """
    if masked:
        for b in range(own.b0, own.b1):
            if t < lengths[b]:
                dh[0, b, own.o0 : own.o1] = 0


@inline
def _hand_on(cell, dx, column, features, left, hidden, padded, width, top, bottom):
    """The gradients of some rows' gates, as they are those of x where it holds pre-activations.

    ``column`` of the first row of flat dx, and ``features`` from row to row; ``left``: of :class:`..gemm.Rows`.
    """
    item = dx.itemsize
    for j in range(top, bottom):
        source = left.flat.ctypes.data + (left.at[0] + j * left.at[1]) * item
        for first, count in ((0, cell.first_h), (cell.first_h, cell.n_x - cell.first_h)):
            for g in range(first, first + count):
                in_x, _, _, _ = numbers(cell, g, 0, 0)
                to = dx.ctypes.data + (column + j * features + in_x * hidden) * item
                for u in range(0, hidden, lanes(dx)):
                    of_gate = first * padded + (u // width * count + g - first) * width + u % width
                    value = load(dx, source + of_gate * item, lanes(dx))
                    store(dx, value, to + u * item, hidden - u)


@expand
def _gradients_of_chunk(
    cell, x, dx, walk, zero, gates_given, d, s0, s1, count, width, scratch, edges, waits, rank, size, barrier
):
    """What steps ``s0`` to ``s1`` of a direction give to dx and to the gradients of its weights.

    ``zero``: None, or for each row of all steps whether it begins anew, with h of zeros; ``waits``: how often all
    threads have waited at their barrier before; returned as it is then.
    """
    tape, plan = walk.tape, walk.plan
    (steps, batch, inputs), depth, features = x.shape, walk.dgates.shape[2], tape.ys.shape[2]
    rows, first = (s1 - s0) * batch, (s0 if plan.reverse else steps - s1) * batch
    flat, ys, padded = walk.dgates.reshape(-1), tape.ys.reshape(-1), walk.dstates.shape[3]
    start, k, left = first * inputs, cell.n_x * padded, Rows(flat, (0, depth), depth)
    if gates_given is not None:
        top, bottom = share(rows, rank, size)
        column = start + d * cell.n_x * plan.hidden
        _hand_on(cell, dx, column, inputs, left, plan.hidden, padded, width, top, bottom)
    else:
        multiply_rows(dx, start, inputs, count > 1, flat, 0, depth, walk.ih, rows, k, edges, rank, size, barrier)
    h_before = (first + 2 * batch if plan.reverse else first) * features + plan.column
    of_x = Rows(x.reshape(-1), (start, inputs), inputs if gates_given is None else 0)
    of_h = Rows(ys, (h_before, features), plan.outputs if cell.n_h else 0)
    runs = Runs(cell.first_h, cell.n_x - cell.first_h, cell.n_gates - cell.n_x)
    return outer_rows(
        walk.dw,
        walk.dbias,
        left,
        of_x,
        of_h,
        runs,
        plan.hidden,
        width,
        rows,
        s0 > 0,
        plan.blocks_back,
        zero,
        first,
        scratch,
        edges,
        waits,
        rank,
        size,
        barrier,
    )


@kernel
def backward(
    cell,
    x,
    dx,
    dy,
    lengths,
    inputs,
    resets,
    directions,
    projections,
    blocks,
    gates_given,
    count,
    scratch,
    edges,
    rank,
    size,
    barrier,
):
    """Walk back the first ``count`` of two ``directions``, :class:`.arguments.Backward`.

    ``resets``: None, or the :class:`.arguments.Resets` of each direction. ``projections``: None, or the
    :class:`.arguments.ProjectionBack` of each direction. ``blocks``: None, or anything where h's product is of blocks.
    ``gates_given``: None, or anything where x holds pre-activations. What is None is not compiled. Flat dx is added to
    if there are two directions whose inputs are the same.
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
            padded = walk.dstates.shape[3]
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
                        dhidden,
                        to,
                        hidden,
                        False,
                        flat,
                        left,
                        outputs,
                        outputs,
                        hr,
                        own.u0,
                        own.u1,
                        m,
                        edge,
                        barrier,
                        rank,
                    )
                of_h = dh if projections is None else dhidden
                masked = _gradients_of_gates(cell, dy, of_h, walk, inputs, resets, d, lengths, t, slot, own, width)
                if not cell.reads_h:
                    _clear_dh(dh, lengths, t, own, masked if cell.n_h else 1)
                if cell.n_h:
                    if not plan.by_batch:
                        waits += 1
                        barrier_wait(own_barrier, waits, team)
                    flat, left = dgates.reshape(-1), (slot * batch + own.b0) * depth + cell.first_h * padded
                    add, to, k = masked > 0 or cell.reads_h > 0, own.b0 * outputs, cell.n_h * padded
                    if blocks is not None:
                        multiply_blocks(cell, dh, to, add, flat, left, depth, hh, plan, own, m, edge, barrier, rank)
                    else:
                        multiply_panels(
                            dh, to, outputs, add, flat, left, depth, k, hh, own.o0, own.o1, m, edge, barrier, rank
                        )
                if resets is not None:
                    for b in range(own.b0, own.b1):
                        if begins(resets, d, t, b):
                            dh[0, b, own.o0 : own.o1] = 0
        waits_of_all += 1
        barrier_wait(of_all(barrier), waits_of_all, size)
        for d in range(count):  # the last barrier inside keeps every thread from the next chunk until all are done
            zero = flat_begins(resets, d)
            waits_of_all = _gradients_of_chunk(
                cell,
                x,
                dx,
                directions[d],
                zero,
                gates_given,
                d,
                s0,
                s1,
                count,
                width,
                scratch,
                edges,
                waits_of_all,
                rank,
                size,
                barrier,
            )
