"""What layers need of arrays on a CUDA device: :class:`gpulstm.arrays.Arrays` for those of the runtime.

Everything is enqueued on the caller's current stream; nothing waits for it but :func:`to_host`. Losses and optimizers
launch kernels of their own by :func:`launch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulstm_kernels.cuda import layer
from gpulstm_kernels.cuda.device.kernel import Argument, Kernel
from gpulstm_kernels.cuda.device.precision import tf32_allowed
from gpulstm_kernels.cuda.device.process import current

from . import random
from .random import CounterGenerator

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
    "launch",
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
    "total",
    "zeros",
]

_ARRAYS, _NETWORK = "kernels/arrays", "kernels/network"  # files of kernels
_THREADS = 256
_PARTIAL = 64  # blocks that add up an array, at most
_ALIGNMENT = 32  # bytes: four float64, the widest access of a kernel


def empty(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised C-contiguous array."""
    return current().empty(shape if isinstance(shape, tuple) else (shape,), dtype)


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """As :func:`empty`, full of zeros."""
    return current().zeros(shape if isinstance(shape, tuple) else (shape,), dtype)


def copy(array: Any) -> Any:
    """A C-contiguous copy."""
    result = empty(array.shape, array.dtype)
    current().copy(result, array)
    return result


def contiguous(array: Any) -> Any:
    """``array`` itself where kernels can read it in place: C-contiguous and aligned; else a copy."""
    if array.flags.c_contiguous and current().pointer(array) % _ALIGNMENT == 0:
        return array
    return copy(array)


def concatenate(parts: Sequence[Any]) -> Any:
    """``parts`` one after another along their first axis."""
    if len(parts) == 1:
        return parts[0]
    result = empty((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    begin = 0
    for part in parts:
        current().copy(result[begin : begin + len(part)], part)
        begin += len(part)
    return result


def lengths(value: np.ndarray) -> Any:
    """Checked lengths (B,) as kernels take them."""
    return current().to_device(value.astype(np.int32))


def resets(value: np.ndarray) -> Any:
    """Checked resets (T, B) as kernels take them."""
    return current().to_device(np.ascontiguousarray(value).view(np.uint8))


def numbers(value: Any, dtype: Any) -> Any:
    """Bools as ones and zeros of ``dtype``."""
    result = empty(value.shape, dtype)
    launch(_ARRAYS, "from_bools", (result.dtype,), result.size, (contiguous(value), result, result.size))
    return result


def stack(parts: Sequence[Any]) -> Any:
    """See :func:`gpulstm.arrays.Arrays.stack`."""
    if len(parts) == 1:
        return parts[0][None]
    width = max(part.shape[-1] for part in parts)
    stacked = empty((len(parts), *parts[0].shape[:-1], width), parts[0].dtype)
    for target, part in zip(stacked, parts, strict=True):
        spread(target, part)
    return stacked


def spread(target: Any, part: Any) -> None:
    """See :func:`gpulstm.arrays.Arrays.spread`."""
    if part.shape == target.shape:
        current().copy(target, part)
    else:
        launch(_ARRAYS, "repeat", (part.dtype,), target.size, (contiguous(part), target, target.size, target.shape[-1]))


def add(a: Any, b: Any) -> Any:
    """``a + b``, of one shape and dtype."""
    result = empty(a.shape, a.dtype)
    launch(_ARRAYS, "add", (a.dtype,), result.size, (contiguous(a), contiguous(b), result, result.size))
    return result


def sum_features(values: Any) -> Any:
    """See :func:`gpulstm.arrays.Arrays.sum_features`."""
    steps, batch, features = values.shape
    result = empty((steps, batch, 1), values.dtype)
    layer.sum_columns(current(), contiguous(values).reshape(-1, features), result.reshape(-1, 1))
    return result


def clear_padding(array: Any, valid: Any) -> Any:
    """``array`` (T, B, features) with zeros past the ``lengths`` called ``valid``."""
    result, source = empty(array.shape, array.dtype), contiguous(array)
    launch(_ARRAYS, "clear_padding", (array.dtype,), array.size, (source, result, valid, *array.shape))
    return result


def generator(rng: Any, name: str = "rng") -> CounterGenerator:
    """``rng`` itself, or a generator on the device that the next words of a host's generator or of a seed begin."""
    if isinstance(rng, CounterGenerator):
        return rng
    return CounterGenerator(from_host(random.seed_words(random.generator(rng, name))))


def check_rng(rng: Any, name: str = "rng") -> None:
    """As :func:`gpulstm.arrays.random.check_rng`; a generator on the device is one too."""
    if not isinstance(rng, CounterGenerator):
        random.check_rng(rng, name)


def dropout_mask(rng: Any, shape: tuple[int, ...], p: float) -> Any:
    """A mask of ones and zeros (uint8) drawn from :func:`generator` of ``rng``: 0 with probability ``p``."""
    drawn = generator(rng)
    count = math.prod(shape)
    result = empty(shape, np.uint8)
    launch(_ARRAYS, "draw_mask", (), -(-count // 4), (result, drawn.words, drawn.draws, float(p), count))
    drawn.draws += 1
    return result


def counter(rng: Any) -> CounterGenerator:
    """See :func:`gpulstm.arrays.Arrays.counter`."""
    return generator(rng)


def draw_noise(
    target: Any, source: CounterGenerator, stream: int, below: int, hit: float, miss: float, once: bool
) -> None:
    """See :func:`gpulstm.arrays.Arrays.draw_noise`."""
    steps, batch, units = target.shape
    own = (target, source.words, stream, below, float(hit), float(miss), int(once), steps, batch, units)
    launch(_ARRAYS, "draw_noise", (target.dtype,), steps * batch * -(-units // 4), own)


def drop(value: Any, mask: Any, p: float) -> Any:
    """``value`` with zeros where ``mask`` is 0, divided by 1 - ``p`` elsewhere."""
    result, source = empty(value.shape, value.dtype), contiguous(value)
    launch(_ARRAYS, "drop", (value.dtype,), value.size, (source, mask, result, 1 / (1 - p), value.size))
    return result


def from_host(array: np.ndarray) -> Any:
    """A copy of a NumPy array on the current device."""
    return current().to_device(array)


def to_host(array: Any) -> np.ndarray:
    """A copy as a NumPy array; waits for the device."""
    return current().to_host(array)


def assign(target: Any, value: np.ndarray) -> None:
    """Copy the NumPy array ``value`` into ``target``."""
    current().copy(target, from_host(value))


def copy_into(target: Any, value: Any) -> None:
    """Copy the device's array ``value`` into ``target``."""
    current().copy(target, value)


def to_array(value: Any, name: str) -> Any:
    """``value`` as an array on the current device without a copy: one already, or DLPack from the same device.

    Raises:
        TypeError: ``value`` is on the CPU, or no array.
    """
    return current().as_array(value, name)


def gemm(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """``a @ b`` of two matrices of one dtype: see :func:`gpulstm.arrays.Arrays.gemm`."""
    a, b = contiguous(a), contiguous(b)
    shape = a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]
    result = empty(shape, a.dtype)
    tf32 = a.dtype == np.float32 and tf32_allowed()
    current().gemm(a, b, result, transpose_a=transpose_a, transpose_b=transpose_b, tf32=tf32)
    return result


def add_bias(y: Any, bias: Any) -> None:
    """See :func:`gpulstm.arrays.Arrays.add_bias`."""
    launch(_NETWORK, "add_bias", (y.dtype,), y.size, (y, contiguous(bias), *y.shape))


def sum_rows(values: Any) -> Any:
    """See :func:`gpulstm.arrays.Arrays.sum_rows`."""
    result = empty(values.shape[1:], values.dtype)
    layer.sum_rows(current(), values, result)
    return result


def take(rows: Any, ids: Any) -> Any:
    """See :func:`gpulstm.arrays.Arrays.take`; an id out of range gives a row of NaN."""
    result = empty((*ids.shape, rows.shape[1]), rows.dtype)
    arguments = (contiguous(rows), ids, result, ids.size, *rows.shape)
    launch(_NETWORK, "take_rows", (rows.dtype,), result.size, arguments)
    return result


def scatter_rows(values: Any, ids: Any, count: int) -> Any:
    """See :func:`gpulstm.arrays.Arrays.scatter_rows`."""
    rows = zeros((count, values.shape[1]), values.dtype)
    launch(_NETWORK, "scatter_rows", (values.dtype,), values.size, (values, ids, rows, *values.shape))
    return rows


def sum_by_id(values: Any, ids: Any, count: int) -> Any:
    """See :func:`gpulstm.arrays.Arrays.sum_by_id`."""
    sums = empty((count, values.shape[1]), values.dtype)
    kernel = Kernel(_NETWORK, "sum_by_id", (values.dtype,))
    current().launch(kernel, (count, 1, 1), (_THREADS, 1, 1), (values, ids, sums, *values.shape))
    return sums


def indices(value: np.ndarray) -> Any:
    """Checked indices as kernels take them."""
    return current().to_device(value.astype(np.int32))


def total(parts: Sequence[Any], *, squares: bool = False, root: bool = False, over: int = 1) -> Any:
    """The sum of all elements, or of their squares, over ``over``, or the root of that: a 0-d float64 array."""
    blocks = [min(_PARTIAL, -(-part.size // _THREADS)) for part in parts]
    partial, result = empty((sum(blocks),), np.float64), empty((), np.float64)
    first = 0
    for part, count in zip(parts, blocks, strict=True):
        kernel = Kernel(_NETWORK, "partial_sums", (part.dtype, squares))
        current().launch(kernel, (count, 1, 1), (_THREADS, 1, 1), (part, partial, first, part.size))
        first += count
    kernel = Kernel(_NETWORK, "total", (root,))
    current().launch(kernel, (1, 1, 1), (_THREADS, 1, 1), (partial, result, over, first))
    return result


def launch(source: str, name: str, template: tuple[Argument, ...], threads: int, arguments: tuple[Any, ...]) -> None:
    """Enqueue a kernel, named as :class:`gpulstm_kernels.cuda.device.kernel.Kernel` has it."""
    kernel = Kernel(source, name, template)
    current().launch(kernel, (-(-threads // _THREADS), 1, 1), (_THREADS, 1, 1), arguments)
