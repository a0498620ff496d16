"""The one call of a cell's function: what it is given, by name, and what it returns; errors name the author's line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import graph
from .declaration import Declared
from .graph import CellError, Trace, Value, is_number, ordered


class _Named:
    """The values of one kind that a forward function is given, by name."""

    def __init__(self, trace: Trace, letter: str, kind: str, names: tuple[str, ...]) -> None:
        self._trace, self._kind, self._example = trace, kind, f"{letter}.{(*names, 'c')[0]}"
        self._values = {name: trace.leaf(f"{letter}.{name}") for name in names}

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._values:
            declared = ", ".join(self._values) or "none"
            raise self._trace.error(f"expected one of the {self._kind} that are declared, {declared}, got {name!r}")
        return self._values[name]

    def __repr__(self) -> str:
        return f"all {self._kind} together"

    def _one(self, *_: Any) -> Any:
        raise self._trace.error(f"expected one of the {self._kind} by its name, such as {self._example}, got {self!r}")

    __iter__ = __len__ = __getitem__ = __call__ = __bool__ = __float__ = _one
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _one

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise self._trace.error(f"expected new states as the second result, got an assignment to {name!r}")
        super().__setattr__(name, value)


class Call(NamedTuple):
    """What a function was given, by name, and what it returned."""

    gates: dict[str, Value]
    states: dict[str, Value]
    h_before: Value
    params: dict[str, Value]
    inputs: dict[str, Value]
    h: Value
    new: tuple[Value, ...]


def call(function: Callable[..., Any], declared: Declared, trace: Trace, line: str) -> Call:
    """Call ``function`` once, with the declared values; ``line``: where it is, for messages.

    Raises:
        CellError: it takes other arguments, fails, does not use all that is declared, or returns other states than
            declared or what is no value of the cell.
    """
    x = _Named(trace, "x", "gates", declared.x_gates + declared.gates + declared.h_gates)
    s = _Named(trace, "s", "states", (*declared.states, "h"))
    p = _Named(trace, "p", "parameters", declared.params)
    i = _Named(trace, "i", "inputs", declared.inputs)
    arguments = {"x": x, "s": s}
    if declared.params:
        arguments["p"] = p
    if declared.inputs:
        arguments["i"] = i
    h, new = _outcome(function, line, trace, arguments, declared.states)
    used = set(ordered((h, *new)))
    for kind, given in (("gates", x), ("params", p), ("inputs", i)):
        idle = [name for name, value in given._values.items() if value not in used]
        _check_use(trace.cell, kind, "used", idle, line)
    multiplied = {value.detail for value in used if value.operator == "product"}
    idle = [name for name in declared.weights if name not in multiplied]
    _check_use(trace.cell, "weights", "used in a product", idle, line)
    states = dict(s._values)
    return Call(x._values, states, states.pop("h"), p._values, i._values, h, new)


def _check_use(cell: str, kind: str, use: str, idle: list[str], line: str) -> None:
    if idle:
        raise CellError(
            f"cell {cell!r}: {kind}: expected each to be {use}, got {', '.join(map(repr, idle))}, on which nothing "
            f"that is returned depends{line}"
        )


def _outcome(
    function: Callable[..., Any], line: str, trace: Trace, arguments: Mapping[str, _Named], states: tuple[str, ...]
) -> tuple[Value, tuple[Value, ...]]:
    """What the function returns, as values of the trace.

    Raises:
        CellError: it takes other arguments, fails or returns something else.
    """
    name = trace.cell
    try:
        inspect.signature(function).bind(*arguments.values())
    except TypeError as error:
        *others, last = (f"the {value._kind}" for value in arguments.values())
        expected = f"{', '.join(others)} and {last}, {name}({', '.join(arguments)})"
        raise CellError(
            f"cell {name!r}: expected a function of {expected}, got {name}{inspect.signature(function)}{line}"
        ) from error
    try:
        result = function(*arguments.values())
    except CellError as error:
        if str(error).startswith("cell "):
            raise
        raise CellError(f"cell {name!r}: {error}") from error  # of a function that was given no value
    except Exception as error:
        raise CellError(f"cell {name!r}: {type(error).__name__}: {error}{_failed_at(error)}") from error
    form = "h and a dictionary of the new states"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise CellError(f"cell {name!r}: expected {form} to be returned, got {_shown(result)}{line}")
    h, new = result
    for kind, found in (("missing", set(states) - set(new)), ("no state of the cell", set(new) - set(states))):
        if found:
            declared = ", ".join(states) or "none"
            raise CellError(
                f"cell {name!r}: expected the new states {declared}, as declared, got one that is {kind}: "
                f"{', '.join(map(repr, sorted(found, key=str)))}{line}"
            )
    values = []
    for what, value in (("h", h), *((f"state {state!r}", new[state]) for state in states)):
        if not isinstance(value, Value) or is_number(value):
            raise CellError(f"cell {name!r}: {what}: expected a value of the cell, got {_shown(value)}{line}")
        if value.trace is not trace:
            raise CellError(
                f"cell {name!r}: {what}: expected a value of this cell, got one of cell {value.trace.cell!r}{line}"
            )
        values.append(value)
    return values[0], tuple(values[1:])


def _failed_at(error: Exception) -> str:
    """The last line of the author's that an error came from."""
    step, place = error.__traceback__, ""
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not graph.is_ours(file):
            place = f" ({file}, line {step.tb_lineno})"
        step = step.tb_next
    return place


def _shown(value: Any) -> str:
    if isinstance(value, Value) and is_number(value):
        return f"the number {value.detail}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else repr(value)
