"""Where every buffer of a forward or backward pass comes from: aligned, reused, and poisonable by tests.

A training step takes the same large buffers every time. Handed back to the system they would come back as fresh pages,
and touching those costs more than the products that fill them; so a large block is kept when its last array is gone,
and handed to the next buffer of its size.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_SMALL = 4096  # bytes below which alignment costs more than it brings
_LARGE = 1 << 18  # bytes from which blocks are kept; what is smaller, the C library keeps itself
_GRAIN = 1 << 16  # bytes that the sizes of blocks are rounded up to
_poisoned: list[None] = []  # one entry for each context of poison(), whichever thread it is in


class _Idle:
    """Blocks that no array uses, by size; as much is kept as was ever in use at once, the longest unused goes first."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self.used = self.most_used = self.idle = 0
        self.new_lock()

    def new_lock(self) -> None:
        self.lock = threading.RLock()  # re-entrant: the garbage collector may give a block back inside these methods

    def take(self, size: int) -> np.ndarray:
        with self.lock:
            if self.blocks.get(size):
                block = self.blocks[size].pop()
                self.idle -= size
            else:
                block = np.empty(size, np.uint8)
            self.used += size
            self.most_used = max(self.most_used, self.used)
            return block

    def give_back(self, block: np.ndarray) -> None:
        with self.lock:
            self.used -= block.size
            self.idle += block.size
            self.blocks.setdefault(block.size, []).append(block)
            self.blocks.move_to_end(block.size)
            while self.idle > self.most_used:
                size, blocks = next(iter(self.blocks.items()))
                if blocks:
                    blocks.pop()
                    self.idle -= size
                else:
                    del self.blocks[size]

    def release(self) -> None:
        with self.lock:
            self.blocks.clear()
            self.idle, self.most_used = 0, self.used


_idle = _Idle()
_releases: list[Callable[[], None]] = []  # of memory that is held elsewhere
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.new_lock)


def also_release(release_more: Callable[[], None]) -> None:
    """Have :func:`release` call ``release_more`` first."""
    _releases.append(release_more)


def release() -> None:
    """Hand every block that no array uses back to the system, and packed weights whose owner is not known."""
    for release_more in _releases:
        release_more()
    _idle.release()


class Lease:
    """Stands between a block and the arrays over it: when the last of them is gone, so is this, and the block idle."""

    _block: np.ndarray | None = None  # where there was no memory for one

    def __init__(self, size: int) -> None:
        self._block = _idle.take(-(-(size + ALIGNMENT) // _GRAIN) * _GRAIN)
        address = self._block.ctypes.data
        data = (address + -address % ALIGNMENT, False)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": data, "version": 3}

    def __del__(self, give_back: Any = _idle.give_back) -> None:
        if self._block is not None:
            give_back(self._block)


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialised C-contiguous array, or one full of NaN inside :func:`poison`.

    It lies on a 64-byte boundary unless it is small: NumPy itself aligns to 16 bytes only, and then every 64-byte load
    would touch two cache lines.
    """
    dtype = np.dtype(dtype)
    shape = shape if isinstance(shape, tuple) else (shape,)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        array = np.empty(shape, dtype)
    elif size < _LARGE:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        array = raw[start : start + size].view(dtype).reshape(shape)
    else:
        array = np.asarray(Lease(size)).view(dtype).reshape(shape)
    if _poisoned:
        array.fill(np.nan if dtype.kind == "f" else np.iinfo(dtype).max)
    return array


def contiguous(array: np.ndarray) -> np.ndarray:
    """``array`` itself where kernels can take it as it lies, C-contiguous and aligned; else a copy."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=("C", "A"))


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """As :func:`empty`, full of zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


@contextmanager
def poison() -> Iterator[None]:
    """Fill every array of :func:`empty` with NaN while the context lasts: what is not written then shows."""
    _poisoned.append(None)
    try:
        yield
    finally:
        _poisoned.pop()
