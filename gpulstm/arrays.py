"""The bridge between array libraries: what a layer needs of NumPy and, on a GPU, of CuPy.

Every buffer that a forward or backward pass fills is made by :func:`empty`, so that tests can poison it
(``poison(True)``): an element that a kernel forgot to write then shows as NaN instead of as a plausible number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_poisoned = False


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialised array, or one full of NaN inside :func:`poison`."""
    if _poisoned:
        return np.full(shape, np.nan, dtype)
    return np.empty(shape, dtype)


@contextmanager
def poison() -> Iterator[None]:
    """Fill every array of :func:`empty` with NaN while the context lasts (for tests)."""
    global _poisoned
    before, _poisoned = _poisoned, True
    try:
        yield
    finally:
        _poisoned = before


def gemm(a: np.ndarray, b: np.ndarray, transpose_a: bool = False, transpose_b: bool = False) -> np.ndarray:
    """``a @ b`` of two matrices of one dtype, either read transposed: (M, K) by (K, N) gives (M, N)."""
    return np.matmul(a.T if transpose_a else a, b.T if transpose_b else b)


def generator(rng: Any) -> np.random.Generator:
    """The generator that ``rng`` stands for: itself, one seeded with an int, or a fresh one for None.

    Raises:
        TypeError: ``rng`` is neither a ``numpy.random.Generator`` nor an int nor None.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None or (isinstance(rng, (int, np.integer)) and not isinstance(rng, bool)):
        return np.random.default_rng(rng)
    raise TypeError(f"rng: expected a numpy.random.Generator, an int seed or None, got {type(rng).__name__}")


def to_numpy(value: Any, name: str) -> np.ndarray:
    """``value`` as a NumPy array without a copy: an array already, or anything that speaks DLPack on the CPU.

    Raises:
        TypeError: ``value`` is neither; lists are not taken, since their dtype would be a guess.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(f"{name}: a {type(value).__name__} that DLPack cannot hand over ({error})") from error
    raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
