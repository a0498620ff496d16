"""Weights in the order in which tiles read them.

Two orders, both rows of panels. :func:`rows` packs a matrix (gates · units, K) transposed, a panel holding some units
of every gate side by side: the operand B of ``x·Wᵀ``. :func:`columns` packs it as it lies, K running over its rows:
the operand of ``dgates·W``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...cells import Cell
from ...memory import empty, zeros
from .. import tuning
from ..codegen.compilation import kernel
from ..codegen.narrow import group, packed_depth
from ..codegen.tile import WIDTH
from ..codegen.vector import lanes, load, store
from ..crew.team import is_aborted, share
from ..crew.thread_pool import crew

_ELEMENT = tuning.current.pack_cost


def panels(columns: int, dtype: np.dtype) -> int:
    """How many panels ``columns`` columns take."""
    return -(-columns // (WIDTH * lanes(dtype)))


@kernel
def pack_rows(packed, weight, k, gates, turn, units, width, count, rank, size, barrier):
    """Pack ``weight`` (gates * units, k) transposed: panel p holds ``width`` units of every gate side by side.

    ``packed[p, j, g * width + u] = weight[from * units + p * width + u, j]``, zero for units past the end, for
    ``count`` panels, where ``from`` is g - ``turn``, modulo ``gates``: the last ``turn`` gates come first. What
    :mod:`.narrow` multiplies in pairs is packed so: ``packed[p, j // 2, g * width + u, j % 2]``, with K rounded up to a
    whole number of pairs.
    """
    pair = group(packed)
    stride = gates * width * pair
    groups = packed_depth(packed, k) // pair
    first, last = share(count, rank, size)
    for p in range(first, last):
        if is_aborted(barrier, rank, groups * stride * _ELEMENT):
            return
        for j0 in range(0, groups, 32):  # short runs, so that the part of the panel being written stays in L1
            j1 = min(groups, j0 + 32)
            for g in range(gates):
                for u in range(width):
                    unit = p * width + u
                    for i in range(pair):
                        to = p * groups * stride + (g * width + u) * pair + i
                        row = ((g + gates - turn) % gates * units + unit) * k + i
                        valid = min(j1, (k - i + pair - 1) // pair) if unit < units else j0
                        for j in range(j0, valid):
                            packed[to + j * stride] = weight[row + j * pair]
                        for j in range(valid, j1):
                            packed[to + j * stride] = 0


@kernel
def pack_columns(packed, weight, columns, gates, regions, units, width, count, rank, size, barrier):
    """Pack ``weight`` (gates * units, columns) as it lies: ``count`` panels of columns, K running over the rows.

    K is in the order in which gradients of gates are stored: of each of two ``regions``, (its first gate, how many it
    has), panels of gates, (units / ``width``, gates, ``width``); units past the end count as zero.
    """
    lane, item = lanes(packed), packed.itemsize
    across = WIDTH * lane
    padded = (units + width - 1) // width * width
    depth = gates * padded
    first, last = share(count, rank, size)
    for p in range(first, last):
        if is_aborted(barrier, rank, depth * across * _ELEMENT):
            return
        to = packed.ctypes.data + p * depth * across * item
        for first_gate, some in regions:
            for k in range(some * padded):
                unit, g = k // (some * width) * width + k % width, first_gate + k // width % some
                valid = columns - p * across if unit < units else 0
                source = weight.ctypes.data + ((g * units + unit) * columns + p * across) * item
                for v in range(0, across, lane):
                    store(packed, load(packed, source + v * item, valid - v), to + v * item, lane)
                to += across * item


def _run(pack: Any, packed: np.ndarray, count: int, *arguments: Any) -> np.ndarray:
    crew.run(pack, packed.dtype, (packed, *arguments, count), min(count, packed.size // tuning.current.pack_per_thread))
    return packed


def rows(weight: np.ndarray, gates: int, width: int, turn: int = 0) -> np.ndarray:
    """``weight`` (gates * units, K) as :func:`pack_rows` packs it with panels of ``width`` units: flat."""
    units, k = weight.shape[0] // gates, weight.shape[1]
    count = -(-units // width)
    packed = empty(count * width * gates * packed_depth(weight, k), weight.dtype)
    return _run(pack_rows, packed, count, weight.reshape(-1), k, gates, turn, units, width)


def in_panels(values: np.ndarray, gates: int, width: int, turn: int = 0) -> np.ndarray:
    """One value a row of such a matrix (gates * units,), in the same panels; zeros for units past the end."""
    units = len(values) // gates
    count = -(-units // width)
    padded = zeros((gates, count * width), values.dtype)
    padded[:, :units] = np.roll(values.reshape(gates, units), turn, axis=0)
    return padded.reshape(gates, count, width).transpose(1, 0, 2).ravel()


def biases(cell: Cell, weights: Mapping[str, np.ndarray], hidden: int, width: int, dtype: np.dtype) -> np.ndarray:
    """The bias of each of a layer's gates, of one product or the sum of both, zeros if it has none, in panels."""
    of_x, of_h, count = len(cell.gates_of_x), len(cell.gates_of_h), len(cell.preactivations)
    total = np.zeros((count, hidden), dtype)
    if "bias_ih" in weights:
        total[:of_x] = np.roll(weights["bias_ih"].reshape(of_x, -1), len(cell.x_gates), axis=0)
    if "bias_hh" in weights:
        total[len(cell.x_gates) :] += weights["bias_hh"].reshape(of_h, -1)
    return in_panels(total.ravel(), count, width)


def params(cell: Cell, weights: Mapping[str, np.ndarray], padded: int, dtype: np.dtype) -> np.ndarray:
    """A cell's parameters, (their number, ``padded``), with zeros past the last unit."""
    total = zeros((len(cell.params), padded), dtype)
    for k, name in enumerate(cell.params):
        total[k, : len(weights[name])] = weights[name]
    return total


def compact(weight: np.ndarray) -> np.ndarray:
    """The blocks of a recurrent weight (N, Gh·H/N, H/N) below each other, gate by gate: (Gh·H, H/N)."""
    heads, rows, units = weight.shape
    by_gate = weight.reshape(heads, rows // units, units, units).swapaxes(0, 1)
    return np.ascontiguousarray(by_gate).reshape(heads * rows, units)


def whole(weight: np.ndarray) -> np.ndarray:
    """A recurrent weight of blocks (N, Gh·H/N, H/N) as the matrix (Gh·H, H), with zeros beside the blocks."""
    heads, rows, units = weight.shape
    matrix = np.zeros((rows // units, heads, units, heads, units), weight.dtype)
    for n, block in enumerate(weight):
        matrix[:, n, :, n] = block.reshape(-1, units, units)
    return matrix.reshape(heads * rows, heads * units)


def by_gate(scales: np.ndarray, gates: int) -> np.ndarray:
    """The scales of a recurrent weight of blocks (N, Gh·H/N) in the order of the rows of :func:`whole`."""
    return np.ascontiguousarray(scales.reshape(len(scales), gates, -1).swapaxes(0, 1)).ravel()


def blocks_of(matrix: np.ndarray, heads: int) -> np.ndarray:
    """The blocks of :func:`whole` again."""
    units = matrix.shape[1] // heads
    parts = matrix.reshape(-1, heads, units, heads, units)
    return np.stack([parts[:, n, :, n].reshape(-1, units) for n in range(heads)])


def blocks(weight: np.ndarray, both: int, width: int) -> np.ndarray:
    """A recurrent weight of blocks as the walk back reads it: the columns of each block's ``both`` first gates, packed
    as :func:`columns` packs them, and behind those of all blocks the columns of the others."""
    _, rows, units = weight.shape
    parts = []
    for first, count in ((0, both), (both, rows // units - both)):
        if count:
            own = [np.ascontiguousarray(block[first * units : (first + count) * units]) for block in weight]
            parts += [columns(block, width, ((0, count), (0, 0))) for block in own]
    return np.concatenate(parts)


Regions = tuple[tuple[int, int], tuple[int, int]]


def columns(weight: np.ndarray, width: int = 1, regions: Regions = ((0, 1), (0, 0))) -> np.ndarray:
    """``weight`` (gates * units, columns) as :func:`pack_columns` packs it: flat.

    One gate with ``width = 1``, as without more arguments, is a plain matrix of ``units`` rows.
    """
    gates = sum([count for _, count in regions])
    units, across = weight.shape[0] // gates, weight.shape[1]
    count = panels(across, weight.dtype)
    depth = -(-units // width) * width * gates
    packed = empty(count * WIDTH * lanes(weight.dtype) * depth, weight.dtype)
    return _run(pack_columns, packed, count, weight.reshape(-1), across, gates, regions, units, width)
