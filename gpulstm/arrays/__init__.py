"""The bridge between array libraries: what a layer needs of NumPy and, on a GPU, of CuPy.

Every buffer that a forward or backward pass fills is made by :func:`empty`, so that tests can poison it
(``with poison():``): an element that a kernel forgot to write then shows as NaN instead of as a plausible number.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpulstm_kernels.memory import contiguous, empty, poison, zeros

from .. import dispatch

__all__ = [
    "add_bias",
    "assign",
    "check_rng",
    "clear_padding",
    "concatenate",
    "contiguous",
    "copy",
    "cross_entropy",
    "device_of",
    "drop",
    "empty",
    "from_host",
    "gemm",
    "generator",
    "indices",
    "kept",
    "lengths",
    "library",
    "mse",
    "on_host",
    "placed",
    "poison",
    "sum_by_id",
    "sum_rows",
    "take",
    "to_array",
    "to_host",
    "to_numpy",
    "zeros",
]


def device_of(array: Any) -> str:
    """Where an array lies: ``"cuda"`` for one of the GPU's runtime, else ``"cpu"``."""
    runtime = sys.modules.get("gpulstm_kernels.cuda.device.runtime")
    return "cuda" if runtime is not None and runtime.owns(array) else "cpu"


def library(device: str) -> ModuleType:
    """The module that does for arrays on ``device`` what this one does for NumPy's, under the same names."""
    return importlib.import_module("gpulstm.arrays.cuda") if device == "cuda" else sys.modules[__name__]


def copy(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy in a buffer of :func:`empty`."""
    result = empty(array.shape, array.dtype)
    np.copyto(result, array)
    return result


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """``parts`` one after another along their first axis."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def lengths(value: np.ndarray) -> np.ndarray:
    """Checked lengths (B,) as kernels take them."""
    return value.astype(np.int64)


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


def placed(values: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
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


def cross_entropy(logits: np.ndarray, ids: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """The mean over ``count`` rows of log Σ exp(logits) - logits[id], and its gradient; an id of -1 does not count."""
    rows, counted = np.arange(len(ids)), ids >= 0
    dlogits = empty(logits.shape, logits.dtype)  # also the scratch for every step on the way
    with np.errstate(invalid="ignore", over="ignore"):  # of inf - inf the loss tells by being NaN
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=dlogits)
        picked = dlogits[rows, ids]
        np.exp(dlogits, out=dlogits)
        total = gemm(dlogits, np.ones((logits.shape[1], 1), logits.dtype))  # row sums, faster than sum(1)
        losses = np.log(total[:, 0]) - picked
        dlogits *= (1 / count) / total
    dlogits[rows, ids] -= 1 / count
    if count < len(ids):
        losses = losses[counted]
        dlogits[~counted] = 0
    return float(losses.mean(dtype=np.float64)), dlogits


def mse(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of (prediction - target)², and its gradient."""
    difference = np.subtract(prediction, target, out=empty(prediction.shape, prediction.dtype))
    loss = float(np.mean(difference * difference, dtype=np.float64))
    difference *= 2 / difference.size
    return loss, difference


def indices(value: np.ndarray) -> np.ndarray:
    """Checked indices of any integer dtype as NumPy takes them."""
    return value.astype(np.intp, copy=False)


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
        TypeError, ValueError: as :func:`check_rng`; ``name`` is for the message.
    """
    check_rng(rng, name)
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def check_rng(rng: Any, name: str = "rng") -> None:
    """Check what :func:`generator` takes, also where nothing is drawn from it.

    Raises:
        TypeError: ``rng`` is neither a ``numpy.random.Generator`` nor an int nor None.
        ValueError: it is a negative int.
    """
    if rng is None or isinstance(rng, np.random.Generator):
        return
    if not isinstance(rng, (int, np.integer)) or isinstance(rng, bool):
        raise TypeError(f"{name}: expected a numpy.random.Generator, an int seed or None, got {type(rng).__name__}")
    if rng < 0:
        raise ValueError(f"{name}: expected a seed >= 0, got {rng}")


def from_host(array: np.ndarray) -> np.ndarray:
    """A NumPy array as one of this library: in a buffer of :func:`empty`, where kernels read it fastest."""
    return copy(array)


def to_host(array: np.ndarray) -> np.ndarray:
    """An array of this library as NumPy's: itself."""
    return array


def assign(target: np.ndarray, value: np.ndarray) -> None:
    """Copy the NumPy array ``value`` into ``target``."""
    target[...] = value


def on_host(value: Any, name: str) -> np.ndarray:
    """``value`` as a NumPy array: one already, DLPack on the CPU, or a copy of an array of a layer on a GPU."""
    return library("cuda").to_host(value) if device_of(value) == "cuda" else to_numpy(value, name)


def to_array(value: Any, name: str) -> np.ndarray:
    """As :func:`to_numpy`: the name that every library of arrays has for it."""
    return to_numpy(value, name)


def to_numpy(value: Any, name: str) -> np.ndarray:
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
