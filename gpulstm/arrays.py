"""The bridge between array libraries: what a layer needs of NumPy and, on a GPU, of CuPy.

Every buffer that a forward or backward pass fills is made by :func:`empty`, so that tests can poison it
(``with poison():``): an element that a kernel forgot to write then shows as NaN instead of as a plausible number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulstm_kernels.memory import empty, poison, zeros

__all__ = ["copy", "drop", "empty", "gemm", "generator", "kept", "poison", "to_numpy", "zeros"]


def copy(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy in a buffer of :func:`empty`."""
    result = empty(array.shape, array.dtype)
    np.copyto(result, array)
    return result


def gemm(a: np.ndarray, b: np.ndarray, transpose_a: bool = False, transpose_b: bool = False) -> np.ndarray:
    """``a @ b`` of two matrices of one dtype, at most one of them read transposed: (M, K) by (K, N) gives (M, N).

    Runs on the threads of the recurrent kernels: a BLAS would bring a pool of its own, and two pools spin against
    each other.
    """
    from gpulstm_kernels.cpu import gemm as products

    a, b = (np.require(matrix, requirements=("C", "A", "W")) for matrix in (a, b))
    if transpose_a:
        m, n = a.shape[1], b.shape[1]
        product, _ = products.outer(a.reshape(-1), b.reshape(-1), a.shape[0], m, n, (0, m), (0, n))
        return copy(product[:m, :n])
    c = zeros((a.shape[0], b.shape[0] if transpose_b else b.shape[1]), a.dtype)
    products.multiply(c, a, b, transposed=transpose_b)
    return c


def kept(rng: np.random.Generator, shape: tuple[int, ...], p: float) -> np.ndarray:
    """Which elements dropout with probability ``p`` keeps: a boolean array drawn from ``rng``."""
    return rng.random(shape, dtype=np.float32) >= p


def drop(value: np.ndarray, keep: np.ndarray, p: float) -> np.ndarray:
    """``value`` with zeros where ``keep`` is false, divided by 1 - ``p`` elsewhere."""
    result = np.multiply(value, keep, out=empty(value.shape, value.dtype))
    result *= 1 / (1 - p)
    return result


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """The generator that ``rng`` stands for: itself, one seeded with an int, or a fresh one for None.

    Raises:
        TypeError: ``rng`` is neither a ``numpy.random.Generator`` nor an int nor None; ``name`` is for the message.
        ValueError: it is a negative int.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and (not isinstance(rng, (int, np.integer)) or isinstance(rng, bool)):
        raise TypeError(f"{name}: expected a numpy.random.Generator, an int seed or None, got {type(rng).__name__}")
    if rng is not None and rng < 0:
        raise ValueError(f"{name}: expected a seed >= 0, got {rng}")
    return np.random.default_rng(rng)


def to_numpy(value: Any, name: str) -> np.ndarray:
    """``value`` as a NumPy array without a copy: an array already, or anything that speaks DLPack on the CPU.

    Raises:
        TypeError: ``value`` is neither, or masked; lists are not taken, since their dtype would be a guess.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array, got a masked one, whose mask would be lost; fill it first")
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(f"{name}: a {type(value).__name__} that DLPack cannot hand over ({error})") from error
    raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
