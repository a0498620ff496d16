"""What a recogniser learns from: features and the labels that they say; and batches of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import checks
from .batch import Batch
from .epochs import Epochs, noisy
from .padded import padded as side_by_side


@dataclass(frozen=True)
class Utterance:
    """Features (T, F) float32, scaled; the labels (S,) that they say, numbers of symbols from 1, since 0 is none; and
    the same as a text, which may have symbols besides that no label stands for."""

    values: np.ndarray
    labels: np.ndarray
    text: str


class Bucketed(Epochs):
    """Endless batches of utterances; those of like length are side by side.

    Inputs are (T, B, F) float32 with ``lengths``; ``targets`` (B, S) with ``target_lengths`` (B,). ``noise`` is the
    deviation of normal noise on the scaled features. A subclass says what an epoch has, and makes it.

    Args:
        size: utterances of an epoch.
        of: the number of what these are made of; a position in another number is refused.

    Raises:
        ValueError: ``batch`` below 1, or above ``size``; ``seed`` below 0.
        TypeError: one of these that is no integer.
    """

    def __init__(self, size: int, of: int, batch: int, seed: int, noise: float) -> None:
        self._batch, self._noise = checks.integer(batch, "batch"), noise
        if size < batch:
            raise ValueError(f"batch: expected at most {size}, all that an epoch has, got {batch}")
        super().__init__(size // batch, seed, recordings=of, batch=batch)

    def _planned(self, rng: np.random.Generator) -> list[tuple[int, Any]]:
        """Of each utterance of an epoch its number of steps, about, and what it is made of."""
        raise NotImplementedError

    def _utterance(self, of: Any, rng: np.random.Generator) -> Utterance:
        raise NotImplementedError

    def _made(self, order: list[Any], step: int, rng: np.random.Generator) -> Batch:
        values, steps, labels, counts = padded([self._utterance(of, rng) for of in order[step]])
        values = noisy(values, steps, self._noise, rng)
        return Batch({"inputs": values, "targets": labels, "target_lengths": counts}, lengths=steps)

    def _shuffled(self, rng: np.random.Generator) -> list[Any]:
        """What each batch has."""
        planned = [of for _, of in sorted(self._planned(rng), key=lambda pair: pair[0])]
        start = int(
            rng.integers(len(planned) - self.steps_per_epoch * self._batch + 1)
        )  # others are left out each time
        batches = [planned[start + k * self._batch :][: self._batch] for k in range(self.steps_per_epoch)]
        return [batches[k] for k in rng.permutation(len(batches))]


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
    values, steps = side_by_side([utterance.values for utterance in utterances])
    counts = np.array([len(utterance.labels) for utterance in utterances])
    labels = np.zeros((len(utterances), counts.max()), np.int64)
    for b, utterance in enumerate(utterances):
        labels[b, : counts[b]] = utterance.labels
    return values, steps, labels, counts
