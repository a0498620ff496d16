"""Matrix products from register tiles: packing, C += A·Bᵀ with B packed, and C += Aᵀ·B.

A packed matrix is a row of panels; a panel is ``WIDTH`` vectors (or, for a cell's gates, its gates side by side) wide
and stored so that one step along K reads consecutive memory. All matrices come as flat arrays with an offset and a
row length in elements, so that views into larger buffers need no copy. The order of every sum depends on the shapes
alone, never on how threads share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..memory import empty, zeros
from . import tuning
from .codegen.compilation import inline, kernel
from .codegen.features import CACHE_LINE
from .codegen.tile import ROWS, WIDTH, tile_rows
from .codegen.vector import lanes, load, store, transpose
from .crew.team import barrier_wait, is_aborted, of_all, share
from .crew.thread_pool import crew
from .packing import layouts

DEPTH, OUTER_DEPTH, _BLOCK = tuning.current.depth, tuning.current.outer_depth, tuning.current.gemm_block_rows


@inline
def multiply_panel(c, offset, ldc, columns, add, a, a_offset, lda, packed, p, m, k, edge):
    """C = A·B, or C += A·B if ``add``, for ``m`` rows and panel ``p`` of B, at most ``columns`` columns of C.

    ``edge`` (ROWS, WIDTH vectors) is scratch for a panel that reaches past the last column.
    """
    size, across = c.itemsize, WIDTH * lanes(c)
    left = a.ctypes.data + a_offset * size
    for k0 in range(0, k, DEPTH):
        b = packed.ctypes.data + (p * k + k0) * across * size
        at = offset + p * across
        left_k, inside, more = left + k0 * size, columns - p * across, add or k0 > 0
        _tile_inside(c, at, ldc, inside, more, left_k, lda * size, b, m, min(DEPTH, k - k0), edge)


@inline
def _tile_inside(c, at, ldc, columns, add, a, lda, b, m, n, edge):
    """C = A·B, or C += A·B if ``add``, for ``m`` rows of a panel that may reach past the last column of flat C.

    ``at``: where the panel begins; ``columns``: how many there are from there on; the rest as for ``tile_rows``.
    """
    size, across = c.itemsize, WIDTH * lanes(c)
    inside = columns >= across
    step = max(1, m) if inside else ROWS  # what reaches past the last column goes through ``edge``, tile by tile
    to, apart = (c.ctypes.data + at * size, ldc * size) if inside else (edge.ctypes.data + across * size, across * size)
    zeros = edge.ctypes.data + 0 * size  # a signed number, as the other addresses
    start, lds = (to, apart) if add else (zeros, 0)
    for r0 in range(0, m, step):
        height = min(step, m - r0)
        if not inside and add:
            for r in range(height):
                for v in range(0, columns, lanes(c)):
                    value = load(c, c.ctypes.data + (at + (r0 + r) * ldc + v) * size, columns - v)
                    store(c, value, to + r * apart + v * size, lanes(c))
        tile_rows(WIDTH, c, c, 0, to, apart, start, lds, a + r0 * lda, lda, b, height, n, b + n * across * size)
        if not inside:
            for r in range(height):
                for v in range(0, columns, lanes(c)):
                    value = load(c, to + r * apart + v * size, lanes(c))
                    store(c, value, c.ctypes.data + (at + (r0 + r) * ldc + v) * size, columns - v)


def edges(threads: int, dtype: np.dtype) -> np.ndarray:
    """Scratch for each of ``threads``: a row of zeros, and a tile of a panel that is not full."""
    return zeros((threads, (1 + ROWS) * WIDTH * lanes(dtype)), dtype)


@inline
def multiply_rows(c, offset, n, add, a, a_offset, lda, packed, m, k, edges, rank, size, barrier):
    """C (m, n) = or, if ``add``, += A (m, k) · B for a packed B and flat C and A, from ``offset`` and ``a_offset`` on.

    Threads split the rows of C, and blocks of them stay in the cache. They end early where the call is aborted.
    """
    across = WIDTH * lanes(c)
    top, bottom = share(m, rank, size)
    for r0 in range(top, bottom, _BLOCK):
        to, source, rows = offset + r0 * n, a_offset + r0 * lda, min(_BLOCK, bottom - r0)
        for p in range((n + across - 1) // across):
            if is_aborted(barrier, rank, rows * across * k):
                return
            multiply_panel(c, to, n, n, add, a, source, lda, packed, p, rows, k, edges[rank])


@kernel
def _multiply(c, n, a, a_offset, lda, packed, m, k, edges, rank, size, barrier):
    multiply_rows(c, 0, n, True, a, a_offset, lda, packed, m, k, edges, rank, size, barrier)


def multiply(c: np.ndarray, a: np.ndarray, b: np.ndarray, transposed: bool = False) -> None:
    """C (M, N) += A (M, K) · B, with B (K, N), or (N, K) if ``transposed``; all C-contiguous, of one dtype."""
    packed = layouts.rows(b, 1, WIDTH * lanes(b.dtype)) if transposed else layouts.columns(b)
    multiply_packed(c, Rows(a.reshape(-1), (0, a.shape[1]), a.shape[1]), packed)


class Rows(NamedTuple):
    """Rows of a matrix in a flat array: (offset of the first element, elements from row to row) and columns."""

    flat: np.ndarray
    at: tuple[int, int]
    columns: int


def multiply_packed(c: np.ndarray, a: Rows, b: np.ndarray) -> None:
    """C (M, N) += A (M, K) · B, with B (K, N) as of :mod:`.packing.layouts`; C is C-contiguous."""
    (m, n), k = c.shape, a.columns
    at_most = max(1, min(crew.size, m * n * k // tuning.current.gemm_per_thread))
    crew.run(_multiply, c.dtype, (c.reshape(-1), n, a.flat, *a.at, b, m, k, edges(at_most, c.dtype)), at_most)


@inline
def _pack_panels(like, to, b, k0, depth, first, last, zero, zero_at):
    """Rows ``first`` to ``last`` of the ``depth`` rows of B from ``k0`` on, whole rows at a time, into panels.

    ``zero``: None, or a number for each row from ``zero_at`` on, which counts as one of zeros where that is not 0.
    """
    item, lane, across, n = like.itemsize, lanes(like), WIDTH * lanes(like), b.columns
    for j in range(first, last):
        source = b.flat.ctypes.data + (b.at[0] + (k0 + j) * b.at[1]) * item
        valid = n
        if zero is not None and zero[zero_at + k0 + j]:
            valid = 0
        for v in range(0, (n + across - 1) // across * across, lane):
            place = (v // across * depth + j) * across + v % across
            store(like, load(like, source + v * item, valid - v), to + place * item, lane)


class Runs(NamedTuple):
    """How many of A's gates are multiplied with B alone, with both B and D, and with D alone."""

    of_b: int
    of_both: int
    of_d: int


@inline
def outer_rows(
    c, sums, a, b, d, runs, units, width, k, add, blocks, zero, zero_at, scratch, edges, waits, rank, size, barrier
):
    """C = Aᵀ·B (gates · units, N) and behind it Aᵀ·D over ``k`` rows of :class:`Rows`, and the sums of A's columns.

    All three are added to what is there if ``add``. A's columns are those of the gates of each of :class:`Runs`, each
    in panels, (units / width, gates, width); what lies past the last one is not read. The gates of B alone are the last
    rows of Aᵀ·B. ``blocks``: of Aᵀ·D only so many blocks on the diagonal are computed, each whole panels wide.
    ``zero``, ``zero_at``: None, or which rows of D count as zeros, of :func:`_pack_panels`. ``scratch``: of
    :func:`outer_scratch`. Threads split A's panels, which they transpose, and the work of packing B and D, after which
    all wait at their barrier: ``waits``, how often they had waited there before, becomes what is returned. They end
    early where the call is aborted.
    """
    packed_a, packed_bd = scratch
    item, lane = c.itemsize, lanes(c)
    across = WIDTH * lane
    left, of_gate, lda = packed_a.ctypes.data, packed_a.strides[0], packed_a.strides[1]
    first, last = share((units + width - 1) // width, rank, size)
    unit, own, padded = first * width, min(units, last * width) - first * width, (units + width - 1) // width * width
    first_of_d, in_b, in_d = runs.of_b, runs.of_b + runs.of_both, runs.of_both + runs.of_d
    of_b, of_d = (b.columns + across - 1) // across, (d.columns + across - 1) // across
    for k0 in range(0, k, OUTER_DEPTH):
        depth = min(OUTER_DEPTH, k - k0)
        right = packed_bd.ctypes.data + waits % 2 * packed_bd.strides[0]  # others may still read the block before
        j0, j1 = share(depth, rank, size)
        _pack_panels(c, right, b, k0, depth, j0, j1, None, 0)
        _pack_panels(c, right + of_b * depth * across * item, d, k0, depth, j0, j1, zero, zero_at)
        for j0 in range(0, depth, lane):
            for gate, gates in ((0, runs.of_b), (first_of_d, runs.of_both), (in_b, runs.of_d)):
                for column in range(first * gates * width, last * gates * width, lane):
                    of_a = gate * padded + column
                    place = sums.ctypes.data + of_a * item
                    source = a.flat.ctypes.data + (a.at[0] + (k0 + j0) * a.at[1] + of_a) * item
                    total = load(c, place, lane if add or k0 + j0 > 0 else 0)
                    for j in range(min(lane, depth - j0)):
                        total = total + load(c, source + j * a.at[1] * item, a.columns - of_a)
                    store(c, total, place, lane)
                    row = column // (gates * width) * width + column % width
                    to = left + (gate + column // width % gates) * of_gate + row * lda + j0 * item
                    transpose(c, source, a.at[1] * item, depth - j0, a.columns - of_a, to, lda)
        waits += 1
        barrier_wait(of_all(barrier), waits, size)
        for p in range(of_b + of_d):
            is_b = p < of_b
            n, gates, gate = (b.columns, in_b, 0) if is_b else (d.columns, in_d, first_of_d)
            if is_aborted(barrier, rank, gates * own * across * depth):
                return waits
            start, column = (0, p * across) if is_b else (in_b * units * b.columns, (p - of_b) * across)
            last_ones = runs.of_b if is_b else 0  # as many rows of C are of the first gates
            low, some = unit, own
            if blocks > 1 and not is_b:
                low = max(unit, column * blocks // n * (units // blocks))
                some = min(unit + own, (column * blocks // n + 1) * (units // blocks)) - low
            for g in range(gates if some > 0 else 0):
                place = g - last_ones if g >= last_ones else g + gates - last_ones
                _tile_inside(
                    c,
                    start + (place * units + low) * n + column,
                    n,
                    n - column,
                    add or k0 > 0,
                    left + (gate + g) * of_gate + low * lda,
                    lda,
                    right + p * depth * across * item,
                    some,
                    depth,
                    edges[rank],
                )
    return waits


def outer_scratch(k: int, units: int, gates: int, width: int, columns: Sequence[int], dtype: np.dtype) -> Any:
    """Scratch of :func:`outer_rows`: A transposed, (gates, units, K); twice B and D, of so many ``columns`` each."""
    depth, across = min(k, OUTER_DEPTH), WIDTH * lanes(dtype)
    apart = -(-depth // lanes(dtype)) * lanes(dtype) + CACHE_LINE // dtype.itemsize  # not a power of two
    packed_a = empty((gates, -(-units // width) * width, apart), dtype)
    packed_bd = empty((2, depth * sum([-(-n // across) * across for n in columns])), dtype)
    return packed_a, packed_bd


@kernel
def _outer(c, sums, a, b, d, gates, units, width, k, scratch, edges, rank, size, barrier):
    runs = Runs(0, gates, 0)
    outer_rows(c, sums, a, b, d, runs, units, width, k, False, 1, None, 0, scratch, edges, 0, rank, size, barrier)


def outer(
    a: np.ndarray,
    a_at: tuple[int, int],
    k: int,
    right: Sequence[Rows],
    units: int,
    gates: int = 1,
    width: int | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Aᵀ·B (gates · units, N) for each of one or two B in ``right``, and the sums of A's columns as they lie.

    All have ``k`` rows; A is flat, as :class:`Rows` has it. The columns of A are in panels of ``width`` units, a whole
    number of registers: (units / width, gates, width), the last one padded unless ``gates`` is 1, where ``width`` does
    not matter and may be left out.
    """
    dtype = a.dtype
    width = width or WIDTH * lanes(dtype)
    n = [b.columns for b in right]
    work = gates * units * sum(n) * k
    threads = max(1, min(crew.size, work // tuning.current.gemm_per_thread))
    c = empty(gates * units * sum(n), dtype)
    sums = empty(-(-units // width) * width * gates, dtype)
    left = Rows(a, a_at, units if gates == 1 else len(sums))
    b, d = right if len(right) == 2 else (right[0], Rows(a, (0, 0), 0))
    scratch = outer_scratch(k, units, gates, width, n, dtype)
    operands = (c, sums, left, b, d, gates, units, width, k, scratch, edges(threads, dtype))
    crew.run(_outer, dtype, operands, threads, work)
    return products_of(c, [(gates * units, columns) for columns in n]), sums


def products_of(c: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The matrices of these ``shapes`` that lie one behind another in flat ``c``."""
    parts, start = [], 0
    for rows, n in shapes:
        parts.append(c[start : start + rows * n].reshape(rows, n))
        start += rows * n
    return parts
