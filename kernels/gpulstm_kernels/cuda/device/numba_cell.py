"""Cells on a CUDA device: the very functions of :mod:`gpulstm_kernels.cells`, with numbers of the kernel's type.

Their activations are :mod:`gpulstm_kernels.cells.activations`, which Numba is given a version of here. Also what
passes a cell its tuples: one value a gate or state, ``stride`` elements apart in memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

from numba import cuda
from numba.cuda import types
from numba.cuda.extending import overload

from ...cells import Cell, activations
from .numba_kernel import constant


@functools.cache
def forward(cell: Cell, summed: Any) -> Any:
    """``cell``'s forward as a device function over ``summed``."""
    return cuda.jit(device=True)(_with_constants(cell.module.forward, summed))


@functools.cache
def backward(cell: Cell, summed: Any) -> Any:
    """``cell``'s backward as a device function over ``summed``."""
    return cuda.jit(device=True)(_with_constants(cell.module.backward, summed))


def _with_constants(function: Callable[..., Any], summed: Any) -> FunctionType:
    """``function`` with its floats, literal or global, as numbers of type ``summed``."""
    assert isinstance(function, FunctionType)
    of_type = constant(summed)

    def converted(value: Any) -> Any:
        return of_type(value) if type(value) is float else value

    code = function.__code__.replace(co_consts=tuple(map(converted, function.__code__.co_consts)))
    names = {name: converted(value) for name, value in function.__globals__.items()}
    return FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)


def _tanh(x):
    return lambda x: math.tanh(x)


def _sigmoid(x):
    one = constant(x)(1.0)  # exp overflows to infinity where the quotient is 0 anyway
    return lambda x: one / (one + math.exp(-x))


def _of_scalars(name: Callable[..., Any], implementation: Callable[..., Any]) -> None:
    @overload(name)
    def choose(x):
        return implementation(x) if isinstance(x, types.Float) else None


_of_scalars(activations.tanh, _tanh)
_of_scalars(activations.sigmoid, _sigmoid)


@functools.cache
def loader(count: int, typ: Any) -> Any:
    """A device function ``load(array, first, stride)`` -> a tuple of ``count`` values as ``typ``."""
    if count == 0:
        return cuda.jit(device=True)(lambda array, first, stride: ())
    before, last = loader(count - 1, typ), count - 1

    @cuda.jit(device=True)
    def load(array, first, stride):
        return before(array, first, stride) + (typ(array[first + last * stride]),)  # noqa: RUF005 (Numba has no *)

    return load


@functools.cache
def adder(count: int) -> Any:
    """A device function ``add(values, array, first, stride)`` -> the tuple ``values`` plus ``count`` values loaded."""
    if count == 0:
        return cuda.jit(device=True)(lambda values, array, first, stride: ())
    before, last = adder(count - 1), count - 1

    @cuda.jit(device=True)
    def add(values, array, first, stride):
        return before(values, array, first, stride) + (values[last] + array[first + last * stride],)  # noqa: RUF005

    return add


@functools.cache
def storer(count: int, typ: Any) -> Any:
    """A device function ``store(values, array, first, stride)`` of the first ``count`` values of a tuple as ``typ``."""
    if count == 0:

        @cuda.jit(device=True)
        def nothing(values, array, first, stride):
            pass

        return nothing
    before, last = storer(count - 1, typ), count - 1

    @cuda.jit(device=True)
    def store(values, array, first, stride):
        before(values, array, first, stride)
        array[first + last * stride] = typ(values[last])

    return store
