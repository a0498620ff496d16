"""Endless batches in epochs, at a position that JSON holds: the base of all sources that shuffle anew in each."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch


class Epochs:
    """Endless batches; an epoch's order follows from ``seed`` and its number alone.

    A subclass says what an order is (:meth:`_shuffled`) and makes a batch of it (:meth:`_made`).

    Args:
        steps_per_epoch: batches of an epoch.
        seed: of the orders.
        made_of: integers that must be the same for a position to be taken up: how much data, in what batches.

    Raises:
        ValueError: ``seed`` below 0.
        TypeError: it is no integer.
    """

    def __init__(self, steps_per_epoch: int, seed: int, **made_of: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._made_of = {**made_of, "seed": checks.integer(seed, "seed", 0)}
        self._begin(0, 0)

    def _shuffled(self, rng: np.random.Generator) -> Any:
        """The order of an epoch."""
        raise NotImplementedError

    def _made(self, order: Any, step: int, rng: np.random.Generator) -> Batch:
        """Batch number ``step`` of an epoch in that order; ``rng`` is its own."""
        raise NotImplementedError

    def next(self) -> Batch:
        """The next batch."""
        made = self._made(self._order, self._step, keyed(self._made_of["seed"], self.epoch, self._step))
        if self._step + 1 == self.steps_per_epoch:
            self._begin(self.epoch + 1, 0)
        else:
            self._step += 1
        return made

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; JSON holds it."""
        return {"epoch": self.epoch, "step": self._step, **self._made_of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict()``.

        Raises:
            ValueError, TypeError: it is a position in other data, in batches of another size or order, beyond their
                end, or none.
        """
        position = parsing.Fields(state, "state")
        for name, value in self._made_of.items():
            if position.take(name) != value:
                raise ValueError(f"data position: made for {name} {checks.shown(state[name])}, expected {value}")
        epoch, step = position.integer("epoch"), position.integer("step")
        if step >= self.steps_per_epoch:
            raise ValueError(f"state.step: expected less than {self.steps_per_epoch}, got {step}")
        self._begin(epoch, step)

    def _begin(self, epoch: int, step: int) -> None:
        self.epoch, self._step = epoch, step
        self._order = self._shuffled(keyed(self._made_of["seed"], epoch))


def noisy(values: np.ndarray, lengths: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """``values`` (T, B, F) float32 with normal noise of that deviation on each step that counts."""
    if not deviation:
        return values
    noise = np.float32(deviation) * rng.standard_normal(values.shape, np.float32)
    counted = np.arange(len(values))[:, None, None] < lengths[:, None]
    return values + np.where(counted, noise, np.float32(0))
