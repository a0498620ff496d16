"""Ridge regression from histories to horizons, in closed form: the linear line that a network must beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .. import checks
from ..data.forecast_features import Plan, phase
from ..data.windows import futures, histories

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
MOST = 1 << 21  # weights that a checkpoint's JSON holds in base64
_ROWS = 2048  # windows whose design is in memory at a time


def width(plan: Plan, span: int) -> int:
    """How many numbers a forecast is linear in, D; see :meth:`Inputs.design`."""
    _, phases = phase(np.empty(0, "datetime64[s]"), plan.step)
    return span * plan.seen + plan.count - plan.seen + (plan.horizon if plan.lag else 0) + phases + 1


@dataclass(frozen=True)
class Inputs:
    """The features (N, F) float64 of a series after ``plan``, and the phase (N,) of each step, of ``phases``."""

    plan: Plan
    features: np.ndarray
    phase: np.ndarray
    phases: int

    def design(self, ends: np.ndarray, span: int) -> Iterator[np.ndarray]:
        """What a forecast is linear in, (rows, D) float64, for windows that end at ``ends``, in blocks.

        The features that are known at a step of the last ``span``, those known beforehand of the last, the target
        ``plan.lag`` steps before each of the horizon, the phase, one feature each, and 1.
        """
        seen, horizon = self.plan.seen, self.plan.horizon
        for begin in range(0, len(ends), _ROWS):
            part = ends[begin : begin + _ROWS]
            past = histories(self.features[:, :seen], part, span).transpose(1, 0, 2).reshape(len(part), -1)
            blocks = [past, self.features[part, seen:]]
            if self.plan.lag:
                blocks.append(histories(self.features[:, -1:], part, horizon)[..., 0].T)
            blocks.append(np.eye(self.phases)[self.phase[part]])
            yield np.concatenate([*blocks, np.ones((len(part), 1))], axis=1)


@dataclass(frozen=True)
class Ridge:
    """Forecasts ``design · weights``, (D, horizon), from the last ``span`` steps of a history."""

    span: int
    weights: np.ndarray

    @classmethod
    def fit(
        cls,
        inputs: Inputs,
        target: np.ndarray,
        train: np.ndarray,
        validation: np.ndarray,
        spans: tuple[int, ...],
        error: Callable[[np.ndarray], float],
    ) -> Ridge:
        """The best of several spans and penalties: ``Σ (design · w - target)² + penalty Σ w²`` is least on ``train``,
        where the last weight, of 1, is not in the penalty; ``error`` of the forecast on ``validation`` says which.

        Args:
            target: (N,) float64, of the series.
            train, validation: (W,), where the histories of the windows end.

        Raises:
            ValueError: more weights than a checkpoint holds, or than memory.
        """
        for span in spans:
            size = width(inputs.plan, span)
            if size * inputs.plan.horizon > MOST:
                raise ValueError(
                    f"history, horizon and columns: expected at most {MOST} weights of the linear model, got {size} "
                    f"inputs for {inputs.plan.horizon} steps"
                )
            checks.fits(3 * 8 * size**2, "history and columns", (span, inputs.plan.seen))
        tried: list[tuple[float, int, Ridge]] = []
        horizon = inputs.plan.horizon
        for span in spans:
            gram: np.ndarray | float = 0.0
            moment: np.ndarray | float = 0.0
            at = 0
            for design in inputs.design(train, span):
                gram = gram + design.T @ design
                moment = moment + design.T @ futures(target, train[at : at + len(design)], horizon)
                at += len(design)
            penalised = np.ones(len(np.atleast_1d(moment)))
            penalised[-1] = 0
            weights = [np.linalg.solve(gram + penalty * np.diag(penalised), moment) for penalty in PENALTIES]
            together = np.concatenate(weights, axis=1)
            found = np.concatenate([design @ together for design in inputs.design(validation, span)])
            for i, each in enumerate(weights):
                each = each.astype(np.float32).astype(np.float64)  # as a checkpoint holds them
                tried.append((error(found[:, i * horizon : (i + 1) * horizon]), len(tried), cls(span, each)))
        return min(tried, key=lambda one: one[:2])[2]

    def predict(self, inputs: Inputs, ends: np.ndarray) -> np.ndarray:
        """(W, horizon) for the windows that end at ``ends`` (W,)."""
        return np.concatenate([design @ self.weights for design in inputs.design(ends, self.span)])
