"""How the Numba kernels are made: one factory a C++ template, called with the template's arguments.

A factory carries the name of the kernel that it is a twin of, and returns a Python function and the types of its
arguments, which are the C++ kernel's in the same order. Arrays are plain pointers on a device, indexed as one axis,
and NumPy arrays in Numba's simulator; one that is absent is a null pointer, or None there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.cuda import config, types

from ...cells import Cell

INT = types.int32
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


ELEMENTS = {
    "float": Element(types.float32, types.float32),
    "double": Element(types.float64, types.float64),
    "__half": Element(types.float16, types.float32),
    "__nv_bfloat16": Element(_bfloat16(), types.float32),
}
_VALUES: dict[str, Any] = {"true": True, "false": False}


def template(expression: str, cell: Cell | None) -> tuple[str, tuple[Any, ...]]:
    """The name and the template arguments of a C++ name expression such as ``step_forward<float, LstmCell, true, 4>``.

    An element type becomes an :class:`Element`; any name that is none of those and no number is ``cell``'s.
    """
    match = re.fullmatch(r"(\w+)(?:<(.*)>)?", expression)
    if match is None:
        raise ValueError(f"kernel: expected name<arguments>, got {expression!r}")
    arguments: list[Any] = []
    for word in re.split(r"\s*,\s*", match[2]) if match[2] else []:
        if word in ELEMENTS:
            arguments.append(ELEMENTS[word])
        elif re.fullmatch(r"-?\d+", word):
            arguments.append(int(word))
        else:
            arguments.append(_VALUES.get(word, cell))
    return match[1], tuple(arguments)


def constant(typ: Any) -> Callable[[float], Any]:
    """Literals of ``typ``: a bare 1.0 is float64 to Numba, and would draw all float32 arithmetic after it along."""
    return np.float64 if typ == types.float64 else np.float32
