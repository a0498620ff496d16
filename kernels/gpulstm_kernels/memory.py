"""Where every buffer of a forward or backward pass comes from: aligned, and poisonable by tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_SMALL = 4096  # bytes below which alignment costs more than it brings
_poisoned = False


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
    else:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        array = raw[start : start + size].view(dtype).reshape(shape)
    if _poisoned:
        array.fill(np.nan)
    return array


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """As :func:`empty`, full of zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


@contextmanager
def poison() -> Iterator[None]:
    """Fill every array of :func:`empty` with NaN while the context lasts: what is not written then shows."""
    global _poisoned
    before, _poisoned = _poisoned, True
    try:
        yield
    finally:
        _poisoned = before
