"""What a recogniser learns from: features and the labels that they say; and batches of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch


@dataclass(frozen=True)
class Utterance:
    """Features (T, F) float32, scaled; the labels (S,) that they say, numbers of symbols from 1, since 0 is none; and
    the same as a text, which may have symbols besides that no label stands for."""

    values: np.ndarray
    labels: np.ndarray
    text: str


class Bucketed:
    """Endless batches of utterances; those of like length are side by side.

    Inputs are (T, B, F) float32 with ``lengths``; ``targets`` (B, S) with ``target_lengths`` (B,). All follows from
    ``seed``, the epoch's number and the batch's. ``noise`` is the deviation of normal noise on the scaled features. A
    subclass says what an epoch has, and makes it.

    Args:
        size: utterances of an epoch.
        of: the number of what these are made of; a position in another number is refused.

    Raises:
        ValueError: ``batch`` below 1, or above ``size``; ``seed`` below 0.
        TypeError: one of these that is no integer.
    """

    def __init__(self, size: int, of: int, batch: int, seed: int, noise: float) -> None:
        self.batch, self.seed = checks.integer(batch, "batch"), checks.integer(seed, "seed", 0)
        self._of, self._noise = of, noise
        self.steps_per_epoch = size // batch
        if not self.steps_per_epoch:
            raise ValueError(f"batch: expected at most {size}, all that an epoch has, got {batch}")
        self.epoch = self._number = 0
        self._shuffle()

    def _planned(self, rng: np.random.Generator) -> list[tuple[int, Any]]:
        """Of each utterance of an epoch its number of steps, about, and what it is made of."""
        raise NotImplementedError

    def _made(self, of: Any, rng: np.random.Generator) -> Utterance:
        raise NotImplementedError

    def next(self) -> Batch:
        """The next batch; every one is ``fresh``."""
        rng = keyed(self.seed, self.epoch, self._number)
        values, steps, labels, counts = padded([self._made(of, rng) for of in self._plan[self._number]])
        if self._noise:
            counted = np.arange(len(values))[:, None, None] < steps[:, None]
            values += np.where(counted, self._noise * rng.standard_normal(values.shape, np.float32), np.float32(0))
        self._number += 1
        if self._number == self.steps_per_epoch:
            self.epoch, self._number = self.epoch + 1, 0
            self._shuffle()
        return Batch({"inputs": values, "targets": labels, "target_lengths": counts}, lengths=steps)

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; JSON holds it."""
        position = {"epoch": self.epoch, "number": self._number}
        return position | {"recordings": self._of, "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict()``.

        Raises:
            ValueError, TypeError: it is a position in other data, in batches of another size or order, beyond their
                end, or none.
        """
        position = parsing.Fields(state, "state")
        for name, value in self.state_dict().items():
            if name not in ("epoch", "number") and position.take(name) != value:
                raise ValueError(f"data position: made for {name} {checks.shown(state[name])}, expected {value}")
        epoch, number = position.integer("epoch"), position.integer("number")
        if number >= self.steps_per_epoch:
            raise ValueError(f"state.number: expected less than {self.steps_per_epoch}, got {number}")
        self.epoch, self._number = epoch, number
        self._shuffle()

    def _shuffle(self) -> None:
        """What each batch of this epoch has."""
        rng = keyed(self.seed, self.epoch)
        planned = [of for _, of in sorted(self._planned(rng), key=lambda pair: pair[0])]
        start = int(rng.integers(len(planned) - self.steps_per_epoch * self.batch + 1))  # others are left out each time
        batches = [planned[start + k * self.batch :][: self.batch] for k in range(self.steps_per_epoch)]
        self._plan = [batches[k] for k in rng.permutation(len(batches))]


class Speech(Protocol):
    """What the speech task needs of its data besides what every task does."""

    @property
    def source(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def symbols(self) -> tuple[str, ...]:
        """What labels from 1 on stand for."""

    @property
    def rate(self) -> int:
        """Samples a second of sound files; 0 where the data is no sound, but recordings of digits."""

    @property
    def mean(self) -> np.ndarray: ...
    @property
    def deviation(self) -> np.ndarray: ...

    def describe(self) -> str: ...

    def batches(self, batch: int, seed: int, noise: float) -> Bucketed: ...

    def validation_utterances(self) -> list[Utterance]: ...

    def test_utterances(self) -> dict[str, list[Utterance]]:
        """What is measured on, by what is added to the names of the figures."""


def padded(utterances: Sequence[Utterance]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (T, B, F) float32 and labels (B, S) int64 with zeros behind what is shorter, and the lengths of both."""
    steps = np.array([len(utterance.values) for utterance in utterances])
    counts = np.array([len(utterance.labels) for utterance in utterances])
    values = np.zeros((steps.max(), len(utterances), utterances[0].values.shape[1]), np.float32)
    labels = np.zeros((len(utterances), counts.max()), np.int64)
    for b, utterance in enumerate(utterances):
        values[: steps[b], b] = utterance.values
        labels[b, : counts[b]] = utterance.labels
    return values, steps, labels, counts
