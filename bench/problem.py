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
    (L·D, B, P) and, of an LSTM, c (L·D, B, H); ``params`` under torch's names. Outputs are named y, h, c, for training
    also dx, dh0, dc0 and d<parameter>.
    """

    case: Case
    x: np.ndarray
    state: tuple[np.ndarray, ...]
    dy: np.ndarray
    dstate: tuple[np.ndarray, ...]
    params: dict[str, np.ndarray]

    @classmethod
    def of(cls, case: Case) -> Problem:
        rng = np.random.default_rng([case.batch, case.steps, case.hidden])
        rows, count = (case.steps, case.batch), case.layers * case.directions
        bound = case.hidden**-0.5  # torch's initialisation
        sizes = (case.outputs, case.hidden)[: len(names(case))]

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(case.dtype)

        def states() -> tuple[np.ndarray, ...]:
            return tuple([normal(count, case.batch, size) for size in sizes])

        x, state, dy = normal(*rows, case.features), states(), normal(*rows, case.directions * case.outputs)
        dstate = states()
        params = {name: rng.uniform(-bound, bound, shape).astype(case.dtype) for name, shape in case.parameters.items()}
        return cls(case, x, state, dy, dstate, params)

    def astype(self, dtype: str) -> Problem:
        """The same numbers in another dtype."""
        state, dstate = (tuple(part.astype(dtype) for part in parts) for parts in (self.state, self.dstate))
        params = {name: value.astype(dtype) for name, value in self.params.items()}
        case = replace(self.case, dtype=dtype)
        return Problem(case, self.x.astype(dtype), state, self.dy.astype(dtype), dstate, params)

    def outputs(self, mode: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a provider must return for ``mode``."""
        states = {name: part.shape for name, part in zip(names(self.case), self.state, strict=True)}
        shapes = {"y": self.dy.shape, **states}
        if mode == "training":
            shapes |= {"dx": self.x.shape, **{f"d{name}0": shape for name, shape in states.items()}}
            shapes |= {f"d{name}": value.shape for name, value in self.params.items()}
        return shapes


def names(case: Case) -> tuple[str, ...]:
    """Of the parts of a state."""
    return ("h", "c") if case.cell == "lstm" else ("h",)


def named(case: Case, state: Any, prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """A state, whose only part may be by itself, as outputs."""
    parts = state if isinstance(state, (tuple, list)) else (state,)
    return {f"{prefix}{name}{suffix}": part for name, part in zip(names(case), parts, strict=True)}


def alone(state: tuple[Any, ...]) -> Any:
    """A state as layers take it: h by itself where there is no c."""
    return state if len(state) > 1 else state[0]


def check_plain(case: Case) -> None:
    """For providers that have no other: one LSTM layer of one direction in float32.

    Raises:
        ValueError: the case is another.
    """
    if not case.is_plain or case.dtype != "float32":
        raise ValueError(f"it is measured with one plain LSTM layer in float32, not {case.label}")
