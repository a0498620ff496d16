"""The walk forward through time of one layer, for any cell.

For each step, panel of units and row of the batch: ``gates = bias + W_ih·x_t + W_hh·h_{t-1}`` in a register tile, then
the cell on the panel just written while it is in the L1 cache, which stores h and the states. The products of the
inputs are taken for a chunk of steps at once, or step by step; where x holds what they would give, gates begin as that.
Without a product of h threads that split the units do not wait for each other. Row b is masked from step ``lengths[b]``
on: h and states pass through it unchanged. Arguments and shapes: :mod:`.arguments`.
"""

from __future__ import annotations

from ..codegen import activations  # noqa: F401 - what cells call
from ..codegen.cell_vectors import load_gates, load_some_states, store_tuple
from ..codegen.compilation import always_inline, cell_forward, expand, inline, kernel
from ..codegen.narrow import in_blocks, packed_depth, quantized_rows, row_bytes
from ..codegen.tile import h_run, tile_row, tile_row_twice, tile_rows, units, x_run
from ..codegen.vector import lanes, load, store
from ..crew.team import BARRIER, barrier_wait, is_aborted
from .few_rows import add_given, dot_gates
from .given import begins, load_given
from .shares import direction_team, element_address, multiply_panels, share_of_step, state_address


@expand
def _dot_panel(cell, to, bias, x, h, ih, hh, hidden, p):
    """A panel of gates of one row = bias + W_ih·x + W_hh·h; ``to``, ``bias``, ``x``, ``h``: byte addresses."""
    size, width = ih.itemsize, units(cell, ih)
    wx, wh, inputs, outputs = ih.ctypes.data, hh.ctypes.data, ih.shape[1], hh.shape[1]
    for u in range(0, min(width, hidden - p * width), lanes(ih)):
        unit = p * width + u
        dot_gates(cell, ih, to + u * size, width * size, x, inputs, h, outputs, wx, wh, hidden, unit)
        for v in range(u * size, cell.n_gates * width * size, width * size):
            store(ih, load(ih, to + v, lanes(ih)) + load(ih, bias + v, lanes(ih)), to + v, lanes(ih))


@inline
def _begin_gates_of_h(cell, like, bias, to, ldg, rows):
    """In ``rows`` rows of a panel, at ``to``, gates of h alone begin at their bias, which others have begun at."""
    size, width = like.itemsize, units(cell, like)
    for v in range(cell.n_x * width, cell.n_gates * width, lanes(like)):
        value = load(like, bias + v * size, lanes(like))
        for r in range(rows):
            store(like, value, to + r * ldg + v * size, lanes(like))


@inline
def _add_given(cell, like, to, x, p, hidden):
    """Add the pre-activations at ``x`` to panel ``p`` of gates of one row; byte addresses."""
    size, width = like.itemsize, units(cell, like)
    for u in range(0, min(width, hidden - p * width), lanes(like)):
        unit = p * width + u
        add_given(cell, like, to + u * size, width * size, x, hidden, unit, hidden - unit)


@inline
def _begin_given(cell, like, bias, to, ldg, x, ldx, p, hidden, rows):
    """Gates of panel ``p`` = bias + pre-activations at ``x``, for some rows; byte addresses, bytes from row to row."""
    for r in range(rows):
        for v in range(0, cell.n_gates * units(cell, like) * like.itemsize, lanes(like) * like.itemsize):
            store(like, load(like, bias + v, lanes(like)), to + r * ldg + v, lanes(like))
        _add_given(cell, like, to + r * ldg, x + r * ldx, p, hidden)


@expand
def _begin_chunk(cell, x, bias, gates, column, t0, n, b0, b1, p0, p1, hidden):
    """gates = ``bias`` + pre-activations x[t0 : t0 + n] from ``column`` on, for rows b0 to b1 and panels p0 to p1."""
    batch, ldg, ldx = x.shape[1], gates.shape[2] * x.itemsize, x.shape[2] * x.itemsize
    for p in range(p0, p1):
        start = bias.ctypes.data + p * ldg
        for i in range(n):
            to, source = element_address(gates, p, i * batch + b0, 0), element_address(x, t0 + i, b0, column)
            _begin_given(cell, x, start, to, ldg, source, ldx, p, hidden, b1 - b0)


@expand
def _project_chunk(cell, x, packed, gates, scratch, t0, n, b0, b1, p0, p1, barrier, rank):
    """gates = bias + x[t0 : t0 + n]·W_ihᵀ, for rows b0 to b1 and panels p0 to p1; ``scratch``: a byte address.

    It ends early where the call is aborted.
    """
    size, batch, inputs = x.itemsize, x.shape[1], x.shape[2]
    ldg, depth = gates.shape[2] * size, packed_depth(packed.ih, inputs)
    left, ldx = quantized_rows(packed.ih, x, scratch, element_address(x, t0, b0, 0), inputs * size, b1 - b0, inputs)
    for i in range(1, n):
        source = element_address(x, t0 + i, b0, 0)
        quantized_rows(packed.ih, x, scratch + i * batch * ldx, source, inputs * size, b1 - b0, inputs)
    # All rows lie one after another; or a tile takes those of a step, or of a row of the batch, whichever are more.
    own, of_gates, of_x = b1 - b0, batch * ldg, batch * ldx
    if own == batch:
        times, m, ldc, lda, next_c, next_a = 1, n * batch, ldg, ldx, 0, 0
    elif own > n:
        times, m, ldc, lda, next_c, next_a = n, own, ldg, ldx, of_gates, of_x
    else:
        times, m, ldc, lda, next_c, next_a = own, n, of_gates, of_x, ldg, ldx
    for p in range(p0, p1):
        if is_aborted(barrier, rank, n * own * inputs * gates.shape[2]):
            return
        run = cell.n_x * units(cell, x)
        start, scale = packed.bias.ctypes.data + p * ldg, packed.scale_ih.ctypes.data + p * run * size
        to = element_address(gates, p, b0, 0)
        panel = depth * run * packed.ih.itemsize
        right = packed.ih.ctypes.data + p * panel
        for i in range(times):
            row, at, following = left + i * next_a, to + i * next_c, right + panel
            tile_rows(x_run(cell), x, packed.ih, scale, at, ldc, start, 0, row, lda, right, m, inputs, following)
            _begin_gates_of_h(cell, x, start, at, ldc, m)


@expand
def _begin_outputs(ys, lengths, plan, t, own, projected):
    """Outputs of masked rows are those of the step before; others begin at zero where a projection adds to them."""
    last = t + 2 if plan.reverse else t
    for b in range(own.b0, own.b1):
        masked = t >= lengths[b]
        if masked or projected:
            for j in range(plan.column + own.o0, plan.column + own.o1):
                ys[t + 1, b, j] = ys[last, b, j] if masked else 0


@expand
def _multiply_inputs(cell, like, packed, to, ldg, x, ldx, p, forth, rows, inputs):
    """Gates of panel ``p`` = bias + W_ih·x for some rows; ``to``, ``x``: byte addresses."""
    run = cell.n_x * units(cell, like)
    panel = packed_depth(packed.ih, inputs) * run * packed.ih.itemsize
    bias, scale = packed.bias.ctypes.data + p * ldg, packed.scale_ih.ctypes.data + p * run * like.itemsize
    ih = packed.ih.ctypes.data + p * panel
    following = ih + forth * panel
    tile_rows(x_run(cell), like, packed.ih, scale, to, ldg, bias, 0, x, ldx, ih, rows, inputs, following)
    _begin_gates_of_h(cell, like, bias, to, ldg, rows)


@expand
def _multiply_hidden(cell, like, packed, to, ldg, h, ldh, p, forth, rows, outputs, alone, paired, next_to):
    """Gates of panel ``p`` += W_hh·h for some rows; ``to``, ``h``: byte addresses, ``to`` that of the first of h's.

    A row that is ``alone`` takes two panels in a loop: with this one, where ``paired`` is 2, the one that comes next,
    whose gates are at ``next_to``; nothing where it is 0, since the panel before took this one with it.
    """
    run = cell.n_h * units(cell, like)
    panel = packed_depth(packed.hh, outputs) * run * packed.hh.itemsize
    hh, scale = packed.hh.ctypes.data + p * panel, packed.scale_hh.ctypes.data + p * run * like.itemsize
    following = hh + forth * panel
    if not alone:
        tile_rows(h_run(cell), like, packed.hh, scale, to, ldg, to, ldg, h, ldh, hh, rows, outputs, following)
    elif paired == 1:
        tile_row(h_run(cell), like, packed.hh, scale, to, to, h, hh, outputs)
    elif paired == 2:
        next_scale = scale + forth * run * like.itemsize
        tile_row_twice(h_run(cell), like, packed.hh, scale, next_scale, to, next_to, h, hh, following, outputs)


@always_inline
def _apply_cell(cell, at, tape, plan, params, inputs, t, before, after, b, p, hidden, new):
    """The cell on row ``b`` and panel ``p`` of step ``t``: gates (an address) and states in; h, states, saved out.

    ``new``: whether the row begins anew, with h and states of zeros.
    """
    ys = tape.ys
    size, width = ys.itemsize, units(cell, ys)
    stride = tape.states.strides[0]
    for u in range(0, min(width, hidden - p * width), lanes(ys)):
        unit = p * width + u
        a = load_gates(cell, ys, at + u * size, width * size)
        previous = load_some_states(
            cell, ys, state_address(tape.states, before, b, unit), stride, 0 if new else lanes(ys)
        )
        h_before = element_address(ys, t + 2 if plan.reverse else t, b, plan.column + unit)
        given = load_given(cell, ys, params, inputs, h_before, t, b, unit, hidden - unit, new)
        h, states, saved = cell_forward(cell, a, previous, given)
        store_tuple(states, state_address(tape.states, after, b, unit), stride)
        if plan.training:
            store_tuple(saved, element_address(tape.saved, t, b, p * width * cell.n_saved + u), width * size)
        if tape.hidden.shape[0] > 0:
            to = element_address(tape.hidden, t if plan.training else 0, b, unit)
        else:
            to = element_address(ys, t + 1, b, plan.column + unit)
        store(ys, h, to, hidden - unit)


@expand
def _pass_states_on(cell, tape, plan, t, before, after, b, p, width, projected):
    """What a masked row's step leaves of panel ``p``: the states before it, and nothing to project."""
    if plan.training:
        for k in range(cell.n_states):
            for u in range(p * width, (p + 1) * width):
                tape.states[k, after, b, u] = tape.states[k, before, b, u]
    if projected:
        for u in range(p * width, min(plan.hidden, (p + 1) * width)):
            tape.hidden[t * plan.training, b, u] = 0


@expand
def _zero_rows_that_begin(to, ys, begins, t, source, own, outputs):
    """h before step ``t`` of a thread's rows, from address ``source`` on, with zeros in rows that begin, if any do.

    Returns whether any does, and then the rows lie at address ``to``.
    """
    item, ldy, any_begins = ys.itemsize, ys.shape[2] * ys.itemsize, False
    for b in range(own.b0, own.b1):
        any_begins = any_begins or begins[t, b] != 0
    if any_begins:
        for b in range(own.b0, own.b1):
            row = (b - own.b0) * outputs * item
            valid = 0 if begins[t, b] else outputs
            for v in range(0, outputs, lanes(ys)):
                value = load(ys, source + (b - own.b0) * ldy + v * item, valid - v)
                store(ys, value, to + row + v * item, outputs - v)
    return any_begins


@kernel
def forward(
    cell, x, lengths, inputs, resets, directions, unpacked, projections, gates_given, count, rank, size, barrier
):
    """Walk the first ``count`` of two ``directions``, :class:`.arguments.Forward`.

    ``resets``: None, or the :class:`.arguments.Resets` of each direction. ``unpacked``: None, or for each direction
    (ih, hh) as torch lays them out, which are read instead of packed ones. ``projections``: None, or the
    :class:`.arguments.Projection` of each direction. ``gates_given``: None, or anything where x holds the
    pre-activations of each direction, one after another. What is None is not compiled.
    """
    (steps, batch, features), item, width = x.shape, x.itemsize, units(cell, x)
    ldg = cell.n_gates * width * item
    for d in range(count):
        place, team = direction_team(d, count, rank, size)
        if team == 0:
            continue
        packed, tape, gates, quantized, plan = directions[d]
        ys, hidden, outputs, ldy = tape.ys, plan.hidden, plan.outputs, tape.ys.shape[2] * item
        params = packed.params
        own = share_of_step(cell, x, plan, batch, place, team)
        rows, panels, block_columns = own.b1 - own.b0, own.p1 - own.p0, outputs // plan.blocks
        block = batch if plan.chunk else gates.shape[1]  # rows of a panel that are done with before the next
        of_each = 0 if plan.chunk or gates_given is not None else features
        work = rows * cell.n_gates * width * (outputs + of_each)  # of a panel
        of_x = quantized.ctypes.data + place * quantized.shape[1]
        of_h = of_x + row_bytes(packed.ih, features if gates_given is None else 0) * batch * max(1, plan.chunk)
        column = d * cell.n_x * hidden  # of x, where it holds pre-activations
        # Of a row that is alone whatever the threads, since sums in blocks have an order of their own.
        alone = (batch if in_blocks(packed.hh) else rows) == 1
        t0, left_x, ldx, own_barrier, waits = 0, 0, 0, barrier + d * BARRIER, 0

        for s in range(steps):
            t = steps - 1 - s if plan.reverse else s
            before = (t + 1 if plan.reverse else t) * plan.training
            after = (t if plan.reverse else t + 1) * plan.training
            if plan.chunk and s % plan.chunk == 0:
                n = min(plan.chunk, steps - s)
                t0 = t - n + 1 if plan.reverse else t
                if gates_given is not None:
                    bias, b0, b1, p0, p1 = packed.bias, own.b0, own.b1, own.p0, own.p1
                    _begin_chunk(cell, x, bias, gates, column, t0, n, b0, b1, p0, p1, hidden)
                else:
                    _project_chunk(cell, x, packed, gates, of_x, t0, n, own.b0, own.b1, own.p0, own.p1, barrier, rank)
            _begin_outputs(ys, lengths, plan, t, own, projections is not None)
            if gates_given is not None:
                left_x, ldx = element_address(x, t, own.b0, column), features * item
            elif not plan.chunk:
                source = element_address(x, t, own.b0, 0)
                left_x, ldx = quantized_rows(packed.ih, x, of_x, source, features * item, rows, features)
            source, apart = element_address(ys, t + 2 if plan.reverse else t, own.b0, plan.column), ldy
            if resets is not None:
                copied = resets[d].h.ctypes.data + place * resets[d].h.strides[0]
                if cell.n_h and _zero_rows_that_begin(copied, ys, resets[d].begins, t, source, own, outputs):
                    source, apart = copied, outputs * item
            left_h, ldh = quantized_rows(packed.hh, x, of_h, source, apart, rows, outputs)
            forth = 1 - s % 2 * 2  # back and forth: what was read last is still in the cache
            for i in range(panels):
                if is_aborted(barrier, rank, work):
                    return
                p = own.p0 + i if forth > 0 else own.p1 - 1 - i
                apart_each = not plan.chunk or plan.blocks > 1
                paired = 1 if apart_each or (i % 2 == 0 and i + 1 == panels) else 2 - i % 2 * 2
                for r0 in range(own.b0, own.b1, block):
                    some = min(block, own.b1 - r0)
                    first = (t - t0) * batch + r0
                    to = element_address(gates, p, first, 0) if plan.chunk else element_address(gates, place, 0, 0)
                    h = left_h + (r0 - own.b0) * ldh
                    if unpacked is None:
                        if not plan.chunk:
                            row = left_x + (r0 - own.b0) * ldx
                            if gates_given is not None:
                                start = packed.bias.ctypes.data + p * ldg
                                _begin_given(cell, x, start, to, ldg, row, ldx, p, hidden, some)
                            else:
                                _multiply_inputs(cell, x, packed, to, ldg, row, ldx, p, forth, some, features)
                        of_both = cell.first_h * width
                        at, next_at = to + of_both * item, element_address(gates, p + forth, first, of_both)
                        own_h = h + p * width * plan.blocks // hidden * block_columns * item
                        _multiply_hidden(
                            cell, x, packed, at, ldg, own_h, ldh, p, forth, some, block_columns, alone, paired, next_at
                        )
                    for b in range(r0, r0 + some):
                        at = to + (b - r0) * ldg
                        if t >= lengths[b]:
                            _pass_states_on(cell, tape, plan, t, before, after, b, p, width, projections is not None)
                            continue
                        if unpacked is not None:
                            (ih, hh), start = unpacked[d], packed.bias.ctypes.data + p * ldg
                            row = left_x + (b - own.b0) * ldx
                            _dot_panel(cell, at, start, row, h + (b - r0) * ldh, ih, hh, hidden, p)
                            if gates_given is not None:
                                _add_given(cell, x, at, row, p, hidden)
                        new = begins(resets, d, t, b)
                        _apply_cell(cell, at, tape, plan, params, inputs, t, before, after, b, p, hidden, new)
            if projections is not None:
                if not plan.by_batch:
                    waits += 1
                    barrier_wait(own_barrier, waits, team)
                hr, edges = projections[d]
                flat, left = tape.hidden.reshape(-1), (t * plan.training * batch + own.b0) * hidden
                to, edge = ((t + 1) * batch + own.b0) * ys.shape[2] + plan.column, edges[place]
                multiply_panels(
                    ys, to, outputs, True, flat, left, hidden, hidden, hr, own.o0, own.o1, rows, edge, barrier, rank
                )
            if not plan.by_batch and cell.n_h:
                waits += 1
                barrier_wait(own_barrier, waits, team)
