"""What layers need of arrays on a CUDA device: the names of :mod:`gpulstm.arrays`, for CuPy arrays.

Everything is enqueued on the caller's current stream; nothing waits for it but :func:`to_host`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulstm_kernels.cuda.compile import type_name
from gpulstm_kernels.cuda.runtime import Kernel, current

__all__ = [
    "assign",
    "clear_padding",
    "concatenate",
    "contiguous",
    "copy",
    "drop",
    "empty",
    "from_host",
    "kept",
    "lengths",
    "to_array",
    "to_host",
    "zeros",
]

_THREADS = 256
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


def kept(rng: np.random.Generator, shape: tuple[int, ...], p: float) -> Any:
    """Which elements dropout with probability ``p`` keeps: ones and zeros, drawn on the device from ``rng``'s seed."""
    seed = current().to_device(rng.integers(0, 2**32, 2, np.uint32))
    count = math.prod(shape)
    result = empty(shape, np.uint8)
    _launch("draw_kept", -(-count // 4), (result, seed, float(p), count))
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


def to_array(value: Any, name: str) -> Any:
    """``value`` as an array on the current device without a copy: one already, or DLPack from the same device.

    Raises:
        TypeError: ``value`` is on the CPU, or no array.
    """
    return current().as_array(value, name)


def _launch(expression: str, threads: int, arguments: tuple[Any, ...]) -> None:
    kernel = Kernel("arrays", expression, None)
    current().launch(kernel, (-(-threads // _THREADS), 1, 1), (_THREADS, 1, 1), arguments)
