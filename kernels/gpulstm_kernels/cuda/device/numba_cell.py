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


@functools.cache
def forward_given(cell: Cell, summed: Any) -> Any:
    """``cell``'s forward, of gates, states and what the cell is given, which may be nothing."""
    compute = forward(cell, summed)
    return compute if cell.given else cuda.jit(device=True)(lambda gates, states, given: compute(gates, states))


@functools.cache
def backward_given(cell: Cell, summed: Any) -> Any:
    """``cell``'s backward likewise; the gradients of what is given are its third result, which may be none."""
    compute = backward(cell, summed)
    if cell.given:
        return compute

    @cuda.jit(device=True)
    def without(dh, dstates, h, saved, states, previous, given):
        dgates, dprevious = compute(dh, dstates, h, saved, states, previous)
        return dgates, dprevious, ()

    return without


def _with_constants(function: Callable[..., Any], summed: Any) -> FunctionType:
    """``function`` with its floats, literal or global, as numbers of type ``summed``."""
    assert isinstance(function, FunctionType)
    of_type = constant(summed)

    def converted(value: Any) -> Any:
        return of_type(value) if type(value) is float else value

    code = function.__code__.replace(co_consts=tuple(map(converted, function.__code__.co_consts)))
    names = {name: converted(value) for name, value in function.__globals__.items()}
    return FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)


def _sigmoid(typ):
    one = constant(typ)(1.0)  # exp overflows to infinity where the quotient is 0 anyway
    return lambda x: one / (one + math.exp(-x))


def _softplus(typ):
    zero = constant(typ)(0.0)  # max(x, 0) + log(1 + exp(-|x|)): nothing overflows, log1p keeps the small results whole
    return lambda x: (x if x > zero else zero) + math.log1p(math.exp(-math.fabs(x)))


# What each activation is to Numba, given the type of its arguments.
_ACTIVATIONS: dict[Callable[..., Any], Callable[[Any], Callable[..., Any]]] = {
    activations.tanh: lambda typ: lambda x: math.tanh(x),
    activations.sigmoid: _sigmoid,
    activations.exp: lambda typ: lambda x: math.exp(x),
    activations.log: lambda typ: lambda x: math.log(x),
    activations.sqrt: lambda typ: lambda x: math.sqrt(x),
    activations.absolute: lambda typ: lambda x: math.fabs(x),
    activations.softplus: _softplus,
    activations.maximum: lambda typ: lambda a, b: a if a > b or math.isnan(a) else b,
    activations.minimum: lambda typ: lambda a, b: a if a < b or math.isnan(a) else b,
    activations.select: lambda typ: lambda a, b, x, y: x if a > b else y,
}


def _of_scalars(name: Callable[..., Any], implementation: Callable[[Any], Callable[..., Any]]) -> None:
    """Give Numba an activation of floats of one type; any other type among them would make the result float64."""

    @overload(name, strict=False)  # strictly, the names of the arguments would be compared too
    def choose(*arguments):
        typ = arguments[0]
        same = all(argument == typ for argument in arguments)
        return implementation(typ) if same and isinstance(typ, types.Float) else None


for _name, _implementation in _ACTIVATIONS.items():
    _of_scalars(_name, _implementation)


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
def zeros(count: int, typ: Any) -> Any:
    """A device function ``zeros()`` -> a tuple of ``count`` zeros."""
    if count == 0:
        return cuda.jit(device=True)(lambda: ())
    before = zeros(count - 1, typ)
    return cuda.jit(device=True)(lambda: before() + (typ(0),))  # noqa: RUF005


@functools.cache
def given_loader(cell: Cell, typ: Any) -> Any:
    """A device function that makes the tuple of what ``cell`` is given.

    ``load(before, params, inputs, direction, row, rows, unit, hidden, width)``: h before the step, the arrays (D,
    number, H) and (number, T, B, width), and the row (t, b) of ``rows``, T·B.
    """
    count = len(cell.params)
    one = cuda.jit(device=True)((lambda before: (typ(before),)) if cell.reads_h else (lambda before: ()))
    of_params, of_inputs = loader(count, typ), loader(len(cell.inputs), typ)

    @cuda.jit(device=True)
    def load(before, params, inputs, direction, row, rows, unit, hidden, width):
        own = one(before) + of_params(params, direction * count * hidden + unit, hidden)
        return own + of_inputs(inputs, row * width + (unit if width > 1 else 0), rows * width)

    return load


@functools.cache
def first_or_zero(there: bool, typ: Any) -> Any:
    """A device function ``first(values)`` -> the first value of a tuple where it is ``there``, else zero."""
    return cuda.jit(device=True)((lambda values: typ(values[0])) if there else (lambda values: typ(0)))


@functools.cache
def adder(count: int, skipped: int = 0) -> Any:
    """A device function ``add(values, array, first, stride)`` -> the tuple ``values`` plus ``count`` values loaded,
    behind the ``skipped`` ones, which stay as they are."""
    if count == 0:
        head = slice(0, skipped)
        return cuda.jit(device=True)(lambda values, array, first, stride: values[head])
    before, last, added = adder(count - 1, skipped), count - 1, skipped + count - 1

    @cuda.jit(device=True)
    def add(values, array, first, stride):
        return before(values, array, first, stride) + (values[added] + array[first + last * stride],)  # noqa: RUF005

    return add


@functools.cache
def storer(count: int, typ: Any, skipped: int = 0) -> Any:
    """A device function ``store(values, array, first, stride)`` of ``count`` values of a tuple as ``typ``, those behind
    the ``skipped`` ones."""
    if count == 0:

        @cuda.jit(device=True)
        def nothing(values, array, first, stride):
            pass

        return nothing
    before, last, source = storer(count - 1, typ, skipped), count - 1, skipped + count - 1

    @cuda.jit(device=True)
    def store(values, array, first, stride):
        before(values, array, first, stride)
        array[first + last * stride] = typ(values[source])

    return store
