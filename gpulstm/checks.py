"""Arguments checked one way everywhere: errors name the argument, the value given and what was expected."""

from __future__ import annotations

import importlib
import operator
from types import EllipsisType
from typing import Any

import numpy as np

from . import arrays

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALVES = ("float16", "bfloat16")

# One entry a dimension: an int is a size, a str names a size that may be anything, a leading ... stands for
# any number of dimensions.
Shape = tuple[int | str | EllipsisType, ...]


def integer(value: Any, name: str, minimum: int = 1) -> int:
    """``value`` as an int of at least ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer >= {minimum}, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {value!r}")
    return number


def real(value: Any, name: str, interval: str) -> float:
    """``value`` as a float inside ``interval``, written as in a book: ``"[0, 1)"``, ``"(0, inf)"``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number in {interval}, got {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):  # NaN lands here too
        raise ValueError(f"{name}: expected a number in {interval}, got {value!r}")
    try:
        return float(value)
    except OverflowError as error:  # an int beyond the floats
        raise ValueError(f"{name}: expected a number in {interval}, got one beyond the largest float") from error


def dtype(value: Any, device: str = "cpu") -> np.dtype:
    """The dtype of a layer's parameters: on a GPU the half types too."""
    if value == "bfloat16":
        value = importlib.import_module("ml_dtypes").bfloat16
    try:
        result = np.dtype(value)
    except TypeError:
        result = np.dtype(object)
    known = result in FLOATS or (device == "cuda" and result.name in HALVES)
    if value is None or not known:  # NumPy reads None as float64
        expected = "float32 or float64" if device == "cpu" else "float32, float64, float16 or bfloat16"
        hint = "; the half types need device='cuda'" if device == "cpu" and result.name in HALVES else ""
        raise ValueError(f"dtype: expected {expected}, got {value!r}{hint}")
    return result


def is_float(dtype: np.dtype) -> bool:
    """Whether ``dtype`` is floating point, bfloat16 included (whose kind NumPy does not know)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def array(value: Any, name: str, dtype: np.dtype | None, *shapes: Shape, device: str = "cpu") -> np.ndarray:
    """``value`` as a non-empty array of ``dtype`` (None: float32 or float64) on ``device`` of one of ``shapes``."""
    result = arrays.library(device).to_array(value, name)
    half = device == "cuda" and dtype is None and result.dtype.name in HALVES
    if not half and result.dtype not in (FLOATS if dtype is None else (dtype,)):
        raise TypeError(f"{name}: expected dtype {dtype or 'float32 or float64'}, got {result.dtype}")
    if not any(_has_shape(result, shape) for shape in shapes):
        expected = " or ".join(_print(shape) for shape in shapes)
        raise ValueError(f"{name}: expected shape {expected}, got {result.shape}")
    if result.size == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {result.shape}")
    return result


def indices(value: Any, name: str, size: int, of: str, device: str = "cpu") -> Any:
    """``value`` as a non-empty array of indices in ``0 .. size-1``, as ``device`` takes them; ``of`` is for messages.

    An array on a GPU must be int32 and its values are not looked at, since that would mean waiting for the device.
    """
    if device == "cuda" and arrays.device_of(value) == "cuda":
        if value.dtype != np.int32 or value.size == 0:
            raise TypeError(f"{name}: expected int32 on a GPU, got {value.dtype} of shape {value.shape}")
        return arrays.library(device).contiguous(value)
    result = integers(value, name)
    if result.size == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {result.shape}")
    for extreme in (int(result.min()), int(result.max())):
        if not 0 <= extreme < size:
            raise ValueError(f"{name}: expected 0 <= id < {size}, {of}, got {extreme}")
    return arrays.library(device).indices(result)


def integers(value: Any, name: str) -> np.ndarray:
    """``value`` as an array of some integer dtype."""
    result = arrays.to_numpy(value, name)
    if result.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an integer dtype, got {result.dtype}")
    return result


def lengths(value: Any, batch: int, steps: int) -> np.ndarray:
    """``value`` (an array or a list) as intp (B,), each length in ``1 .. steps``."""
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"lengths: expected one number a sequence, got {value!r}") from error
    result = integers(value, "lengths")
    if result.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},), one a sequence, got {result.shape}")
    for extreme in (int(result.min()), int(result.max())):
        if not 1 <= extreme <= steps:
            raise ValueError(f"lengths: expected 1 <= length <= {steps}, the number of steps, got {extreme}")
    return result.astype(np.intp, copy=False)


def _has_shape(value: np.ndarray, shape: Shape) -> bool:
    sizes = shape[1:] if shape and shape[0] is ... else shape
    if value.ndim < len(sizes) or (sizes is shape and value.ndim > len(sizes)):
        return False
    actual = value.shape[value.ndim - len(sizes) :]
    return all(isinstance(size, str) or size == n for size, n in zip(sizes, actual, strict=True))


def _print(shape: Shape) -> str:
    inner = ", ".join("..." if size is ... else str(size) for size in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"
