"""Arguments checked one way everywhere: errors name the argument, the value given and what was expected."""

from __future__ import annotations

import functools
import importlib
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

from . import arrays
from .memory_limit import memory_limit

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALVES = ("float16", "bfloat16")

# One entry a dimension: an int is a size, a str names a size that may be anything, a leading ... stands for
# any number of dimensions.
Shape = tuple[int | str | EllipsisType, ...]


def shown(value: Any) -> str:
    """``value`` as a message prints it: in one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"{type(value).__name__} of more digits than Python prints"
    return text if len(text) <= 100 else f"{text[:97]}..."


def integer(value: Any, name: str, minimum: int = 1) -> int:
    """``value`` as an int of at least ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer >= {minimum}, got {shown(value)}")
    if number < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {shown(value)}")
    return number


def real(value: Any, name: str, interval: str) -> float:
    """``value`` as a float inside ``interval``, written as in a book: ``"[0, 1)"``, ``"(0, inf)"``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number in {interval}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer above every float
        raise ValueError(f"{name}: expected a number in {interval}, got {shown(value)}") from None
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= number if interval[0] == "[" else low < number
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):  # NaN lands here too
        raise ValueError(f"{name}: expected a number in {interval}, got {shown(value)}")
    return number


def flag(value: Any, name: str) -> bool:
    """``value`` as a bool; what is merely true or false, such as 1 or ``"no"``, is refused."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def choice(value: Any, name: str, known: Collection[str]) -> str:
    """``value``, one of the strings ``known``."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {shown(value)}")
    return value


def text(value: Any, name: str) -> str:
    """``value``, a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {shown(value)}")
    return value


def function(value: Any, name: str) -> Any:
    """``value``, which can be called, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected None or a function, got {shown(value)}")
    return value


def texts(value: Any, name: str) -> list[str]:
    """``value``, several strings: one alone is refused, since it would be taken letter by letter."""
    if isinstance(value, (str, bytes, np.ndarray)) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected several strings in a tuple or list, got {shown(value)}")
    return [text(part, name) for part in value]


def named(value: Any, name: str, of: str = "arrays") -> Mapping[str, Any]:
    """``value``, a dict whose keys are strings."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a dict of {of}, got {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected strings as keys, got {shown(key)}")
    return value


def path(value: Any, name: str = "path") -> Path:
    """``value`` as a path; ``""`` is refused, since it would mean the current folder."""
    given = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(given, str):
        raise TypeError(f"{name}: expected a path, got {type(value).__name__}")
    if not given or "\0" in given:
        raise ValueError(f"{name}: expected a path, got {given!r}")
    return Path(given)


def fits(size: int, name: str, got: Any) -> None:
    """Refuse sizes whose arrays, of ``size`` bytes together, this machine's memory cannot hold; none is made."""
    try:
        if size > _memory():
            raise MemoryError
        np.empty(size, np.uint8)  # a limit of the process, or what a system such as Windows has left: not touched
    except MemoryError:
        taken = f"{size / 2**30:,.1f} GiB" if size < 2**80 else "more than 2**80 bytes"
        raise ValueError(
            f"{name}: expected sizes whose arrays fit into memory, got {shown(got)}, which take {taken}"
        ) from None


@functools.cache
def _memory() -> int:
    """Bytes of memory that this process could have; where the system does not tell, of an address space."""
    return memory_limit() or 2**47


def dtype(value: Any, device: str = "cpu") -> np.dtype:
    """The dtype of a layer's parameters: on a GPU the half types too."""
    half = isinstance(value, str) and value in HALVES
    if half and device == "cuda":
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if value == "bfloat16" else value)
    try:
        result = np.dtype(object if half or value is None else value)  # NumPy reads None as float64
    except (TypeError, ValueError, SyntaxError):  # of a list of fields, of text that NumPy parses
        result = np.dtype(object)
    half = half or result.name in HALVES
    if not (result in FLOATS or (half and device == "cuda")):
        expected = "float32 or float64" if device == "cpu" else "float32, float64, float16 or bfloat16"
        hint = "; the half types need device='cuda'" if half else ""
        raise ValueError(f"dtype: expected {expected}, got {shown(value)}{hint}")
    return result


def is_float(dtype: np.dtype) -> bool:
    """Whether ``dtype`` is floating point, bfloat16 included (whose kind NumPy does not know)."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16")  # a name takes long to make


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


def lengths(
    value: Any, batch: int, steps: int, least: int = 0, name: str = "lengths", of: str = "the number of steps"
) -> np.ndarray:
    """``value`` (an array or a list) as intp (B,), each length in ``least .. steps``; ``of`` is what ``steps`` are."""
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name}: expected one number a sequence, got {value!r}") from error
    result = integers(value, name)
    if result.shape != (batch,):
        raise ValueError(f"{name}: expected shape ({batch},), one a sequence, got {result.shape}")
    for extreme in (int(result.min()), int(result.max())):
        if not least <= extreme <= steps:
            raise ValueError(f"{name}: expected {least} <= length <= {steps}, {of}, got {extreme}")
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
