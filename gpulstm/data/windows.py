"""Windows of a series, split by time, and batches of them.

A window is ``history`` steps that end at a time, and the ``horizon`` steps after it are its targets. Those of training,
validation and test lie in parts that follow each other in time; a window's targets are all in its part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch
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


class Windows:
    """Endless batches {"inputs": (T, B, F), "targets": (B, horizon)}, float32; each epoch takes every window once, in
    an order that depends on ``seed`` and the epoch's number alone, but for those that fill no batch.

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
        self._sizes: Mapping[str, int] = {"windows": len(ends), "history": history, "batch": batch, "seed": seed}
        self.steps_per_epoch = len(ends) // batch
        if not self.steps_per_epoch:
            raise ValueError(f"batch: expected at most {len(ends)}, the windows for training, got {batch}")
        self.epoch = self._step = 0
        self._shuffle()

    def next(self) -> Batch:
        """The next windows."""
        batch = self._sizes["batch"]
        chosen = self._order[self._step * batch : (self._step + 1) * batch]
        inputs = histories(self._features, self._ends[chosen], self._sizes["history"])
        made = Batch({"inputs": inputs, "targets": self._targets[chosen]})
        self._step += 1
        if self._step == self.steps_per_epoch:
            self.epoch, self._step = self.epoch + 1, 0
            self._shuffle()
        return made

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; JSON holds it."""
        return {"epoch": self.epoch, "step": self._step, **self._sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict()``.

        Raises:
            ValueError, TypeError: it is a position in other windows or beyond their end, or none.
        """
        position = parsing.Fields(state, "state")
        for name, value in self._sizes.items():
            if position.take(name) != value:
                raise ValueError(f"data position: made for {name} {checks.shown(state[name])}, expected {value}")
        epoch, step = position.integer("epoch"), position.integer("step")
        if step >= self.steps_per_epoch:
            raise ValueError(f"state.step: expected less than {self.steps_per_epoch}, got {step}")
        self.epoch, self._step = epoch, step
        self._shuffle()

    def _shuffle(self) -> None:
        self._order = keyed(self._sizes["seed"], self.epoch).permutation(len(self._ends))
