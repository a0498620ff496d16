"""What the walks know of a cell. A cell is written in the language (:mod:`gpulstm_kernels.language`), one in each file
beside this one; what is said here is what comes of it, or is written by hand.

A cell maps the pre-activations ``gates`` (one value a gate) and its carried ``states`` (the previous c of an LSTM)
to the hidden value h, the new states, and what its backward wants saved. Its maths module has two functions, written
in plain arithmetic and the activations of :mod:`gpulstm_kernels.cells.activations`, so that the same lines run on
NumPy arrays (reference), on vector registers (Numba CPU) and on scalars (Numba CUDA)::

    forward(gates, states) -> h, states, saved
    backward(dh, dstates, h, saved, states, previous) -> dgates, dprevious

All arguments but ``h`` and ``dh`` are tuples: ``gates`` of ``len(cell.preactivations)``, ``states`` (after the step),
``previous`` (before it) and ``dstates`` of ``len(cell.states)``, ``saved`` of ``cell.saved``. The gradient of h
reaches ``backward`` complete: what came through the output, the next step and a projection is already summed. A cell
that is given more than gates and states, ``cell.given``, takes it as a last argument, a tuple, and its ``backward``
returns the gradients of ``cell.given_gradients`` as a third tuple::

    forward(gates, states, given) -> h, states, saved
    backward(dh, dstates, h, saved, states, previous, given) -> dgates, dprevious, dgiven

Both functions must be finite where everything is zero: lanes past the last unit of a register compute that. Kernels are
written for the declared counts and would read and write past their memory for others, so both functions are tried on
small arrays before anything runs.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

_TRIED_ON = (2, 3)  # rows, units
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "scale_ih", "scale_hh")
"""A layer's own parameters, in torch's order, and the scales of int8 weights."""


class Noise(NamedTuple):
    """What an input is where a layer draws it.

    Attributes:
        input: its name.
        distribution: one of :data:`DISTRIBUTIONS`.
        each: ``"step"``: drawn for each step, row and unit; ``"sequence"``: for each row and unit, one for all steps.
    """

    input: str
    distribution: str
    each: str = "step"


DISTRIBUTIONS = {
    "bernoulli": "1 with probability p, else 0; p in inference",
    "dropout": "0 with probability p, else 1 / (1 - p); 1 in inference",
}
SPANS = ("step", "sequence")


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes:
        name: what users call it, such as ``"lstm"``.
        gates: names of its gates in the order of the rows of the weights, such as ``("i", "f", "g", "o")``: their
            pre-activations are summed of the input's product, h's product and both biases.
        states: names of the states that it carries beside h, such as ``("c",)``.
        saved: how many values a unit and step its ``forward`` saves for ``backward``.
        maths: import path of the module that holds ``forward`` and ``backward``; imported and checked at first use, so
            that declaring a cell costs nothing. Numbers that it reads are constants of the kernels compiled from it.
        x_gates: of gates whose pre-activations are of the input alone; their rows of ``weight_ih`` and ``bias_ih``
            follow those of ``gates``.
        h_gates: likewise of h alone, in ``weight_hh`` and ``bias_hh``.
        params: names of parameters with one value a unit.
        initial: of each of them the value that it begins with everywhere; None, or left out, for one that is drawn.
        inputs: names of what a call gives for each step and row, or for each unit too.
        differentiable: those of ``inputs`` that have a gradient.
        reads_h: whether it reads h before the step other than through the product with ``weight_hh``.
        weights: names of matrices (H, H) that its forward multiplies a value of all units with.
        stages: into how many parts such products, and means over the units of a row, cut a step, forward or backward
            (the larger one): 1 for a cell that works unit by unit, whose ``maths`` is as above.
        noise: those of ``inputs`` that a layer can draw.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: int
    maths: str
    x_gates: tuple[str, ...] = ()
    h_gates: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    initial: tuple[float | None, ...] = ()
    inputs: tuple[str, ...] = ()
    differentiable: tuple[str, ...] = ()
    reads_h: bool = False
    weights: tuple[str, ...] = ()
    stages: int = 1
    noise: tuple[Noise, ...] = ()

    @functools.cached_property
    def preactivations(self) -> tuple[str, ...]:
        """All gates in the order in which walks hold them: each of the two products writes one run of them."""
        return (*self.x_gates, *self.gates, *self.h_gates)

    @functools.cached_property
    def gates_of_x(self) -> tuple[str, ...]:
        """Those that the input's product gives, in the order of :attr:`preactivations`."""
        return (*self.x_gates, *self.gates)

    @functools.cached_property
    def gates_of_h(self) -> tuple[str, ...]:
        """Those that h's product gives, in the order of :attr:`preactivations`, which is that of ``weight_hh``."""
        return (*self.gates, *self.h_gates)

    @functools.cached_property
    def own(self) -> tuple[str, ...]:
        """A layer's parameters that are the cell's own: ``params``, (H,) each, and ``weights``, (H, H)."""
        return self.params + tuple(f"weight_{name}" for name in self.weights)

    @functools.cached_property
    def given(self) -> tuple[str, ...]:
        """What its functions are given beside gates and states: ``h`` before the step, parameters, inputs."""
        return ("h",) * self.reads_h + self.params + self.inputs

    @functools.cached_property
    def given_gradients(self) -> tuple[str, ...]:
        """Of what is given, that whose gradient backward returns."""
        return ("h",) * self.reads_h + self.params + self.differentiable

    @property
    def module(self) -> ModuleType:
        """The module that holds the maths.

        Raises:
            ValueError: it cannot be imported, has no ``forward`` or ``backward``, or one of them fails or returns other
                counts than declared; the message says which and what was expected.
        """
        try:
            module = importlib.import_module(self.maths)
        except ImportError as error:
            raise ValueError(
                f"cell: {self.name!r}: maths: expected a module that can be imported, got {self.maths!r}: {error}"
            ) from error
        return _checked(self, module)

    def cuda_source(self, struct: str) -> str | None:
        """Its CUDA C++, a struct of that name; None where that lies in a file beside the maths."""
        return None


@functools.cache
def _checked(cell: Cell, module: ModuleType) -> ModuleType:
    """``module``, whose functions return what ``cell`` declares."""
    gates, states = _values(len(cell.preactivations)), _values(len(cell.states))
    given = {"given": _values(len(cell.given))} if cell.given else {}
    h, new, saved = _tried(
        cell,
        module,
        "forward",
        {"gates": gates, "states": states, **given},
        {"h": None, "states": len(cell.states), "saved": cell.saved},
    )
    arguments = {"dh": h, "dstates": states, "h": h, "saved": saved, "states": new, "previous": states, **given}
    counts: dict[str, int | None] = {"dgates": len(cell.preactivations), "dprevious": len(cell.states)}
    if given:
        counts["dgiven"] = len(cell.given_gradients)
    _tried(cell, module, "backward", arguments, counts)
    return module


def _values(count: int) -> tuple[np.ndarray, ...]:
    return tuple(np.full(_TRIED_ON, 0.1 * (k + 1)) for k in range(count))


def _tried(
    cell: Cell, module: ModuleType, name: str, arguments: dict[str, Any], declared: dict[str, int | None]
) -> tuple[Any, ...]:
    """What the maths' function ``name`` returns: ``declared`` says of each part how many values (None: one array)."""
    where = f"cell: {cell.name!r}: {cell.maths}.{name}"
    form = f"{name}({', '.join(arguments)}) -> {', '.join(declared)}"
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{where}: expected a function {form}, got {function!r}")
    try:
        with np.errstate(all="ignore"):
            result = function(*arguments.values())
    except Exception as error:
        counts = [f"len({what}) = {len(value)}" for what, value in arguments.items() if isinstance(value, tuple)]
        raise ValueError(
            f"{where}: expected {form} for NumPy arrays, {', '.join(counts)}, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, tuple) or len(result) != len(declared):
        raise ValueError(f"{where}: expected {form}, got {_described(result)}")
    for (what, count), part in zip(declared.items(), result, strict=True):
        if count is not None and (not isinstance(part, tuple) or len(part) != count):
            raise ValueError(f"{where}: {what}: expected a tuple of {count}, as declared, got {_described(part)}")
        for value in (part,) if count is None else part:
            if np.shape(value) != _TRIED_ON:
                raise ValueError(f"{where}: {what}: expected values of the gates' shape, got {_described(value)}")
    return result


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"an array {value.shape}" if isinstance(value, np.ndarray) else repr(value)
