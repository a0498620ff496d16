"""Matrix products from register tiles: packing, C += A·Bᵀ with B packed, and C += Aᵀ·B.

A packed matrix is a row of panels; a panel is ``WIDTH`` vectors (or, for a cell's gates, its gates side by side) wide
and stored so that one step along K reads consecutive memory. All matrices come as flat arrays with an offset and a
row length in elements, so that views into larger buffers need no copy. The order of every sum depends on the shapes
alone, never on how threads share the work.
"""

from __future__ import annotations

import numpy as np

from ..memory import empty, zeros
from .compile import inline, kernel
from .threads import crew, meet
from .tile import ROWS, WIDTH, tile_rows
from .vector import lanes

DEPTH = 512  # steps along K that one pass takes: a panel of them stays in the L2 cache
_WORTH_A_THREAD = 5_000_000  # multiply-adds below which waking a thread costs more than it brings


def panels(columns: int, dtype: np.dtype) -> int:
    """How many panels ``columns`` columns take."""
    return -(-columns // (WIDTH * lanes(dtype)))


@inline
def share(count, rank, size):
    """The first and the last (exclusive) of ``count`` things that fall to ``rank``."""
    return count * rank // size, count * (rank + 1) // size


@inline
def pack_rows(packed, weight, k, gates, units, width, first, last):
    """Pack ``weight`` (gates * units, k) transposed: panel p holds ``width`` units of every gate side by side.

    ``packed[p, j, g * width + u] = weight[g * units + p * width + u, j]``, zero for units past the end; panels
    ``first`` to ``last`` are written.
    """
    stride = gates * width
    for p in range(first, last):
        for j0 in range(0, k, 32):  # short runs, so that the part of the panel being written stays in L1
            j1 = min(k, j0 + 32)
            for g in range(gates):
                for u in range(width):
                    unit = p * width + u
                    to = p * k * stride + g * width + u
                    row = (g * units + unit) * k
                    if unit < units:
                        for j in range(j0, j1):
                            packed[to + j * stride] = weight[row + j]
                    else:
                        for j in range(j0, j1):
                            packed[to + j * stride] = 0


@inline
def pack_columns(packed, weight, columns, gates, units, width, first, last):
    """Pack ``weight`` (gates * units, columns) as it lies: panels of columns, K running over the rows.

    K is in the order of panels of gates, (units / ``width``, gates, ``width``), as gradients of gates are stored;
    units past the end count as zero. ``gates = 1`` with ``width = 1`` is a plain matrix of ``units`` rows.
    """
    across = WIDTH * lanes(packed)
    groups = (units + width - 1) // width
    for p in range(first, last):
        valid = min(across, columns - p * across)
        to = p * groups * gates * width * across
        for q in range(groups):
            for g in range(gates):
                for u in range(width):
                    unit = q * width + u
                    if unit < units:
                        row = (g * units + unit) * columns + p * across
                        for j in range(valid):
                            packed[to + j] = weight[row + j]
                        for j in range(valid, across):
                            packed[to + j] = 0
                    else:
                        for j in range(across):
                            packed[to + j] = 0
                    to += across


@inline
def multiply_panel(c, offset, ldc, columns, a, a_offset, lda, packed, p, m, k, edge):
    """C += A·B for ``m`` rows and panel ``p`` of B, at most ``columns`` columns of C.

    ``edge`` (ROWS, WIDTH vectors) is scratch for a panel that reaches past the last column.
    """
    size = c.itemsize
    across = WIDTH * lanes(c)
    valid = min(across, columns - p * across)
    at = offset + p * across
    step = across * size
    for k0 in range(0, k, DEPTH):
        depth = min(DEPTH, k - k0)
        b = packed.ctypes.data + (p * k + k0) * step
        left = a.ctypes.data + (a_offset + k0) * size
        if valid == across:
            tile_rows(WIDTH, c, c.ctypes.data + at * size, ldc * size, left, lda * size, size, b, m, depth)
            continue
        for r0 in range(0, m, ROWS):
            rows = min(ROWS, m - r0)
            for r in range(rows):
                for j in range(valid):
                    edge[r * across + j] = c[at + (r0 + r) * ldc + j]
            tile_rows(WIDTH, c, edge.ctypes.data, step, left + r0 * lda * size, lda * size, size, b, rows, depth)
            for r in range(rows):
                for j in range(valid):
                    c[at + (r0 + r) * ldc + j] = edge[r * across + j]


@kernel
def _multiply(c, a, lda, b, transposed, m, n, k, gates, width, packed, edges, rank, size, barrier):
    """C (m, n) += A (m, k) · B, B (k, n) in ``b`` or (n, k) if ``transposed``; threads split the rows of C.

    ``gates`` and ``width`` say how K is ordered in A (see :func:`pack_columns`); 1 and 1 for a plain matrix.
    """
    across = WIDTH * lanes(c)
    count = (n + across - 1) // across
    first, last = share(count, rank, size)
    if transposed:
        pack_rows(packed, b, k, 1, n, across, first, last)
        depth = k
    else:
        pack_columns(packed, b, n, gates, k // gates, width, first, last)
        depth = (k // gates + width - 1) // width * width * gates
    meet(barrier, 1, size)
    edge = edges[rank]
    top, bottom = share((m + ROWS - 1) // ROWS, rank, size)
    top, bottom = top * ROWS, min(m, bottom * ROWS)
    if top < bottom:
        for p in range(count):
            multiply_panel(c, top * n, n, n, a, top * lda, lda, packed, p, bottom - top, depth, edge)


def multiply(
    c: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    transposed: bool = False,
    gates: int = 1,
    width: int = 1,
) -> None:
    """C (M, N) += A (M, K') · B, with B (K, N), or (N, K) if ``transposed``; all C-contiguous, of one dtype.

    K' is K, or longer where K is in the padded panel order of :func:`pack_columns`.
    """
    m, n = c.shape
    k = b.shape[1] if transposed else b.shape[0]
    packed = empty(panels(n, c.dtype) * a.shape[1] * WIDTH * lanes(c.dtype), c.dtype)
    at_most = max(1, min(crew.size, m * n * k // _WORTH_A_THREAD))
    edges = empty((at_most, ROWS * WIDTH * lanes(c.dtype)), c.dtype)
    flat = (c.reshape(-1), a.reshape(-1), a.shape[1], b.reshape(-1))
    crew.run(
        lambda rank, size, barrier: _multiply(
            *flat, transposed, m, n, k, gates, width, packed, edges, rank, size, barrier[0]
        ),
        at_most,
    )


@kernel
def _outer(c, ldc, sums, a, a_offset, lda, b, b_offset, ldb, m, n, k, packed_a, packed_b, rank, size):
    """C (m, n) += Aᵀ·B over ``k`` rows of A and B, sums (m) += the sum of A's rows; threads split the rows of C.

    C has ``ldc`` columns, a whole number of panels; its rows are a whole number of ROWS.
    """
    bytes_ = c.itemsize
    across = WIDTH * lanes(c)
    count = (n + across - 1) // across
    top, bottom = share(m // ROWS + (m % ROWS > 0), rank, size)
    theirs = packed_b[rank]
    for k0 in range(0, k, DEPTH):
        depth = min(DEPTH, k - k0)
        for j0 in range(0, depth, 8):  # few rows at a time: rows far apart compete for the same cache lines
            for block in range(top, bottom):
                to = block * ROWS * DEPTH
                for j in range(j0, min(depth, j0 + 8)):
                    row = a_offset + (k0 + j) * lda + block * ROWS
                    for r in range(ROWS):
                        if block * ROWS + r < m:
                            packed_a[to + j * ROWS + r] = a[row + r]
                            sums[block * ROWS + r] += a[row + r]
                        else:
                            packed_a[to + j * ROWS + r] = 0
        for p in range(count):
            valid = min(across, n - p * across)
            for j in range(depth):
                row = b_offset + (k0 + j) * ldb + p * across
                for q in range(valid):
                    theirs[j * across + q] = b[row + q]
                for q in range(valid, across):
                    theirs[j * across + q] = 0
            for block in range(top, bottom):
                place = c.ctypes.data + (block * ROWS * ldc + p * across) * bytes_
                left = packed_a.ctypes.data + block * ROWS * DEPTH * bytes_
                tile_rows(WIDTH, c, place, ldc * bytes_, left, bytes_, ROWS * bytes_, theirs.ctypes.data, ROWS, depth)


def outer(
    a: np.ndarray,
    b: np.ndarray,
    rows: int,
    m: int,
    n: int,
    a_at: tuple[int, int] = (0, 0),
    b_at: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Aᵀ·B (m, n) and the column sums of A (m), over ``rows`` rows of flat arrays A and B.

    ``a_at`` and ``b_at`` give (offset of the first element, elements from row to row). The product is a view of a
    padded array.
    """
    dtype = a.dtype
    across = WIDTH * lanes(dtype)
    blocks = -(-m // ROWS)
    at_most = max(1, min(crew.size, m * n * rows // _WORTH_A_THREAD, blocks))
    c = zeros((blocks * ROWS, panels(n, dtype) * across), dtype)
    sums = zeros(m, dtype)
    packed_a = empty(blocks * ROWS * DEPTH, dtype)
    packed_b = empty((at_most, DEPTH * across), dtype)

    def run(rank: int, size: int, barrier: np.ndarray) -> None:
        _outer(c.reshape(-1), c.shape[1], sums, a, *a_at, b, *b_at, m, n, rows, packed_a, packed_b, rank, size)

    crew.run(run, at_most)
    return c[:m, :n], sums
