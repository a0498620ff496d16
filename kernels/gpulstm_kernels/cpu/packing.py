"""Weights in the order in which tiles read them: packed at their first use and kept until they change.

Weights are plain arrays that an optimizer or a user may change in place at any time, so every use compares a digest
of what they hold with that of what was packed: reading them once costs little beside packing or multiplying.

Two orders, both rows of panels. :func:`rows` packs a matrix (gates · units, K) transposed, a panel holding some units
of every gate side by side: the operand B of ``x·Wᵀ``. :func:`columns` packs it as it lies, K running over its rows:
the operand of ``dgates·W``.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..memory import empty, zeros
from .compile import inline, kernel
from .narrow import group, packed_depth
from .team import run_shares, share, shares
from .threads import crew
from .tile import WIDTH, counted_loop
from .vector import INT64, REGISTER_BYTES, lanes

_SEGMENT = 1 << 18  # bytes that one number of a digest stands for: what threads share out
_CHAINS = 4  # independent registers of a digest, so that its multiplications overlap
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # odd: a bijection of 64-bit words (Knuth's multiplicative hashing)
_MOST_ENTRIES = 256
_MOST_BYTES = 1 << 30
_WORTH_A_THREAD = 100_000  # elements to move or to digest, below which a further thread costs more than it brings


def panels(columns: int, dtype: np.dtype) -> int:
    """How many panels ``columns`` columns take."""
    return -(-columns // (WIDTH * lanes(dtype)))


# --- digests ----------------------------------------------------------------------------------------------------


@intrinsic
def _mix_registers(typing: Any, address: Any, n: Any) -> Any:
    """One number for ``n`` times ``_CHAINS`` registers of memory; a change in one word always changes it."""
    vector = ir.VectorType(INT64, REGISTER_BYTES // 8)
    factor = ir.Constant(vector, [_FACTOR] * vector.count)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, n = args
        block = builder.mul(INT64(REGISTER_BYTES), INT64(_CHAINS))

        def mix(k: Any, chains: list[Any]) -> list[Any]:
            at = builder.add(address, builder.mul(k, block))
            result = []
            for c, chain in enumerate(chains):
                place = builder.add(at, INT64(c * REGISTER_BYTES))
                words = builder.load(builder.inttoptr(place, vector.as_pointer()))
                words.align = 1
                result.append(builder.mul(builder.xor(chain, words), factor))
            return result

        chains = counted_loop(builder, n, [ir.Constant(vector, [c] * vector.count) for c in range(_CHAINS)], mix)
        total = INT64(0)
        for chain in chains:
            for lane in range(vector.count):
                word = builder.extract_element(chain, ir.IntType(32)(lane))
                total = builder.mul(builder.xor(total, builder.lshr(total, INT64(29))), INT64(_FACTOR))
                total = builder.xor(total, word)
        return total

    return types.int64(types.int64, types.int64), codegen


@inline
def _digest_share(content, segment, numbers, rank, size, barrier):
    """``numbers[s]`` from ``content[s * segment : (s + 1) * segment]``; content is uint8."""
    first, last = share(numbers.size, rank, size)
    block = REGISTER_BYTES * _CHAINS
    for s in range(first, last):
        n = min(segment, content.size - s * segment)
        whole = n // block
        number = _mix_registers(content.ctypes.data + s * segment, whole)
        for i in range(s * segment + whole * block, s * segment + n):
            number = (number ^ content[i]) * _FACTOR
        numbers[s] = number


@kernel
def _digest(team, arguments):
    return run_shares(team, *shares(_digest_share, arguments))


def _digest_of(weight: np.ndarray) -> bytes:
    content = weight.reshape(-1).view(np.uint8)
    numbers = np.empty(-(-weight.nbytes // _SEGMENT), np.int64)
    at_most = min(len(numbers), weight.size // _WORTH_A_THREAD)
    crew.run(_digest, None, (content, _SEGMENT, numbers), at_most)
    return numbers.tobytes()


# --- the cache --------------------------------------------------------------------------------------------------


class _Cache:
    """Packed weights by where the weight lies and how it is packed; the longest unused goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Any, ...], tuple[bytes, np.ndarray]] = OrderedDict()
        self._bytes = 0
        self.new_lock()

    def new_lock(self) -> None:
        self._lock = threading.Lock()

    def get(self, weight: np.ndarray, how: tuple[Any, ...], pack: Callable[[], np.ndarray]) -> np.ndarray:
        if weight.size == 0:
            return weight.reshape(-1)
        key = (weight.ctypes.data, weight.shape, weight.dtype, *how)
        digest = _digest_of(weight)
        with self._lock:
            known = self._entries.get(key)
            if known is not None and known[0] == digest:
                self._entries.move_to_end(key)
                return known[1]
        packed = pack()  # into a new array: another call may be reading the old one
        with self._lock:
            self._drop(key)
            self._entries[key] = digest, packed
            self._bytes += packed.nbytes
            while len(self._entries) > _MOST_ENTRIES or (self._bytes > _MOST_BYTES and len(self._entries) > 1):
                self._drop(next(iter(self._entries)))
        return packed

    def _drop(self, key: tuple[Any, ...]) -> None:
        known = self._entries.pop(key, None)
        if known is not None:
            self._bytes -= known[1].nbytes


_cache = _Cache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cache.new_lock)


# --- packing ----------------------------------------------------------------------------------------------------


@inline
def pack_rows(packed, weight, k, gates, units, width, first, last):
    """Pack ``weight`` (gates * units, k) transposed: panel p holds ``width`` units of every gate side by side.

    ``packed[p, j, g * width + u] = weight[g * units + p * width + u, j]``, zero for units past the end; panels
    ``first`` to ``last`` are written. What :mod:`.narrow` multiplies in pairs is packed so: ``packed[p, j // 2, g *
    width + u, j % 2]``, with K rounded up to a whole number of pairs.
    """
    pair = group(packed)
    stride = gates * width * pair
    groups = packed_depth(packed, k) // pair
    for p in range(first, last):
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
def _pack_rows_share(packed, weight, k, gates, units, width, count, rank, size, barrier):
    first, last = share(count, rank, size)
    pack_rows(packed, weight, k, gates, units, width, first, last)


@kernel
def _pack_rows(team, arguments):
    return run_shares(team, *shares(_pack_rows_share, arguments))


@inline
def _pack_columns_share(packed, weight, columns, gates, units, width, count, rank, size, barrier):
    first, last = share(count, rank, size)
    pack_columns(packed, weight, columns, gates, units, width, first, last)


@kernel
def _pack_columns(team, arguments):
    return run_shares(team, *shares(_pack_columns_share, arguments))


def _run(pack: Any, packed: np.ndarray, count: int, *arguments: Any) -> np.ndarray:
    crew.run(pack, packed.dtype, (packed, *arguments, count), min(count, packed.size // _WORTH_A_THREAD))
    return packed


def rows(weight: np.ndarray, gates: int, width: int, keep: bool = True) -> np.ndarray:
    """``weight`` (gates * units, K) as :func:`pack_rows` packs it with panels of ``width`` units: flat.

    ``keep``: it is a parameter, which comes again; else what is packed is not kept.
    """
    units, k = weight.shape[0] // gates, weight.shape[1]
    count = -(-units // width)

    def pack() -> np.ndarray:
        packed = empty(count * width * gates * packed_depth(weight, k), weight.dtype)
        return _run(_pack_rows, packed, count, weight.reshape(-1), k, gates, units, width)

    return _cache.get(weight, ("rows", gates, width), pack) if keep else pack()


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


def columns(weight: np.ndarray, gates: int = 1, width: int = 1, keep: bool = True) -> np.ndarray:
    """``weight`` (gates * units, columns) as :func:`pack_columns` packs it: flat; ``keep`` as for :func:`rows`."""
    units, across = weight.shape[0] // gates, weight.shape[1]
    count = panels(across, weight.dtype)

    def pack() -> np.ndarray:
        depth = -(-units // width) * width * gates
        packed = empty(count * WIDTH * lanes(weight.dtype) * depth, weight.dtype)
        return _run(_pack_columns, packed, count, weight.reshape(-1), across, gates, units, width)

    return _cache.get(weight, ("columns", gates, width), pack) if keep else pack()
