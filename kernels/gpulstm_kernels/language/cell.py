"""A cell that is written in the language: its declaration, its forward, and what is derived from both."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import itertools
import keyword
import linecache
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from ..cells import PARAMETERS, Cell
from . import code, graph
from .derive import choose_saved, gradient, uniform_of
from .graph import COUPLED, CellError, Trace, Value, evaluate, is_number, ordered


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
        """The module that is derived. Of a cell with stages it is to read: what products and means are is a walk's."""
        file = f"<{self.maths}>"
        linecache.cache[file] = len(self.source), None, self.source.splitlines(keepends=True), file
        module = ModuleType(self.maths)
        exec(compile(self.source, file, "exec"), vars(module))
        sys.modules[self.maths] = module  # where kernels that come from the cache on disk look for it
        return module

    def cuda_source(self, struct: str) -> str:
        return code.cuda(struct, self.derivation)

    def evaluate(
        self,
        operators: Mapping[str, Callable[..., Any]],
        gates: Sequence[Any],
        states: Sequence[Any],
        given: Sequence[Any] = (),
    ) -> Any:
        """h and the new states, by a function for each operator."""
        d = self.derivation
        leaves = zip([*d.gates, *d.old, *d.given], [*gates, *states, *given], strict=True)
        return evaluate([d.h, *d.new], dict(leaves), operators)

    def gradient(
        self,
        operators: Mapping[str, Callable[..., Any]],
        gates: Sequence[Any],
        states: Sequence[Any],
        dh: Any,
        dnew: Sequence[Any],
        given: Sequence[Any] = (),
    ) -> Any:
        """The gradients of the gates, of the states before the step, of ``given_gradients`` and of the products, and
        those products' operands, with nothing saved."""
        d = self.derivation
        values = [*gates, *states, *given, dh, *dnew]
        leaves = zip([*d.gates, *d.old, *d.given, d.dh, *d.dnew], values, strict=True)
        operands = [value.arguments[0] for value in d.products]
        return evaluate([*d.dgates, *d.dold, *d.dgiven, *d.dproducts, *operands], dict(leaves), operators)

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
        return self.name, self.initial, *(getattr(self, part) for part in PARTS)

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


PARTS = ("gates", "x_gates", "h_gates", "states", "params", "inputs", "differentiable", "weights")
"""What a cell declares, each names with spaces between them."""


def cell(
    *,
    gates: str = "",
    x_gates: str = "",
    h_gates: str = "",
    states: str = "",
    params: str = "",
    inputs: str = "",
    differentiable: str = "",
    weights: str = "",
) -> Callable[[Callable[..., Any]], TracedCell]:
    """Make a cell of a function, which is its forward and is called once, with values that record what is done to them.

    ::

        @cell(gates="i f g o", states="c")
        def lstm(x, s):
            c = sigmoid(x.f) * s.c + sigmoid(x.i) * tanh(x.g)
            return sigmoid(x.o) * tanh(c), {"c": c}

    All arguments are names with spaces between them.

    Args:
        gates: those whose pre-activations are the sum of the input's product, h's product and both biases, in the
            order of the rows of ``weight_ih`` and ``weight_hh``.
        x_gates: those of the input alone; their rows of ``weight_ih`` and ``bias_ih`` follow those of ``gates``.
        h_gates: those of h alone, in ``weight_hh`` and ``bias_hh`` likewise. Without these and ``gates`` there is no
            recurrent product, and no ``weight_hh``.
        states: what the cell carries beside h.
        params: parameters with one value a unit; ``gain=1`` for one that begins with that value everywhere.
        inputs: what a call gives for each step and row, or for each unit too: masks, the time since the last step.
        differentiable: those of ``inputs`` that have a gradient; the others are constants to it.
        weights: further matrices (H, H), ``weight_u_l0`` for ``u``, for ``product("u", v)``.

    The function takes ``x``, the gates' pre-activations; ``s``, h and the states before the step; where some are
    declared ``p``, the parameters, and ``i``, the inputs. It returns h and a dictionary of the new states. It may use
    + - * / ``** 2``, the functions of :mod:`.operators`, numbers, helpers and loops, but no condition on a value: that
    is what ``where`` is for.

    Raises:
        TypeError: the declaration is no text of names.
        CellError: a name is declared twice or is none, or a part of ``differentiable`` is no input; the function takes
            other arguments, fails, does not use all that is declared, or returns other states than declared or what is
            no value of the cell.
    """
    given = gates, x_gates, h_gates, states, params, inputs, differentiable, weights
    texts = dict(zip(PARTS, given, strict=True))

    def make(function: Callable[..., Any]) -> TracedCell:
        if not inspect.isfunction(function):
            raise TypeError(f"cell: expected a function, got {function!r}")
        name = function.__name__
        if not name.isidentifier() or not name.isascii():  # a lambda, or what C++ has no name for
            raise CellError(f"cell {name!r}: expected a function whose name is of ASCII letters, digits and _")
        begun, begins = _initial_values(name, params)
        declared = {part: _names(name, part, text) for part, text in (texts | {"params": begun}).items()}
        return _traced(function, Declared(**declared), begins)

    return make


def _initial_values(cell: str, params: Any) -> tuple[Any, tuple[float | None, ...]]:
    """The declared ``params`` without their initial values, and those."""
    if not isinstance(params, str):
        return params, ()  # refused as other parts are
    names, values = [], []
    for part in params.split():
        name, given, text = part.partition("=")
        try:
            value = float(text) if given else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise CellError(
                f"cell {cell!r}: params: expected a finite number to begin with, as in gain=1, got {part!r}"
            )
        names.append(name)
        values.append(value)
    return " ".join(names), tuple(values)


class Declared(NamedTuple):
    """The parts of a declaration, as :class:`gpulstm_kernels.cells.Cell` has them."""

    gates: tuple[str, ...]
    x_gates: tuple[str, ...]
    h_gates: tuple[str, ...]
    states: tuple[str, ...]
    params: tuple[str, ...]
    inputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    weights: tuple[str, ...]


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


def _traced(function: Callable[..., Any], declared: Declared, begins: tuple[float | None, ...]) -> TracedCell:
    name = function.__name__
    line = f" ({function.__code__.co_filename}, line {function.__code__.co_firstlineno})"
    _check_declaration(name, declared, line)
    trace = Trace(name)
    trace.weights = declared.weights
    gates = declared.x_gates + declared.gates + declared.h_gates
    x = _Named(trace, "x", "gates", gates)
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
    for kind, values in (("gates", x), ("params", p), ("inputs", i)):
        _check_use(name, kind, values, used, line)
    products = tuple(value for value in ordered((h, *new)) if value.operator == "product")
    _check_weights(name, declared.weights, {value.detail for value in products}, line)
    *old, before = s._values.values()
    reads_h = before in used
    given = [*[before] * reads_h, *p._values.values(), *i._values.values()]
    wanted = [*[before] * reads_h, *p._values.values(), *(i._values[one] for one in declared.differentiable)]
    dh, dnew = trace.leaf("dh"), tuple(trace.leaf(f"dnew.{state}") for state in declared.states)
    of_gates = tuple(x._values.values())
    gradients = gradient([(h, dh), *zip(new, dnew, strict=True)], [*of_gates, *old, *wanted, *products])
    dgates, dold, dgiven, dproducts = _split(gradients, len(of_gates), len(old), len(wanted))
    operands = [value.arguments[0] for value in products]
    saved = choose_saved([h, *new], [*gradients, *operands], [h, *new, *old, *given])
    shared = uniform_of(saved)
    derivation = code.Derivation(
        of_gates, tuple(old), tuple(given), h, new, saved, dh, dnew, dgates, dold, dgiven, products, dproducts
    )
    stages = count_stages(derivation)
    source = code.python(name, derivation)
    return TracedCell(
        name=name,
        saved=len([value for value in saved if value.index not in shared]),
        maths=f"{__package__}.derived.{name}_{hashlib.blake2b(source.encode(), digest_size=4).hexdigest()}",
        reads_h=reads_h,
        initial=begins,
        stages=stages,
        function=function,
        derivation=derivation,
        source=source,
        names=trace.names,
        **declared._asdict(),
    )


def count_stages(d: code.Derivation) -> int:
    """See :attr:`gpulstm_kernels.cells.Cell.stages`."""
    forward = [d.h, *d.new]
    of_forward = {value.index for value in ordered(forward)}
    backward = [*d.dgates, *d.dold, *d.dgiven, *d.dproducts]
    return 1 + max(_depth(forward, set()), _depth(backward, of_forward))


def _depth(roots: Sequence[Value], known: set[int]) -> int:
    """How many couplings stand one behind another between ``known`` values and ``roots``."""
    depths: dict[int, int] = {}
    for value in ordered(roots, known):
        before = 0 if value.index in known else max((depths[one.index] for one in value.arguments), default=0)
        depths[value.index] = before + (value.operator in COUPLED and value.index not in known)
    return max(depths[root.index] for root in roots)


def _check_weights(cell: str, declared: tuple[str, ...], used: set[Any], line: str) -> None:
    if idle := [name for name in declared if name not in used]:
        raise CellError(
            f"cell {cell!r}: weights: expected each to be used in a product, got {', '.join(map(repr, idle))}, on "
            f"which nothing that is returned depends{line}"
        )


def _split(values: tuple[Value, ...], *counts: int) -> Iterator[tuple[Value, ...]]:
    """The first so many, as often as said, and the rest."""
    start = 0
    for count in counts:
        yield values[start : start + count]
        start += count
    yield values[start:]


def _check_declaration(name: str, declared: Declared, line: str) -> None:
    if not declared.gates + declared.x_gates:
        raise CellError(f"cell {name!r}: gates: expected at least one, got none, nor any of x_gates{line}")
    *others, differentiable, weights = declared
    names = ("h", *itertools.chain(*others))
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise CellError(
            f"cell {name!r}: expected gates, states, parameters and inputs of different names beside h, got "
            f"{', '.join(twice)} twice{line}"
        )
    for kind, parts in (("differentiable", differentiable), ("weights", weights)):
        if repeated := sorted({one for one in parts if parts.count(one) > 1}):
            raise CellError(f"cell {name!r}: {kind}: expected each once, got {', '.join(repeated)} twice{line}")
    if reserved := [one for one in weights if f"weight_{one}" in PARAMETERS]:
        raise CellError(
            f"cell {name!r}: weights: expected other names than ih, hh and hr, which a layer has, got "
            f"{', '.join(reserved)}{line}"
        )
    if reserved := [one for one in declared.params if one in PARAMETERS]:
        raise CellError(
            f"cell {name!r}: params: expected other names than those of a layer's own parameters, got "
            f"{', '.join(reserved)}{line}"
        )
    if unknown := [one for one in differentiable if one not in declared.inputs]:
        raise CellError(
            f"cell {name!r}: differentiable: expected names of inputs, {', '.join(declared.inputs) or 'none'}, got "
            f"{', '.join(unknown)}{line}"
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


def _check_use(cell: str, kind: str, given: _Named, used: set[Value], line: str) -> None:
    idle = [name for name, value in given._values.items() if value not in used]
    if idle:
        raise CellError(
            f"cell {cell!r}: {kind}: expected each to be used, got {', '.join(map(repr, idle))}, on which nothing "
            f"that is returned depends{line}"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Value) and is_number(value):
        return f"the number {value.detail}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else repr(value)
