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

    Sizes T, B, I = H: ``x``, ``dy`` (T, B, H); ``h0``, ``c0``, ``dh``, ``dc`` (1, B, H); ``params`` under
    torch's names. Outputs are named y, h, c, for training also dx, dh0, dc0 and d<parameter>.
    """

    case: Case
    x: np.ndarray
    h0: np.ndarray
    c0: np.ndarray
    dy: np.ndarray
    dh: np.ndarray
    dc: np.ndarray
    params: dict[str, np.ndarray]

    @classmethod
    def of(cls, case: Case) -> Problem:
        rng = np.random.default_rng([case.batch, case.steps, case.hidden])
        sequence, state = (case.steps, case.batch, case.hidden), (1, case.batch, case.hidden)
        bound = case.hidden**-0.5  # torch's initialisation

        def normal(shape: tuple[int, ...]) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(case.dtype)

        x, h0, c0, dy, dh, dc = (normal(shape) for shape in (sequence, state, state, sequence, state, state))
        params = {name: rng.uniform(-bound, bound, shape).astype(case.dtype) for name, shape in case.parameters.items()}
        return cls(case, x, h0, c0, dy, dh, dc, params)

    def astype(self, dtype: str) -> Problem:
        """The same numbers in another dtype."""
        x, h0, c0, dy, dh, dc = (array.astype(dtype) for array in (self.x, self.h0, self.c0, self.dy, self.dh, self.dc))
        params = {name: value.astype(dtype) for name, value in self.params.items()}
        return Problem(replace(self.case, dtype=dtype), x, h0, c0, dy, dh, dc, params)

    def outputs(self, mode: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a provider must return for ``mode``."""
        shapes = {"y": self.x.shape, "h": self.h0.shape, "c": self.c0.shape}
        if mode == "training":
            shapes |= {"dx": self.x.shape, "dh0": self.h0.shape, "dc0": self.c0.shape}
            shapes |= {f"d{name}": value.shape for name, value in self.params.items()}
        return shapes
