"""What of a step falls to a thread, where it lies in memory, and the matrix product over it.

Threads split the batch and then do not wait for each other, or, where ``by_batch`` is false, split the units and wait
at a barrier once a step (twice with a projection).
"""

from __future__ import annotations

from typing import NamedTuple

from ..codegen.compilation import expand, inline
from ..codegen.tile import WIDTH, units
from ..codegen.vector import lanes
from ..crew.team import is_aborted, share
from ..gemm import multiply_panel


class Share(NamedTuple):
    """Rows b0 to b1; units u0 to u1, which are panels p0 to p1; and columns o0 to o1 of the outputs."""

    b0: int
    b1: int
    u0: int
    u1: int
    p0: int
    p1: int
    o0: int
    o1: int


@expand
def direction_team(d, count, rank, size):
    """A thread's rank in direction ``d`` of ``count`` and how many threads it has; 0 if this thread is none of them.

    Each direction has threads of its own where there are enough; else directions are walked one after the other.
    """
    if size < count:
        return 0, 1
    place, team = rank // count, size // count
    return place, team if rank % count == d and place < team else 0


@inline
def own_columns(like, columns, by_batch, rank, size):
    """The columns of a state that fall to a thread: whole output panels, or all where the batch is split."""
    if by_batch:
        return 0, columns
    across = WIDTH * lanes(like)
    first, last = share((columns + across - 1) // across, rank, size)
    return first * across, min(columns, last * across)


@expand
def share_of_step(cell, like, plan, batch, place, team):
    """The :class:`Share` of thread ``place`` of ``team``."""
    width = units(cell, like)
    b0, b1 = share(batch, place, team) if plan.by_batch else (0, batch)
    u0, u1 = own_columns(like, plan.hidden, plan.by_batch, place, team)
    o0, o1 = own_columns(like, plan.outputs, plan.by_batch, place, team)
    return Share(b0, b1, u0, u1, u0 // width, (u1 + width - 1) // width, o0, o1)


@inline
def element_address(array, i, j, k):
    """Byte address of element (i, j, k) of a C-contiguous array."""
    return array.ctypes.data + ((i * array.shape[1] + j) * array.shape[2] + k) * array.itemsize


@inline
def part_address(array, i, j, k, n):
    """Byte address of element (i, j, k, n) of a C-contiguous array."""
    return array.ctypes.data + (((i * array.shape[1] + j) * array.shape[2] + k) * array.shape[3] + n) * array.itemsize


@inline
def state_address(states, slot, b, u):
    """Byte address of the first carried state at (slot, b, u)."""
    place = (slot * states.shape[2] + b) * states.shape[3] + u
    return states.ctypes.data + place * states.itemsize


@inline
def multiply_blocks(cell, dh, offset, add, dgates, start, depth, packed, plan, own, m, edge, barrier, rank):
    """A thread's columns of dh = or += dgates·W_hh for ``m`` rows, for blocks that are whole panels of columns wide.

    ``packed``: of :func:`gpulstm_kernels.cpu.packing.layouts.blocks`; ``offset``, ``start``: of the first row of dh and
    of its gates of h.
    """
    across, both = WIDTH * lanes(dh), cell.n_x - cell.first_h
    units, padded = plan.hidden // plan.blocks_back, depth // cell.n_gates
    of_both, of_h = packed[: plan.hidden * units * both], packed[plan.hidden * units * both :]
    alone = cell.n_h - both
    for p in range(own.o0 // across, (own.o1 + across - 1) // across):
        if is_aborted(barrier, rank, m * across * units * cell.n_h):
            return
        first = p * across // units * units  # the block's first unit
        flat, columns, source = dh.reshape(-1), plan.hidden, start + first * both
        if both:
            k = units * both
            multiply_panel(flat, offset, columns, columns, add, dgates, source, depth, of_both, p, m, k, edge)
        if alone:
            k, more, source = units * alone, add or both > 0, start + both * padded + first * alone
            multiply_panel(flat, offset, columns, columns, more, dgates, source, depth, of_h, p, m, k, edge)


@inline
def multiply_panels(c, offset, columns, add, a, a_offset, lda, k, packed, first, last, m, edge, barrier, rank):
    """Columns ``first`` to ``last`` of C = A·B, or C += A·B if ``add``, for ``m`` rows of ``columns`` columns.

    Rows of flat A are ``lda`` elements apart, of which ``k`` count, those of C as many as its last axis has. It ends
    early where the call is aborted.
    """
    across = WIDTH * lanes(c)
    for p in range(first // across, (last + across - 1) // across):
        if is_aborted(barrier, rank, m * across * k):
            return
        multiply_panel(c.reshape(-1), offset, c.shape[2], columns, add, a, a_offset, lda, packed, p, m, k, edge)
