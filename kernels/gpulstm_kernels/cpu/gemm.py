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
from .tile import ROWS, WIDTH, tile, tile_rows
from .vector import lanes, load, store

DEPTH = 512  # steps along K that one pass takes: a panel of them stays in the L2 cache
_OUTER_DEPTH = 256  # the same where both operands are packed: a thread holds one of them whole
_WORTH_A_THREAD = 5_000_000  # multiply-adds below which waking a thread costs more than it brings
_WORTH_A_COPY = 500_000  # elements to move, likewise


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
def _outer(c, ldc, sums, a, a_at, b, b_at, m, n, k, packed_a, packed_b, rank, size):
    """C (m, n) += Aᵀ·B over ``k`` rows of A and B, sums += the sum of B's rows; threads split B's panels.

    C has ``ldc`` columns, a whole number of panels like ``sums``, and whole blocks of ROWS rows.
    """
    item = c.itemsize
    across = WIDTH * lanes(c)
    lane, stride = lanes(c), packed_a.shape[2]
    first, last = share((n + across - 1) // across, rank, size)
    left, right = packed_a[rank], packed_b[rank]
    for k0 in range(0, k, _OUTER_DEPTH):
        depth = min(_OUTER_DEPTH, k - k0)
        for j0 in range(0, depth, 8):  # few rows at a time: rows far apart compete for the same cache lines
            for block in range(0, m, ROWS):
                rows = min(ROWS, m - block)
                for j in range(j0, min(depth, j0 + 8)):
                    source = a.ctypes.data + (a_at[0] + (k0 + j) * a_at[1] + block) * item
                    to = left.ctypes.data + (block // ROWS * stride + j * ROWS) * item
                    for r in range(0, ROWS, lane):  # whole registers: what reaches into the next rows is overwritten
                        store(c, load(c, source + r * item, rows - r), to + r * item, lane)
        for p in range(first, last):
            valid = min(across, n - p * across)
            for v in range(0, across, lane):
                total = load(c, sums.ctypes.data + (p * across + v) * item, lane)
                for j in range(depth):
                    source = b.ctypes.data + (b_at[0] + (k0 + j) * b_at[1] + p * across + v) * item
                    values = load(c, source, valid - v)
                    total = total + values
                    store(c, values, right.ctypes.data + (j * across + v) * item, lane)
                store(c, total, sums.ctypes.data + (p * across + v) * item, lane)
            for block in range(0, m, ROWS):
                to = c.ctypes.data + (block * ldc + p * across) * item
                source = left.ctypes.data + block // ROWS * stride * item
                tile(ROWS, WIDTH, c, to, ldc * item, source, item, ROWS * item, right.ctypes.data, depth)


def outer(
    a: np.ndarray,
    b: np.ndarray,
    rows: int,
    m: int,
    n: int,
    a_at: tuple[int, int],
    b_at: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Aᵀ·B in the corner (m, n) of a padded array, and the column sums of B, padded likewise.

    The sums run over ``rows`` rows of flat A and B; ``a_at`` and ``b_at`` give (offset of the first element, elements
    from row to row).
    """
    dtype = a.dtype
    across = WIDTH * lanes(dtype)
    count = panels(n, dtype)
    padded = -(-m // ROWS) * ROWS
    size = max(1, min(crew.size, m * n * rows // _WORTH_A_THREAD, count))
    c = zeros((padded, count * across), dtype)
    sums = zeros(count * across, dtype)
    packed_a = empty((size, padded // ROWS, ROWS * _OUTER_DEPTH + lanes(dtype)), dtype)
    packed_b = empty((size, _OUTER_DEPTH * across), dtype)
    flat = (c.reshape(-1), c.shape[1], sums, a, a_at, b, b_at, m, n, rows, packed_a, packed_b)
    crew.run(lambda rank, size, barrier: _outer(*flat, rank, size), size)
    return c, sums


@kernel
def _unpanel(rows, panels, ldp, gates, units, width, first, last):
    """rows (gates * units, m) from ``panels`` (m, ...), whose columns are ordered (units / width, gates, width)."""
    m = rows.shape[1]
    for p in range(first, last):
        for i0 in range(0, m, 16):  # blocks of 16 by a panel's width: both sides stay in whole cache lines
            for g in range(gates):
                for u in range(p * width, min(units, (p + 1) * width)):
                    column = p * width * gates + g * width + u - p * width
                    for i in range(i0, min(m, i0 + 16)):
                        rows[g * units + u, i] = panels[i * ldp + column]


def unpanel(product: np.ndarray, m: int, gates: int, units: int, width: int) -> np.ndarray:
    """A parameter (gates * units, m) from the first ``m`` rows of a product whose columns are in panels."""
    rows = empty((gates * units, m), product.dtype)
    count = -(-units // width)

    def run(rank: int, size: int, barrier: np.ndarray) -> None:
        _unpanel(rows, product.reshape(-1), product.shape[1], gates, units, width, *share(count, rank, size))

    crew.run(run, max(1, rows.size // _WORTH_A_COPY))
    return rows
