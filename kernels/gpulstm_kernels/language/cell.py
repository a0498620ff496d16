"""A cell that is written in the language: its declaration, its forward, and what is derived from both."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import keyword
import linecache
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..cells import Cell
from . import code, graph
from .derive import choose_saved, gradient
from .graph import CellError, Trace, Value, evaluate, is_number, ordered


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


@dataclass(frozen=True, eq=False)
class TracedCell(Cell):
    """A cell whose gradient, and whatever kernels need of it, comes from its forward.

    Two are equal that are called the same and compute the same.

    Attributes:
        function: the forward, as it was written: ``function(x, s) -> h, {state: new}``.
        derivation: the trace of the forward and its gradient.
        source: the Python of forward and backward that is derived, which kernels are compiled from.
        names: values that the author named, by name.
    """

    function: Callable[..., Any] = field(repr=False, kw_only=True)
    derivation: code.Derivation = field(repr=False, kw_only=True)
    source: str = field(repr=False, kw_only=True)
    names: Mapping[str, Value] = field(repr=False, kw_only=True)

    @functools.cached_property
    def module(self) -> ModuleType:
        file = f"<{self.maths}>"
        linecache.cache[file] = len(self.source), None, self.source.splitlines(keepends=True), file
        module = ModuleType(self.maths)
        exec(compile(self.source, file, "exec"), vars(module))
        sys.modules[self.maths] = module  # where kernels that come from the cache on disk look for it
        return module

    def cuda_source(self, struct: str) -> str:
        return code.cuda(struct, self.derivation)

    def evaluate(self, operators: Mapping[str, Callable[..., Any]], gates: Sequence[Any], states: Sequence[Any]) -> Any:
        """h and the new states, by a function for each operator."""
        d = self.derivation
        return evaluate([d.h, *d.new], dict(zip([*d.gates, *d.old], [*gates, *states], strict=True)), operators)

    def gradient(
        self,
        operators: Mapping[str, Callable[..., Any]],
        gates: Sequence[Any],
        states: Sequence[Any],
        dh: Any,
        dnew: Sequence[Any],
    ) -> Any:
        """The gradients of the gates and of the states before the step, with nothing saved."""
        d = self.derivation
        leaves = zip([*d.gates, *d.old, d.dh, *d.dnew], [*gates, *states, dh, *dnew], strict=True)
        return evaluate([*d.dgates, *d.dold], dict(leaves), operators)

    def __reduce__(self) -> Any:
        name = self.function.__module__, self.function.__qualname__
        try:
            found = _found(*name)
        except (ImportError, AttributeError):
            found = None
        if found != self:
            raise pickle.PicklingError(
                f"cell {self.name!r}: expected one at the top of a module, which a pickle names, got {'.'.join(name)}"
            )
        return _found, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedCell) and (self._declared, self.source) == (other._declared, other.source)

    def __hash__(self) -> int:
        return hash((self._declared, self.source))

    @property
    def _declared(self) -> tuple[Any, ...]:
        return self.name, self.gates, self.states

    def __copy__(self) -> TracedCell:
        return self

    def __deepcopy__(self, memo: Any) -> TracedCell:
        return self


def _found(module: str, name: str) -> Any:
    """The cell that a module's name is of: a pickle names a cell, and holds no code."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def checked(cell: Any) -> Cell:
    """``cell``.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a cell, such as gpulstm.cells.lstm, got {cell!r}")
    return cell


def cell(*, gates: str, states: str = "") -> Callable[[Callable[..., Any]], TracedCell]:
    """Make a cell of a function, which is its forward and is called once, with values that record what is done to them.

    ::

        @cell(gates="i f g o", states="c")
        def lstm(x, s):
            c = sigmoid(x.f) * s.c + sigmoid(x.i) * tanh(x.g)
            return sigmoid(x.o) * tanh(c), {"c": c}

    Args:
        gates: names of its gates, in the order of the rows of the weights, with spaces between them.
        states: names of the states that it carries beside h.

    The function takes ``x``, the gates' pre-activations, and ``s``, the states before the step, and returns h and a
    dictionary of the new states. It may use + - * / ``** 2``, the functions of :mod:`.operators`, numbers, helpers and
    loops, but no condition on a value: that is what ``where`` is for.

    Raises:
        TypeError: the declaration is no text of names.
        CellError: a name is declared twice or is none; the function takes other arguments, fails, uses no value of a
            gate, or returns other states than declared or what is no value of the cell.
    """

    def make(function: Callable[..., Any]) -> TracedCell:
        if not inspect.isfunction(function):
            raise TypeError(f"cell: expected a function, got {function!r}")
        name = function.__name__
        if not name.isidentifier() or not name.isascii():  # a lambda, or what C++ has no name for
            raise CellError(f"cell {name!r}: expected a function whose name is of ASCII letters, digits and _")
        declared = {"gates": _names(name, "gates", gates), "states": _names(name, "states", states)}
        return _traced(function, **declared)

    return make


def _names(cell: str, what: str, text: Any) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise TypeError(f"cell {cell!r}: {what}: expected names with spaces between them, got {text!r}")
    names = tuple(text.split())
    for name in names:
        if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name.startswith("_"):
            raise CellError(
                f"cell {cell!r}: {what}: expected names of ASCII letters, digits and _, which do not begin with _ and "
                f"are no keywords, got {name!r}"
            )
    return names


def _traced(function: Callable[..., Any], gates: tuple[str, ...], states: tuple[str, ...]) -> TracedCell:
    name = function.__name__
    line = f" ({function.__code__.co_filename}, line {function.__code__.co_firstlineno})"
    _check_declaration(name, gates, states, line)
    trace = Trace(name)
    x, s = _Named(trace, "x", "gates", gates), _Named(trace, "s", "states", states)
    h, new = _outcome(function, line, trace, x, s, states)
    _check_use(trace, x, (h, *new), line)
    dh, dnew = trace.leaf("dh"), tuple(trace.leaf(f"dnew.{state}") for state in states)
    given, old = tuple(x._values.values()), tuple(s._values.values())
    gradients = gradient([(h, dh), *zip(new, dnew, strict=True)], [*given, *old])
    saved = choose_saved([h, *new], gradients, [h, *new, *old])
    derivation = code.Derivation(given, old, h, new, saved, dh, dnew, gradients[: len(given)], gradients[len(given) :])
    source = code.python(name, derivation)
    return TracedCell(
        name,
        gates,
        states,
        len(saved),
        f"{__package__}.derived.{name}_{hashlib.blake2b(source.encode(), digest_size=4).hexdigest()}",
        function=function,
        derivation=derivation,
        source=source,
        names=trace.names,
    )


def _check_declaration(name: str, gates: tuple[str, ...], states: tuple[str, ...], line: str) -> None:
    if not gates:
        raise CellError(f"cell {name!r}: gates: expected at least one, got none{line}")
    names = ("h", *gates, *states)
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise CellError(
            f"cell {name!r}: expected gates and states of different names beside h, got {', '.join(twice)} twice{line}"
        )


def _outcome(
    function: Callable[..., Any], line: str, trace: Trace, x: _Named, s: _Named, states: tuple[str, ...]
) -> tuple[Value, tuple[Value, ...]]:
    """What the function returns, as values of the trace.

    Raises:
        CellError: it takes other arguments, fails or returns something else.
    """
    name = trace.cell
    try:
        inspect.signature(function).bind(x, s)
    except TypeError as error:
        raise CellError(
            f"cell {name!r}: expected a function of the gates and the states, {name}(x, s), got "
            f"{name}{inspect.signature(function)}{line}"
        ) from error
    try:
        result = function(x, s)
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


def _check_use(trace: Trace, x: _Named, results: tuple[Value, ...], line: str) -> None:
    used = set(ordered(results))
    idle = [gate for gate, value in x._values.items() if value not in used]
    if idle:
        raise CellError(
            f"cell {trace.cell!r}: gates: expected each to be used, got {', '.join(map(repr, idle))}, on which nothing "
            f"that is returned depends{line}"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Value) and is_number(value):
        return f"the number {value.detail}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else repr(value)
