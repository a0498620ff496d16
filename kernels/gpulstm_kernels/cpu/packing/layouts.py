"""Weights in the order in which tiles read them.

Two orders, both rows of panels. :func:`rows` packs a matrix (gates · units, K) transposed, a panel holding some units
of every gate side by side: the operand B of ``x·Wᵀ``. :func:`columns` packs it as it lies, K running over its rows:
the operand of ``dgates·W``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
def pack_rows(packed, weight, k, gates, units, width, count, rank, size, barrier):
    """Pack ``weight`` (gates * units, k) transposed: panel p holds ``width`` units of every gate side by side.

    ``packed[p, j, g * width + u] = weight[g * units + p * width + u, j]``, zero for units past the end, for ``count``
    panels. What :mod:`.narrow` multiplies in pairs is packed so: ``packed[p, j // 2, g * width + u, j % 2]``, with K
    rounded up to a whole number of pairs.
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
                        row = (g * units + unit) * k + i
                        valid = min(j1, (k - i + pair - 1) // pair) if unit < units else j0
                        for j in range(j0, valid):
                            packed[to + j * stride] = weight[row + j * pair]
                        for j in range(valid, j1):
                            packed[to + j * stride] = 0


@kernel
def pack_columns(packed, weight, columns, gates, units, width, count, rank, size, barrier):
    """Pack ``weight`` (gates * units, columns) as it lies: ``count`` panels of columns, K running over the rows.

    K is in the order of panels of gates, (units / ``width``, gates, ``width``), as gradients of gates are stored;
    units past the end count as zero. ``gates = 1`` with ``width = 1`` is a plain matrix of ``units`` rows.
    """
    lane, item = lanes(packed), packed.itemsize
    across = WIDTH * lane
    depth = (units + width - 1) // width * gates * width
    first, last = share(count, rank, size)
    for p in range(first, last):
        if is_aborted(barrier, rank, depth * across * _ELEMENT):
            return
        for k in range(depth):
            unit, g = k // (gates * width) * width + k % width, k // width % gates
            valid = columns - p * across if unit < units else 0
            source = weight.ctypes.data + ((g * units + unit) * columns + p * across) * item
            to = packed.ctypes.data + (p * depth + k) * across * item
            for v in range(0, across, lane):
                store(packed, load(packed, source + v * item, valid - v), to + v * item, lane)


def _run(pack: Any, packed: np.ndarray, count: int, *arguments: Any) -> np.ndarray:
    crew.run(pack, packed.dtype, (packed, *arguments, count), min(count, packed.size // tuning.current.pack_per_thread))
    return packed


def rows(weight: np.ndarray, gates: int, width: int) -> np.ndarray:
    """``weight`` (gates * units, K) as :func:`pack_rows` packs it with panels of ``width`` units: flat."""
    units, k = weight.shape[0] // gates, weight.shape[1]
    count = -(-units // width)
    packed = empty(count * width * gates * packed_depth(weight, k), weight.dtype)
    return _run(pack_rows, packed, count, weight.reshape(-1), k, gates, units, width)


def in_panels(values: np.ndarray, gates: int, width: int) -> np.ndarray:
    """One value a row of such a matrix (gates * units,), in the same panels; zeros for units past the end."""
    units = len(values) // gates
    count = -(-units // width)
    padded = zeros((gates, count * width), values.dtype)
    padded[:, :units] = values.reshape(gates, units)
    return padded.reshape(gates, count, width).transpose(1, 0, 2).ravel()


def biases(weights: Mapping[str, np.ndarray], gates: int, width: int, dtype: np.dtype) -> np.ndarray:
    """The sum of a layer's biases, zeros if it has none, in panels."""
    if "bias_ih" in weights:
        return in_panels(weights["bias_ih"] + weights["bias_hh"], gates, width)
    return in_panels(np.zeros(len(weights["weight_hh"]), dtype), gates, width)


def columns(weight: np.ndarray, gates: int = 1, width: int = 1) -> np.ndarray:
    """``weight`` (gates * units, columns) as :func:`pack_columns` packs it: flat."""
    units, across = weight.shape[0] // gates, weight.shape[1]
    count = panels(across, weight.dtype)
    depth = -(-units // width) * width * gates
    packed = empty(count * WIDTH * lanes(weight.dtype) * depth, weight.dtype)
    return _run(pack_columns, packed, count, weight.reshape(-1), across, gates, units, width)
