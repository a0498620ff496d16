"""How the Numba kernels are made: one factory a C++ template, called with the template's arguments.

A factory has the name of the kernel that it is a twin of, and returns a Python function and the types of its
arguments, which are the C++ kernel's in the same order. Arrays are plain pointers on a device, indexed as one axis,
and NumPy arrays in Numba's simulator; one that is absent is a null pointer, or None there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.cuda import config, types

INT, BYTE = types.int32, types.uint8
POINTER = types.CPointer


class Element(NamedTuple):
    """An element type: what arrays hold, and what sums and states of it are held in, as Numba knows both."""

    stored: Any
    summed: Any


class Twin(NamedTuple):
    """A kernel's Python function and the Numba types of its arguments."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]


def _bfloat16() -> Any:
    if config.ENABLE_CUDASIM:  # the simulator knows the type but cannot round to it
        import ml_dtypes

        return ml_dtypes.bfloat16
    return types.bfloat16


_ELEMENTS = {
    "float32": Element(types.float32, types.float32),
    "float64": Element(types.float64, types.float64),
    "float16": Element(types.float16, types.float32),
    "bfloat16": Element(_bfloat16(), types.float32),
}


def element(dtype: np.dtype) -> Element:
    """The element type that a template's argument ``dtype`` stands for."""
    return _ELEMENTS[dtype.name]


def constant(typ: Any) -> Callable[[float], Any]:
    """Literals of ``typ``: a bare 1.0 is float64 to Numba, and would draw all float32 arithmetic after it along."""
    return np.float64 if typ == types.float64 else np.float32
