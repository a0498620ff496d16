"""What layers need of arrays on the CPU: :class:`gpulstm.arrays.Arrays` for NumPy's.

Every buffer that a forward or backward pass fills is made by :func:`empty`, so that tests can poison it
(``with poison():``): an element that a kernel forgot to write then shows as NaN instead of as a plausible number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulstm_kernels.memory import contiguous, empty, zeros

from .. import dispatch
from . import random
from .random import CounterGenerator, check_rng, generator

__all__ = [
    "add",
    "add_bias",
    "assign",
    "check_rng",
    "clear_padding",
    "concatenate",
    "contiguous",
    "copy",
    "copy_into",
    "counter",
    "draw_noise",
    "drop",
    "dropout_mask",
    "empty",
    "from_host",
    "gemm",
    "generator",
    "indices",
    "lengths",
    "numbers",
    "resets",
    "scatter_rows",
    "spread",
    "stack",
    "sum_by_id",
    "sum_features",
    "sum_rows",
    "take",
    "to_array",
    "to_host",
    "zeros",
]


def copy(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy in a buffer of :func:`empty`."""
    result = empty(array.shape, array.dtype)
    np.copyto(result, array)
    return result


def copy_into(target: np.ndarray, value: np.ndarray) -> None:
    """Copy ``value`` into ``target``."""
    target[...] = value


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """``parts`` one after another along their first axis."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def lengths(value: np.ndarray) -> np.ndarray:
    """Checked lengths (B,) as kernels take them."""
    return value.astype(np.int64)


def resets(value: np.ndarray) -> np.ndarray:
    """Checked resets (T, B) as kernels take them."""
    return contiguous(value)


def numbers(value: np.ndarray, dtype: Any) -> np.ndarray:
    """Bools as ones and zeros of ``dtype``."""
    return value.astype(dtype)


def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """See :func:`gpulstm.arrays.Arrays.stack`."""
    if len(parts) == 1:
        return parts[0][None]
    stacked = empty((len(parts), *np.broadcast_shapes(*(part.shape for part in parts))), parts[0].dtype)
    for target, part in zip(stacked, parts, strict=True):
        spread(target, part)
    return stacked


def spread(target: np.ndarray, part: np.ndarray) -> None:
    """See :func:`gpulstm.arrays.Arrays.spread`."""
    target[...] = part


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a + b``."""
    return np.add(a, b, out=empty(a.shape, a.dtype))


def sum_features(values: np.ndarray) -> np.ndarray:
    """(T, B, 1), the sums over the last axis of (T, B, W)."""
    return values.sum(axis=2, keepdims=True)


def clear_padding(array: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """``array`` (T, B, features) with zeros past the ``lengths`` called ``valid``: padding may hold NaN."""
    inside = np.arange(len(array))[:, None] < valid
    return np.where(inside[:, :, None], array, array.dtype.type(0))


def gemm(a: np.ndarray, b: np.ndarray, transpose_a: bool = False, transpose_b: bool = False) -> np.ndarray:
    """``a @ b`` of two matrices of one dtype, at most one of them read transposed: (M, K) by (K, N) gives (M, N).

    Runs on the threads of the recurrent kernels, where those run: a BLAS would bring a pool of its own, and two pools
    spin against each other.
    """
    if not dispatch.runs("numba_cpu"):
        return (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    from gpulstm_kernels.cpu import gemm as products

    a, b = contiguous(a), contiguous(b)
    if transpose_a:
        m, n = a.shape[1], b.shape[1]
        (product,), _ = products.outer(a.reshape(-1), (0, m), a.shape[0], [products.Rows(b.reshape(-1), (0, n), n)], m)
        return product
    c = zeros((a.shape[0], b.shape[0] if transpose_b else b.shape[1]), a.dtype)
    products.multiply(c, a, b, transposed=transpose_b)
    return c


def add_bias(y: np.ndarray, bias: np.ndarray) -> None:
    """Add ``bias`` (N,) to every row of ``y`` (M, N) in place."""
    y += bias


def sum_rows(values: np.ndarray) -> np.ndarray:
    """The sum of the rows of (M, N): by a product, which is faster than sum(0)."""
    return gemm(np.ones((1, len(values)), values.dtype), values)[0]


def take(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """``rows[ids]``: (M, N) by ids (...) gives (..., N)."""
    return rows.take(ids, axis=0)


def scatter_rows(values: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Zeros (count, N) but for row ``ids[n]``, which is ``values[n]``; each id once at most."""
    rows = np.zeros((count, values.shape[1]), values.dtype)
    rows[ids] = values
    return rows


def sum_by_id(values: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """(count, N): row r is the sum of the rows of ``values`` (M, N) whose id is r, in their order."""
    features = values.shape[1]
    sums = np.zeros((count, features), values.dtype)
    # one scatter over flat elements: add.at is fast in one dimension only
    elements = ids.reshape(-1, 1) * features + np.arange(features)
    np.add.at(sums.reshape(-1), elements.reshape(-1), values.reshape(-1))
    return sums


def indices(value: np.ndarray) -> np.ndarray:
    """Checked indices of any integer dtype as NumPy takes them."""
    return value.astype(np.intp, copy=False)


def dropout_mask(rng: np.random.Generator, shape: tuple[int, ...], p: float) -> np.ndarray:
    """A boolean mask drawn from ``rng`` that is false with probability ``p``."""
    return rng.random(shape, dtype=np.float32) >= p


def drop(value: np.ndarray, mask: np.ndarray, p: float) -> np.ndarray:
    """``value`` with zeros where ``mask`` is false, divided by 1 - ``p`` elsewhere."""
    result = np.multiply(value, mask, out=empty(value.shape, value.dtype))
    result *= 1 / (1 - p)
    return result


def counter(rng: Any) -> CounterGenerator:
    """See :func:`gpulstm.arrays.Arrays.counter`."""
    return CounterGenerator(random.seed_words(generator(rng)))


def draw_noise(
    target: np.ndarray, source: CounterGenerator, stream: int, below: int, hit: float, miss: float, once: bool
) -> None:
    """See :func:`gpulstm.arrays.Arrays.draw_noise`: on the threads of the recurrent kernels where those compute."""
    draw = random.noise
    if dispatch.select(None, "cpu")[0].name == "numba_cpu":
        from gpulstm_kernels.cpu import philox

        draw = philox.draw
    draw(target[:1] if once else target, source.words, stream, below, hit, miss)
    if once:
        target[1:] = target[0]


def from_host(array: np.ndarray) -> np.ndarray:
    """A NumPy array as one of this library: in a buffer of :func:`empty`, where kernels read it fastest."""
    return copy(array)


def to_host(array: np.ndarray) -> np.ndarray:
    """An array of this library as NumPy's: itself."""
    return array


def assign(target: np.ndarray, value: np.ndarray) -> None:
    """Copy the NumPy array ``value`` into ``target``."""
    target[...] = value


def to_array(value: Any, name: str) -> np.ndarray:
    """``value`` as a NumPy array without a copy: an array already, or anything that speaks DLPack on the CPU.

    Raises:
        TypeError: ``value`` is neither, or masked; lists are not taken, since their dtype would be a guess.
    """
    if isinstance(value, np.ndarray):
        if type(value) is np.ndarray:
            return value
        # A plain array does not ask for numpy.ma, which takes a while to import.
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected an array, got a masked one, whose mask would be lost; fill it first")
        return np.asarray(value)  # a matrix, say, would keep two dimensions whatever is done to it
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: a {type(value).__name__} that DLPack cannot hand over ({error}); expected an array on the CPU"
            ) from error
    raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
