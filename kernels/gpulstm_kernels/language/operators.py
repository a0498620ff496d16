"""The functions that a cell may call, of values and of numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..cells import activations
from . import graph
from .code import FUNCTIONS
from .graph import CellError, Value

# What each operator is of NumPy arrays.
ON_ARRAYS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    **{name: getattr(activations, name) for name in FUNCTIONS},
}


def on_rows(weights: Mapping[str, np.ndarray]) -> dict[str, Callable[..., Any]]:
    """What each operator is of arrays (B, H), those too that couple the units of a row; ``weights`` by name."""
    return ON_ARRAYS | {
        "product": lambda name, v: v @ weights[name].T,
        "product_back": lambda name, d: d @ weights[name],
        "row_mean": lambda v: np.broadcast_to(v.mean(axis=1, keepdims=True), v.shape),
    }


def _trace_of(name: str, *arguments: Any) -> graph.Trace | None:
    """The trace that the arguments are of; None where all are numbers."""
    for argument in arguments:
        if isinstance(argument, Value):
            return argument.trace
    for argument in arguments:
        if not isinstance(argument, (int, float)):
            raise CellError(f"{name}: expected a value of the cell or a number, got {argument!r}{graph.author_line()}")
    return None


def _unary(name: str, kind: str, number: Callable[[float], float], x: Any) -> Any:
    trace = _trace_of(name, x)
    if trace is None:
        return number(x)
    return trace.number(number(x.detail)) if graph.is_number(x) else graph.apply(kind, x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _unary("tanh", "tanh", math.tanh, x)


def sigmoid(x: Any) -> Any:
    """The logistic function 1 / (1 + exp(-x))."""
    return _unary("sigmoid", "sigmoid", lambda x: 0.5 * math.tanh(0.5 * x) + 0.5, x)


def exp(x: Any) -> Any:
    """The exponential function."""
    return _unary("exp", "exp", math.exp, x)


def log(x: Any) -> Any:
    """The natural logarithm."""
    return _unary("log", "log", math.log, x)


def sqrt(x: Any) -> Any:
    """The square root. Its gradient is infinite at 0."""
    return _unary("sqrt", "sqrt", math.sqrt, x)


def abs(x: Any) -> Any:
    """The absolute value. Its gradient at 0 is 0."""
    return _unary("abs", "absolute", math.fabs, x)


def softplus(x: Any) -> Any:
    """log(1 + exp(x))."""
    return _unary("softplus", "softplus", lambda x: max(x, 0.0) + math.log1p(math.exp(-math.fabs(x))), x)


def _binary(name: str, number: Callable[[float, float], float], a: Any, b: Any) -> Any:
    trace = _trace_of(name, a, b)
    if trace is None:
        return number(a, b)
    a, b = trace.lift(a, name), trace.lift(b, name)
    if graph.is_number(a) and graph.is_number(b):
        return trace.number(number(a.detail, b.detail))
    return a if a is b else graph.apply(name, a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger one of two. Where they are equal, the gradient is the number's, or ``b``'s: relu's at 0 is 0."""
    return _binary("maximum", max, a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one of two. Where they are equal, the gradient is the number's, or ``b``'s."""
    return _binary("minimum", min, a, b)


def where(x: Any, a: Any, b: Any) -> Any:
    """``a`` where x > 0, else ``b``. No gradient reaches ``x``."""
    trace = _trace_of("where", x, a, b)
    if trace is None:
        return a if x > 0 else b
    return graph.select(*(trace.lift(value, "where") for value in (x, 0.0, a, b)))


def relu(x: Any) -> Any:
    """The larger one of ``x`` and 0."""
    return maximum(x, 0.0)


def hard_sigmoid(x: Any, alpha: float = 1 / 6, beta: float = 1 / 2) -> Any:
    """alpha x + beta, between 0 and 1: torch's by default; ONNX has alpha = 0.2, as Keras before its version 3."""
    return minimum(maximum(alpha * x + beta, 0.0), 1.0)


def product(weight: str, x: Any) -> Any:
    """``x`` of all units times the matrix ``weight`` (H, H), which the cell declares: W·x, as of h and ``weight_hh``.

    What is computed of it is another stage of the step: all units of a row must have come so far.
    """
    trace = _trace_of("product", x)
    if trace is None or graph.is_number(x):
        raise CellError(f"product: expected a value of the cell, got {x!r}{graph.author_line()}")
    if weight not in trace.weights:
        declared = ", ".join(trace.weights) or "none"
        raise trace.error(f"product: expected one of the weights that are declared, {declared}, got {weight!r}")
    return graph.couple("product", x, weight)


def row_mean(x: Any) -> Any:
    """The mean of ``x`` over the units of each row: another stage of the step, as :func:`product`."""
    trace = _trace_of("row_mean", x)
    return x if trace is None or graph.is_number(x) else graph.couple("row_mean", x)


def named(**values: Any) -> Any:
    """Give a value a name, by which it can be looked at: ``f = named(f=sigmoid(x.f))``. Returns the value."""
    if len(values) != 1:
        raise CellError(f"named: expected one value, as in named(f=...), got {len(values)}{graph.author_line()}")
    ((name, value),) = values.items()
    trace = _trace_of("named", value)
    if trace is not None:
        if trace.names.get(name, value) is not value:
            raise trace.error(f"named: expected another name than {name!r}, which another value has")
        trace.names[name] = value
    return value
