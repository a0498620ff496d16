"""What layers need of arrays on a CUDA device: the names of :mod:`gpulstm.arrays`, for CuPy arrays.

Everything is enqueued on the caller's current stream; nothing waits for it but :func:`to_host`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulstm_kernels.cuda import layer
from gpulstm_kernels.cuda.device.precision import tf32_allowed
from gpulstm_kernels.cuda.device.runtime import Kernel, current
from gpulstm_kernels.cuda.device.source import type_name

from .. import arrays

__all__ = [
    "Generator",
    "add_bias",
    "assign",
    "clear_padding",
    "clip_by_norm",
    "concatenate",
    "contiguous",
    "copy",
    "cross_entropy",
    "drop",
    "empty",
    "from_host",
    "gemm",
    "generator",
    "indices",
    "kept",
    "lengths",
    "mse",
    "place",
    "placed",
    "seed_words",
    "sum_by_id",
    "sum_rows",
    "take",
    "to_array",
    "to_host",
    "update",
    "zeros",
]

_THREADS = 256
_WARP = 32
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
    """``array`` itself where kernels can take it as it lies: C-contiguous and aligned; else a copy."""
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


def clear_padding(array: Any, valid: Any) -> Any:
    """``array`` (T, B, features) with zeros past the ``lengths`` called ``valid``."""
    result, source = empty(array.shape, array.dtype), contiguous(array)
    _launch(f"clear_padding<{type_name(array.dtype)}>", array.size, (source, result, valid, *array.shape))
    return result


class Generator:
    """Random numbers by counter: two words of seed (uint32) on the device, and how many masks were drawn with them.

    New words bring new masks to the same launches, so a CUDA graph draws others at each replay.
    """

    def __init__(self, words: Any) -> None:
        self.words = words
        self.draws = 0


def generator(rng: Any, name: str = "rng") -> Generator:
    """As :func:`gpulstm.arrays.generator`, on the device: seeded by the next words of the generator there."""
    if isinstance(rng, Generator):
        return rng
    return Generator(current().to_device(seed_words(arrays.generator(rng, name))))


def check_rng(rng: Any, name: str = "rng") -> None:
    """As :func:`gpulstm.arrays.check_rng`; a generator on the device is one too."""
    if not isinstance(rng, Generator):
        arrays.check_rng(rng, name)


def seed_words(rng: np.random.Generator) -> np.ndarray:
    """The seed of a :class:`Generator`."""
    return rng.integers(0, 2**32, 2, np.uint32)


def kept(rng: Any, shape: tuple[int, ...], p: float) -> Any:
    """Which elements dropout with probability ``p`` keeps: ones and zeros, drawn from :func:`generator` of ``rng``."""
    drawn = generator(rng)
    count = math.prod(shape)
    result = empty(shape, np.uint8)
    _launch("draw_kept", -(-count // 4), (result, drawn.words, drawn.draws, float(p), count))
    drawn.draws += 1
    return result


def drop(value: Any, keep: Any, p: float) -> Any:
    """``value`` with zeros where ``keep`` is zero, divided by 1 - ``p`` elsewhere."""
    result, source = empty(value.shape, value.dtype), contiguous(value)
    _launch(f"drop<{type_name(value.dtype)}>", value.size, (source, keep, result, 1 / (1 - p), value.size))
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


def place(target: Any, value: Any) -> None:
    """Copy the device's array ``value`` into ``target``."""
    current().copy(target, value)


def to_array(value: Any, name: str) -> Any:
    """``value`` as an array on the current device without a copy: one already, or DLPack from the same device.

    Raises:
        TypeError: ``value`` is on the CPU, or no array.
    """
    return current().as_array(value, name)


def gemm(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """``a @ b`` of two matrices of one dtype: see :func:`gpulstm.arrays.gemm`."""
    a, b = contiguous(a), contiguous(b)
    shape = a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]
    result = empty(shape, a.dtype)
    tf32 = a.dtype == np.float32 and tf32_allowed()
    current().gemm(a, b, result, transpose_a=transpose_a, transpose_b=transpose_b, tf32=tf32)
    return result


def add_bias(y: Any, bias: Any) -> None:
    """See :func:`gpulstm.arrays.add_bias`."""
    _network(f"add_bias<{type_name(y.dtype)}>", y.size, (y, contiguous(bias), *y.shape))


def sum_rows(values: Any) -> Any:
    """See :func:`gpulstm.arrays.sum_rows`."""
    result = empty(values.shape[1:], values.dtype)
    layer.sum_rows(current(), values, result)
    return result


def take(rows: Any, ids: Any) -> Any:
    """See :func:`gpulstm.arrays.take`; an id out of range gives a row of NaN."""
    result = empty((*ids.shape, rows.shape[1]), rows.dtype)
    _network(f"take_rows<{type_name(rows.dtype)}>", result.size, (contiguous(rows), ids, result, ids.size, *rows.shape))
    return result


def placed(values: Any, ids: Any, count: int) -> Any:
    """See :func:`gpulstm.arrays.placed`."""
    rows = zeros((count, values.shape[1]), values.dtype)
    _network(f"place_rows<{type_name(values.dtype)}>", values.size, (values, ids, rows, *values.shape))
    return rows


def sum_by_id(values: Any, ids: Any, count: int) -> Any:
    """See :func:`gpulstm.arrays.sum_by_id`."""
    sums = empty((count, values.shape[1]), values.dtype)
    kernel = Kernel("kernels/network", f"sum_by_id<{type_name(values.dtype)}>", None)
    current().launch(kernel, (count, 1, 1), (_THREADS, 1, 1), (values, ids, sums, *values.shape))
    return sums


def cross_entropy(logits: Any, ids: Any, count: int) -> tuple[Any, Any]:
    """See :func:`gpulstm.arrays.cross_entropy`; the loss is a 0-d float64 array on the device."""
    rows, classes = logits.shape
    dlogits = empty(logits.shape, logits.dtype)
    losses = empty((rows,), np.float64 if logits.dtype == np.float64 else np.float32)
    arguments = (logits, ids, dlogits, losses, count, rows, classes)
    _network(f"cross_entropy<{type_name(logits.dtype)}>", rows * _WARP, arguments)
    return _total([losses], over=count), dlogits


def mse(prediction: Any, target: Any) -> tuple[Any, Any]:
    """See :func:`gpulstm.arrays.mse`; the loss is a 0-d float64 array on the device."""
    name, count = type_name(prediction.dtype), prediction.size
    difference = empty(prediction.shape, prediction.dtype)
    _network(f"subtract<{name}>", count, (contiguous(prediction), contiguous(target), difference, count))
    loss = _total([difference], squares=True, over=count)
    _network(f"mse_gradient<{name}>", count, (difference, count))
    return loss, difference


def clip_by_norm(grads: Sequence[Any], most: float) -> Any:
    """Scale ``grads`` in place to a joint norm of at most ``most``; the norm before, a 0-d float64 array."""
    norm = _total(grads, squares=True, root=True)
    for gradient in grads:
        _network(f"clip<{type_name(gradient.dtype)}>", gradient.size, (gradient, norm, float(most), gradient.size))
    return norm


def update(
    rule: str, param: Any, gradient: Any, state: Sequence[Any], rates: Any, finite: Sequence[Any], slots: bool
) -> None:
    """One optimizer's update of one parameter in place: ``rule`` and ``rates`` are as ``optimizer.cu`` says.

    Nothing changes where one of the (up to two) numbers in ``finite`` is not.
    """
    first, second = (*state, None, None)[:2]
    checked = (*finite, None, None)[:2]
    kernel = Kernel("kernels/optimizer", f"update<{type_name(param.dtype)}, {rule}>", None)
    arguments = (param, gradient, first, second, rates, *checked, int(slots), param.size)
    current().launch(kernel, (-(-param.size // _THREADS), 1, 1), (_THREADS, 1, 1), arguments)


def indices(value: np.ndarray) -> Any:
    """Checked indices as kernels take them."""
    return current().to_device(value.astype(np.int32))


def _total(parts: Sequence[Any], *, squares: bool = False, root: bool = False, over: int = 1) -> Any:
    """The sum of all elements, or of their squares, over ``over``, or the root of that: a 0-d float64 array."""
    blocks = [min(_PARTIAL, -(-part.size // _THREADS)) for part in parts]
    partial, result = empty((sum(blocks),), np.float64), empty((), np.float64)
    first = 0
    for part, count in zip(parts, blocks, strict=True):
        kernel = Kernel(
            "kernels/network", f"partial_sums<{type_name(part.dtype)}, {'true' if squares else 'false'}>", None
        )
        current().launch(kernel, (count, 1, 1), (_THREADS, 1, 1), (part, partial, first, part.size))
        first += count
    kernel = Kernel("kernels/network", f"total<{'true' if root else 'false'}>", None)
    current().launch(kernel, (1, 1, 1), (_THREADS, 1, 1), (partial, result, over, first))
    return result


def _network(expression: str, threads: int, arguments: tuple[Any, ...]) -> None:
    _launch(expression, threads, arguments, "kernels/network")


def _launch(expression: str, threads: int, arguments: tuple[Any, ...], file: str = "kernels/arrays") -> None:
    kernel = Kernel(file, expression, None)
    current().launch(kernel, (-(-threads // _THREADS), 1, 1), (_THREADS, 1, 1), arguments)
