"""Values that record what is done to them: the trace of a cell is a graph of operators without loops.

A value is made once for each operator and arguments, so that what a cell computes twice is shared. What can be said
without knowing a number is simplified where the value is made: gradients are full of zeros, ones and signs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

COUPLED = ("product", "product_back", "row_mean")
"""Operators whose value for a unit is made of the values of all units of the row; the rest works unit by unit. The
first two have the name of their weight (H, H) as ``detail``: v·Wᵀ, and v·W, which its gradient is."""

_HERE, _NUMPY = str(Path(__file__).parent), str(Path(np.__file__).parent)
# Operators whose arguments may change places: of sums and products, and a number of the others, which comes last.
_SYMMETRIC, _NUMBER_LAST = ("add", "mul"), ("add", "mul", "maximum", "minimum")


def is_ours(file: str) -> bool:
    """Whether a file is none of an author's: it is of this package, or of NumPy."""
    return file.startswith((_HERE, _NUMPY))


class CellError(ValueError):
    """A cell is not what its declaration or the language wants; the message names the cell, the part and the line."""


def author_line() -> str:
    """Where, outside of this package, the code is that called it."""
    frame = sys._getframe()
    while frame is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return f" ({frame.f_code.co_filename}, line {frame.f_lineno})" if frame is not None else ""


class Trace:
    """The values of one cell, each made once."""

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.weights: tuple[str, ...] = ()  # that a product may be of
        self.names: dict[str, Value] = {}  # that the author gave
        self._values: dict[tuple[Any, ...], Value] = {}

    def value(self, operator: str, arguments: tuple[Value, ...] = (), detail: Any = None) -> Value:
        """The value of ``operator``; ``detail``: a leaf's name or number."""
        key = operator, tuple(argument.index for argument in arguments), detail
        if key not in self._values:
            self._values[key] = Value(self, len(self._values), operator, arguments, detail)
        return self._values[key]

    def leaf(self, name: str) -> Value:
        """An argument of the cell, or of its gradient."""
        return self.value("leaf", detail=name)

    def number(self, number: float) -> Value:
        if not math.isfinite(number):
            raise self.error(f"expected finite numbers, got {number}")
        return self.value("number", detail=float(number))

    def error(self, message: str) -> CellError:
        return CellError(f"cell {self.cell!r}: {message}{author_line()}")

    def lift(self, value: Any, where: str) -> Value:
        """``value`` as one of this trace.

        Raises:
            CellError: it is neither one nor a finite number.
        """
        if isinstance(value, Value):
            if value.trace is not self:
                raise self.error(f"{where}: expected a value of this cell, got one of cell {value.trace.cell!r}")
            return value
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return self.number(float(value))
        raise self.error(f"{where}: expected a value of the cell or a finite number, got {value!r}")


class Value:
    """A number for each unit of each row, known when the cell runs."""

    __slots__ = ("arguments", "detail", "index", "operator", "trace")

    def __init__(self, trace: Trace, index: int, operator: str, arguments: tuple[Value, ...], detail: Any) -> None:
        self.trace, self.index, self.operator, self.arguments, self.detail = trace, index, operator, arguments, detail

    def __repr__(self) -> str:
        return str(self.detail) if not self.arguments else f"a value of cell {self.trace.cell!r}"

    def __add__(self, other: Any) -> Value:
        return add(self, self.trace.lift(other, "+"))

    def __radd__(self, other: Any) -> Value:
        return add(self.trace.lift(other, "+"), self)

    def __sub__(self, other: Any) -> Value:
        return sub(self, self.trace.lift(other, "-"))

    def __rsub__(self, other: Any) -> Value:
        return sub(self.trace.lift(other, "-"), self)

    def __mul__(self, other: Any) -> Value:
        return mul(self, self.trace.lift(other, "*"))

    def __rmul__(self, other: Any) -> Value:
        return mul(self.trace.lift(other, "*"), self)

    def __truediv__(self, other: Any) -> Value:
        return div(self, self.trace.lift(other, "/"))

    def __rtruediv__(self, other: Any) -> Value:
        return div(self.trace.lift(other, "/"), self)

    def __neg__(self) -> Value:
        return neg(self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return apply("absolute", self)

    def __pow__(self, power: Any) -> Value:
        if not isinstance(power, Real) or power != 2:
            raise self.trace.error(
                f"**: expected the power 2, got {power!r}; sqrt, exp, log and products make others, as in x * x * x"
            )
        return mul(self, self)

    def __rpow__(self, base: Any) -> Value:
        raise self.trace.error(f"**: expected a value to the power 2, got {base!r} to the power of a value; see exp")

    def __array_ufunc__(self, function: Any, method: str, *arguments: Any, **options: Any) -> Value:
        """A number of NumPy's leaves arithmetic to the value beside it."""
        kind = {"add": add, "subtract": sub, "multiply": mul, "divide": div}.get(function.__name__)
        if kind is None or method != "__call__" or options:
            self._refuse_numpy(f"numpy.{function.__name__}")
        return kind(*(self.trace.lift(argument, function.__name__) for argument in arguments))

    def _refuse_numpy(self, found: str) -> NoReturn:
        raise self.trace.error(f"expected the functions of gpulstm.cells instead of NumPy's, got {found}")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self._refuse_numpy("a value as an array")

    def _truth(self, *_: Any) -> Any:
        raise self.trace.error(
            "a value is no condition, since its number is not known while the cell is traced; "
            "expected where(x, a, b), maximum or minimum instead of if, and, or, not, <, >, min and max"
        )

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = _truth

    def __eq__(self, other: object) -> bool:
        return self is other if isinstance(other, Value) else self._truth()  # dictionaries compare values

    __hash__ = object.__hash__

    def _number(self, *_: Any) -> Any:
        raise self.trace.error(
            "a value is no Python number, since it is not known while the cell is traced; "
            "expected the functions of gpulstm.cells instead of those of math"
        )

    __float__ = __int__ = __index__ = __complex__ = __round__ = _number


def is_number(value: Value, number: float | None = None) -> bool:
    """Whether ``value`` is a number, or that number."""
    return value.operator == "number" and (number is None or value.detail == number)


def apply(operator: str, *arguments: Value) -> Value:
    """``operator`` of values, of which one is not a number."""
    if operator in _NUMBER_LAST:
        a, b = arguments
        swapped = is_number(a) or (operator in _SYMMETRIC and a.index > b.index and not is_number(b))
        arguments = (b, a) if swapped else (a, b)
    return arguments[0].trace.value(operator, arguments)


def add(a: Value, b: Value) -> Value:
    if is_number(a) and is_number(b):
        return a.trace.number(a.detail + b.detail)
    if is_number(a, 0.0):
        return b
    if is_number(b, 0.0):
        return a
    if b.operator == "neg":
        return sub(a, b.arguments[0])
    if a.operator == "neg":
        return sub(b, a.arguments[0])
    return apply("add", a, b)


def sub(a: Value, b: Value) -> Value:
    if is_number(a) and is_number(b):
        return a.trace.number(a.detail - b.detail)
    if is_number(b, 0.0):
        return a
    if is_number(a, 0.0):
        return neg(b)
    if b.operator == "neg":
        return add(a, b.arguments[0])
    return apply("sub", a, b)


def mul(a: Value, b: Value) -> Value:
    if is_number(a) and is_number(b):
        return a.trace.number(a.detail * b.detail)
    if is_number(b):
        a, b = b, a
    if is_number(a, 0.0) or is_number(b, 0.0):
        return a.trace.number(0.0)
    if is_number(a, 1.0):
        return b
    if is_number(a, -1.0):
        return neg(b)
    if a.operator == "neg":
        return neg(mul(a.arguments[0], b))
    if b.operator == "neg":
        return neg(mul(a, b.arguments[0]))
    return apply("mul", a, b)


def div(a: Value, b: Value) -> Value:
    if is_number(b, 0.0):
        raise a.trace.error("/: expected a divisor other than 0")
    if is_number(a) and is_number(b):
        return a.trace.number(a.detail / b.detail)
    if is_number(a, 0.0) or is_number(b, 1.0):
        return a
    if a.operator == "neg":
        return neg(div(a.arguments[0], b))
    return apply("div", a, b)


def neg(a: Value) -> Value:
    if is_number(a):
        return a.trace.number(-a.detail)
    if a.operator == "neg":
        return a.arguments[0]
    if a.operator == "sub":
        return sub(a.arguments[1], a.arguments[0])
    return apply("neg", a)


def couple(operator: str, value: Value, weight: str | None = None) -> Value:
    """``operator``, one of :data:`COUPLED`, of a value that is no number."""
    return value.trace.value(operator, (value,), weight)


def select(a: Value, b: Value, x: Value, y: Value) -> Value:
    """``x`` where a > b, else ``y``."""
    if x is y:
        return x
    if is_number(a) and is_number(b):
        return x if a.detail > b.detail else y
    if is_number(a):  # the first one is what says how many numbers there are
        a, b = neg(b), neg(a)
    return apply("select", a, b, x, y)


def ordered(roots: Iterable[Value], known: Collection[int] = ()) -> list[Value]:
    """The values that ``roots`` are made of, arguments first, and themselves; of ``known`` ones only themselves."""
    seen: set[int] = set()
    found: list[Value] = []
    for root in roots:
        stack = [(root, False)]
        while stack:
            value, complete = stack.pop()
            if complete:
                found.append(value)
            elif value.index not in seen:
                seen.add(value.index)
                stack.append((value, True))
                if value.index not in known:
                    stack += [(argument, False) for argument in reversed(value.arguments)]
    return found


def evaluate(
    roots: Sequence[Value], leaves: Mapping[Value, Any], operators: Mapping[str, Callable[..., Any]]
) -> tuple[Any, ...]:
    """The numbers of ``roots``, by those of the leaves and a function for each operator. Numbers stay Python's."""
    known = {value.index: given for value, given in leaves.items()}
    for value in ordered(roots, set(known)):
        if is_number(value):
            known[value.index] = value.detail
        elif value.index not in known:
            arguments = [known[argument.index] for argument in value.arguments]
            weight = [value.detail] * (value.detail is not None)
            known[value.index] = operators[value.operator](*weight, *arguments)
    return tuple(known[root.index] for root in roots)
