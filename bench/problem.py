"""The numbers of a case, the same in every process: drawn from a seed, so nothing has to be sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .registry import Case

Outputs = dict[str, np.ndarray]
Runner = tuple[Callable[[], Any], Callable[[Any], Outputs]]  # call, outputs: see registry.Provider


@dataclass(frozen=True)
class Problem:
    """Inputs, parameters and upstream gradients of a case, in its dtype.

    Sizes as :class:`bench.registry.Case` has them: ``x`` (T, B, I), ``dy`` (T, B, D·P); ``state`` and ``dstate`` h
    (L·D, B, P) and what the cell carries beside, c (L·D, B, H) of an LSTM; ``params`` under torch's names. ``inputs``
    are what the cell is given for each step, by name, (T, B, H) or (T, B, 1); ``resets`` (T, B) where the case has any.
    Outputs are named y, h, c, for training also dx, dh0, dc0, d<parameter> and dinputs.<name> of what has a gradient.
    """

    case: Case
    x: np.ndarray
    state: tuple[np.ndarray, ...]
    dy: np.ndarray
    dstate: tuple[np.ndarray, ...]
    params: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    resets: np.ndarray | None

    @classmethod
    def of(cls, case: Case) -> Problem:
        rng = np.random.default_rng([case.batch, case.steps, case.hidden])
        rows, count = (case.steps, case.batch), case.layers * case.directions
        bound = case.hidden**-0.5  # torch's initialisation
        sizes = (case.outputs, *[case.hidden for _ in names(case)[1:]])

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(case.dtype)

        def states() -> tuple[np.ndarray, ...]:
            return tuple([normal(count, case.batch, size) for size in sizes])

        x, state, dy = normal(*rows, case.features), states(), normal(*rows, case.directions * case.outputs)
        dstate = states()
        params = {name: rng.uniform(-bound, bound, shape).astype(case.dtype) for name, shape in case.parameters.items()}
        for name, value in params.items():
            value += begins(case, name)
        given = {
            name: rng.random((*rows, 1 if name in ROW_INPUTS else case.hidden), np.float32).astype(case.dtype)
            for name in case.of_cell.inputs
        }
        resets = rng.random(rows) < case.resets / 100 if case.resets else None
        return cls(case, x, reached(case, state), dy, dstate, params, given, resets)

    def astype(self, dtype: str) -> Problem:
        """The same numbers in another dtype."""
        state, dstate = (tuple(part.astype(dtype) for part in parts) for parts in (self.state, self.dstate))
        params, inputs = (
            {name: value.astype(dtype) for name, value in values.items()} for values in (self.params, self.inputs)
        )
        case = replace(self.case, dtype=dtype)
        return Problem(case, self.x.astype(dtype), state, self.dy.astype(dtype), dstate, params, inputs, self.resets)

    def outputs(self, mode: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a provider must return for ``mode``."""
        states = {name: part.shape for name, part in zip(names(self.case), self.state, strict=True)}
        shapes = {"y": self.dy.shape, **states}
        if mode == "training":
            shapes |= {"dx": self.x.shape, **{f"d{name}0": shape for name, shape in states.items()}}
            shapes |= {f"d{name}": value.shape for name, value in self.params.items()}
            shapes |= {f"dinputs.{name}": self.inputs[name].shape for name in self.case.of_cell.differentiable}
        return shapes


ROW_INPUTS = ("gap",)  # of the cells' inputs those that are one number a row; the others are masks, one a unit


def begins(case: Case, parameter: str) -> float:
    """Where a cell's own parameter begins, and so where it is drawn around.

    The gains of h's normalised product are 0.1 rather than the cell's 1 (as Cooijmans et al. 2017, section 4, begin):
    with 1 the walk is chaotic, and what float32 rounds grows with every step, by whomever it is computed.
    """
    cell, own = case.of_cell, parameter.rsplit("_l", 1)[0]
    if own.startswith("gain_h"):
        return 0.1
    return dict(zip(cell.params, cell.initial, strict=False)).get(own) or 0.0


def reached(case: Case, state: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """A random state as one that the cell could have reached: h above 0 of those that keep it so, n from 1 on."""
    parts = dict(zip(names(case), state, strict=True))
    if case.cell.endswith("_positive"):
        parts["h"] = abs(parts["h"]) + parts["h"].dtype.type(0.1)
    if case.cell == "slstm":
        parts["n"] = abs(parts["n"]) + 1
    return tuple(parts.values())


def names(case: Case) -> tuple[str, ...]:
    """Of the parts of a state."""
    return ("h", *case.of_cell.states)


def named(case: Case, state: Any, prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """A state, whose only part may be by itself, as outputs."""
    parts = state if isinstance(state, (tuple, list)) else (state,)
    return {f"{prefix}{name}{suffix}": part for name, part in zip(names(case), parts, strict=True)}


def alone(state: tuple[Any, ...]) -> Any:
    """A state as layers take it: h by itself where there is no c."""
    return state if len(state) > 1 else state[0]


def check_plain(case: Case) -> None:
    """For providers that have no other: one LSTM or GRU layer of one direction in float32.

    Raises:
        ValueError: the case is another.
    """
    if not case.is_plain or case.cell not in ("lstm", "gru") or case.dtype != "float32":
        raise ValueError(f"it is measured with one plain LSTM or GRU layer in float32, not {case.label}")
