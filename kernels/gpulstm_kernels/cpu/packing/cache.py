"""The cache of packed weights: what is made of parameters, until they change or are gone.

Parameters are plain arrays that an optimizer or a user may change in place at any time, so every use compares a digest
of what they hold with that of what was made of them: reading them once costs little beside packing or multiplying.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ... import memory
from .. import tuning
from ..codegen.compilation import kernel
from ..codegen.features import REGISTER_BYTES
from ..codegen.numba_internals import cgutils
from ..codegen.vector import INT64, counted_loop
from ..crew.atomics import fetch_add
from ..crew.team import is_aborted
from ..crew.thread_pool import crew

_CHAINS = 4  # independent registers of a digest, so that its multiplications overlap
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # odd: a bijection of 64-bit words (Knuth's multiplicative hashing)

Made = TypeVar("Made", bound=tuple[np.ndarray | None, ...])


@intrinsic
def _mix(typing: Any, address: Any, size: Any, start: Any) -> Any:
    """One number for ``size`` bytes of memory and the number ``start``; a change in one word always changes it."""
    vector = ir.VectorType(INT64, REGISTER_BYTES // 8)
    factor = ir.Constant(vector, [_FACTOR] * vector.count)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, size, start = args
        block = INT64(REGISTER_BYTES * _CHAINS)
        whole = builder.sdiv(size, block)

        def mix(k: Any, chains: list[Any]) -> list[Any]:
            at = builder.add(address, builder.mul(k, block))
            result = []
            for c, chain in enumerate(chains):
                place = builder.add(at, INT64(c * REGISTER_BYTES))
                words = builder.load(builder.inttoptr(place, vector.as_pointer()))
                words.align = 1
                result.append(builder.mul(builder.xor(chain, words), factor))
            return result

        def fold(total: Any, word: Any) -> Any:
            total = builder.mul(builder.xor(total, builder.lshr(total, INT64(29))), INT64(_FACTOR))
            return builder.xor(total, word)

        chains = counted_loop(builder, whole, [ir.Constant(vector, [c] * vector.count) for c in range(_CHAINS)], mix)
        total = builder.mul(builder.add(start, INT64(1)), INT64(_FACTOR))
        for chain in chains:
            for lane in range(vector.count):
                total = fold(total, builder.extract_element(chain, ir.IntType(32)(lane)))
        done = builder.mul(whole, block)
        rest = builder.add(address, done)

        def mix_byte(k: Any, totals: list[Any]) -> list[Any]:
            byte = builder.load(builder.inttoptr(builder.add(rest, k), ir.IntType(8).as_pointer()))
            return [fold(totals[0], builder.zext(byte, INT64))]

        return counted_loop(builder, builder.sub(size, done), [total], mix_byte)[0]

    return types.int64(*[types.int64] * 3), codegen


@intrinsic
def _address_ranges(typing: Any, arrays: Any) -> Any:
    """(address, bytes) of each of ``arrays``, of any kinds."""
    pair = types.UniTuple(types.int64, 2)
    result = types.UniTuple(pair, len(arrays))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        ranges = []
        for typ, value in zip(arrays, cgutils.unpack_tuple(builder, args[0]), strict=True):
            array = context.make_array(typ)(context, builder, value)
            parts = [builder.ptrtoint(array.data, INT64), builder.mul(array.nitems, array.itemsize)]
            ranges.append(context.make_tuple(builder, pair, parts))
        return context.make_tuple(builder, result, ranges)

    return result(arrays), codegen


@kernel
def _digest(arrays, found, segment, rank, size, barrier):
    """The address of every array in ``found[0]``; the numbers of its segments are added to ``found[1]``."""
    turn, ranges = 0, _address_ranges(arrays)
    for n in range(len(ranges)):
        address, length = ranges[n]
        found[0, n] = address
        for start in range(0, length, segment):
            if turn % size == rank:
                if is_aborted(barrier, rank, segment):
                    return
                number = _mix(address + start, min(segment, length - start), start)
                fetch_add(found.ctypes.data + (found.shape[1] + n) * 8, number)
            turn += 1


class Source(NamedTuple):
    """Where some arrays lie and of which kinds they are, and a digest of what they hold."""

    location: tuple[Any, ...]
    digest: bytes
    arrays: tuple[np.ndarray, ...]


def source_of(arrays: tuple[np.ndarray, ...]) -> Source:
    """That of C-contiguous ``arrays``, which are read once."""
    found = np.zeros((2, len(arrays)), np.int64)
    kinds = tuple([(array.dtype, array.ndim) for array in arrays])
    at_most = sum([array.nbytes for array in arrays]) // tuning.current.digest_per_thread
    if arrays:
        crew.run(_digest, kinds, (arrays, found, tuning.current.digest_segment), at_most)
    return Source((found[0].tobytes(), kinds), found[1].tobytes(), arrays)


def _owner(array: np.ndarray) -> Any:
    """The object that lives as long as the memory of ``array``; None where that is not known."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if array.base is None:
        return array
    if hasattr(array.base, "untyped_storage"):  # a tensor, which torch makes anew over the same memory at every call
        return array.base.untyped_storage()
    return array.base if isinstance(array.base, memory.Lease) else None


class _Entry(NamedTuple):
    digest: bytes
    made: tuple[np.ndarray | None, ...]
    owners: list[weakref.ref[Any]]
    owned: bool  # whether every array's owner is known

    @property
    def size(self) -> int:
        return sum([array.nbytes for array in self.made if array is not None])


class _Cache:
    """What was made, by where the arrays lie and how it is made.

    It goes with any of the arrays that it was made of, whose memory is then free or belongs to others; what has no
    known owner stays until :meth:`release`. The longest unused goes first where there is too much.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
        self._gone: deque[tuple[tuple[Any, ...], weakref.ref[Any]]] = deque()
        self.new_lock()

    def new_lock(self) -> None:
        self._lock = threading.RLock()  # which tells whether the caller has it

    def get(self, source: Source, how: Hashable, make: Callable[[], Made]) -> Made:
        if self._gone:
            self._sweep()
        key = *source.location, how
        found: Any = self._found(key, source.digest)
        if found is not None:
            return found
        made = make()  # of new arrays: another call may be reading the old ones
        owners = [_owner(array) for array in source.arrays]
        watched = [weakref.ref(owner, functools.partial(self._forget, key)) for owner in owners if owner is not None]
        with self._lock:
            self._entries[key] = _Entry(source.digest, made, watched, 0 < len(watched) == len(owners))
            self._entries.move_to_end(key)
            size = sum([entry.size for entry in self._entries.values()])
            most, most_bytes = tuning.current.cache_entries, tuning.current.cache_bytes
            while len(self._entries) > most or (size > most_bytes and len(self._entries) > 1):
                size -= self._entries.popitem(last=False)[1].size
        return made

    def _found(self, key: tuple[Any, ...], digest: bytes) -> tuple[np.ndarray | None, ...] | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.digest != digest:
                return None
            self._entries.move_to_end(key)
            return entry.made

    def _forget(self, key: tuple[Any, ...], owner: weakref.ref[Any]) -> None:
        """An owner is gone. It may go at any moment, also while this thread has the lock."""
        self._gone.append((key, owner))
        self._sweep()

    def _sweep(self) -> None:
        """Drop what has lost an owner, unless a thread has the lock: what it leaves, the next one finds."""
        while self._gone and not self._lock._is_owned():  # type: ignore[attr-defined]
            # A signal's handler may raise between any two instructions: hence the lock is released in any case.
            try:
                if not self._lock.acquire(blocking=False):
                    return
                while self._gone:  # asked again: another thread may have been quicker
                    key, owner = self._gone.popleft()
                    entry = self._entries.get(key)
                    if entry is not None and any(watched is owner for watched in entry.owners):
                        del self._entries[key]
            finally:
                try:  # noqa: SIM105 - a handler could run in the call of suppress
                    self._lock.release()
                except RuntimeError:  # another thread has it
                    pass

    def release(self) -> None:
        """Drop what has no known owner."""
        self._sweep()
        with self._lock:
            for key in [key for key, entry in self._entries.items() if not entry.owned]:
                del self._entries[key]


_cache = _Cache()
memory.also_release(lambda: _cache.release())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cache.new_lock)


def cached(source: Source, how: Hashable, make: Callable[[], Made]) -> Made:
    """``make()``, or what it gave before if the arrays it is made of lie where they did, are there and hold the same.

    ``how``: all else that it depends on, the shapes of the arrays too. What is returned must not be written to.
    """
    return _cache.get(source, how, make)
