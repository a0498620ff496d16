"""A cell that is written in the language: a function under a declaration, and what is derived from both."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import linecache
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..cells import Cell, Noise
from . import code, cuda_stages, declaration
from .call import call
from .declaration import PARTS, Declared
from .derive import choose_saved, gradient, uniform_of
from .graph import COUPLED, CellError, Trace, Value, evaluate, ordered


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
        return cuda_stages.struct(struct, self) if self.stages > 1 else code.cuda(struct, self.derivation)

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
        return self.name, self.initial, self.noise, *(getattr(self, part) for part in PARTS)

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
    noise: str = "",
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
        noise: those of ``inputs`` that a layer can draw, ``mask:dropout`` or ``keep:bernoulli``, at each step, or as
            ``mask:dropout:sequence`` one for all steps: see :class:`gpulstm_kernels.cells.Noise`.

    The function takes ``x``, the gates' pre-activations; ``s``, h and the states before the step; where some are
    declared ``p``, the parameters, and ``i``, the inputs. It returns h and a dictionary of the new states. It may use
    + - * / ``** 2``, the functions of :mod:`.operators`, numbers, helpers and loops, but no condition on a value: that
    is what ``where`` is for.

    Raises:
        TypeError: the declaration is no text of names.
        CellError: a name is declared twice or is none, a part of ``differentiable`` or ``noise`` is no input, or one
            is both; the function takes other arguments, fails, does not use all that is declared, or returns other
            states than declared or what is no value of the cell.
    """
    given = gates, x_gates, h_gates, states, params, inputs, differentiable, weights
    texts = dict(zip(PARTS, given, strict=True))

    def make(function: Callable[..., Any]) -> TracedCell:
        if not inspect.isfunction(function):
            raise TypeError(f"cell: expected a function, got {function!r}")
        name = function.__name__
        if not name.isidentifier() or not name.isascii():  # a lambda, or what C++ has no name for
            raise CellError(f"cell {name!r}: expected a function whose name is of ASCII letters, digits and _")
        declared, begins = declaration.read(name, texts)
        return _traced(function, declared, begins, declaration.noise_of(name, noise, declared))

    return make


def _traced(
    function: Callable[..., Any], declared: Declared, begins: tuple[float | None, ...], noise: tuple[Noise, ...]
) -> TracedCell:
    name = function.__name__
    line = f" ({function.__code__.co_filename}, line {function.__code__.co_firstlineno})"
    if wrong := declaration.mistake(declared):
        raise CellError(f"cell {name!r}: {wrong}{line}")
    trace = Trace(name)
    trace.weights = declared.weights
    gates, states, before, params, inputs, h, new = call(function, declared, trace, line)
    used = ordered((h, *new))
    products = tuple(value for value in used if value.operator == "product")
    of_gates, old, reads_h = tuple(gates.values()), tuple(states.values()), before in set(used)
    given = (*[before] * reads_h, *params.values(), *inputs.values())
    wanted = [*[before] * reads_h, *params.values(), *(inputs[one] for one in declared.differentiable)]
    dh, dnew = trace.leaf("dh"), tuple(trace.leaf(f"dnew.{state}") for state in declared.states)
    gradients = gradient([(h, dh), *zip(new, dnew, strict=True)], [*of_gates, *old, *wanted, *products])
    dgates, dold, dgiven, dproducts = _split(gradients, len(of_gates), len(old), len(wanted))
    operands = [value.arguments[0] for value in products]
    saved = choose_saved([h, *new], [*gradients, *operands], [h, *new, *old, *given])
    shared = uniform_of(saved)
    derivation = code.Derivation(
        of_gates, old, given, h, new, saved, dh, dnew, dgates, dold, dgiven, products, dproducts
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
        noise=noise,
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


def _split(values: tuple[Value, ...], *counts: int) -> Iterator[tuple[Value, ...]]:
    """The first so many, as often as said, and the rest."""
    start = 0
    for count in counts:
        yield values[start : start + count]
        start += count
    yield values[start:]
