"""Windows of a series, split by time, and batches of them.

A window is ``history`` steps that end at a time, and the ``horizon`` steps after it are its targets. Those of training,
validation and test lie in parts that follow each other in time; a window's targets are all in its part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .batch import Batch
from .epochs import Epochs
from .forecast_features import Plan


@dataclass(frozen=True)
class Parts:
    """The times at which histories end, as numbers of steps, of the windows of each part."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, steps: int, validation: int, test: int, plan: Plan) -> Parts:
        """Windows of a series of ``steps`` whose validation and test parts begin at those steps.

        Raises:
            ValueError: a part without a window.
        """
        ends = np.arange(plan.needed - 1, steps - plan.horizon)
        last = ends + plan.horizon  # the last target
        parts = cls(
            ends[last < validation],
            ends[(ends + 1 >= validation) & (last < test)],
            ends[ends + 1 >= test],
        )
        sizes = {"training": validation, "validation": test - validation, "test": steps - test}
        for (name, size), windows in zip(sizes.items(), (parts.train, parts.validation, parts.test), strict=True):
            if not len(windows):
                raise ValueError(
                    f"data: too short: {size} steps for {name} hold no window of history {plan.history} (a lag of "
                    f"{plan.lag}) and horizon {plan.horizon}"
                )
        return parts


def histories(features: np.ndarray, ends: np.ndarray, history: int) -> np.ndarray:
    """The windows (T, B, F) of ``features`` (N, F) that end at ``ends`` (B,)."""
    return np.ascontiguousarray(features[ends[None, :] + np.arange(1 - history, 1)[:, None]])


def futures(values: np.ndarray, ends: np.ndarray, horizon: int) -> np.ndarray:
    """(B, horizon) of ``values`` (N,): those after ``ends`` (B,)."""
    return values[ends[:, None] + np.arange(1, horizon + 1)]


class Windows(Epochs):
    """Endless batches {"inputs": (T, B, F), "targets": (B, horizon)}, float32; each epoch takes every window once, but
    for those that fill no batch.

    Args:
        features: (N, F) float32, of every step.
        ends: (W,), where the histories end.
        targets: (W, horizon) float32.

    Raises:
        ValueError: fewer windows than a batch takes.
    """

    def __init__(
        self, features: np.ndarray, ends: np.ndarray, targets: np.ndarray, history: int, batch: int, seed: int
    ) -> None:
        self._features, self._ends, self._targets = features, ends, targets
        self._history, self._batch = history, batch
        if len(ends) < batch:
            raise ValueError(f"batch: expected at most {len(ends)}, the windows for training, got {batch}")
        super().__init__(len(ends) // batch, seed, windows=len(ends), history=history, batch=batch)

    def _made(self, order: np.ndarray, step: int, rng: np.random.Generator) -> Batch:
        chosen = order[step * self._batch : (step + 1) * self._batch]
        inputs = histories(self._features, self._ends[chosen], self._history)
        return Batch({"inputs": inputs, "targets": self._targets[chosen]})

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self._ends))
