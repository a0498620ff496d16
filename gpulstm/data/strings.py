"""Recordings of one digit each, joined into strings with gaps; and batches of such strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch
from .speech import Recordings, Spoken
from .speech_features import scaled, with_deltas

COUNTS = (1, 2, 3, 4, 5)  # digits in the strings that are trained
_GAP = 10  # steps that a gap has at most: before, between and after digits


@dataclass(frozen=True)
class String:
    """A string: its features (T, 3·F) float32, scaled, and its labels (S,), each a digit and 1, since 0 is no label."""

    values: np.ndarray
    labels: np.ndarray


def joined(of: Recordings, which: Sequence[int], data: Spoken, rng: np.random.Generator) -> String:
    """The recordings ``which``, one after another, with gaps that ``rng`` draws from the quiet steps of ``data``."""
    gaps = [
        data.quiet[rng.integers(len(data.quiet), size=size)] for size in rng.integers(_GAP + 1, size=len(which) + 1)
    ]
    pieces = [gaps[0]]
    for number, gap in zip(which, gaps[1:], strict=True):
        pieces += [of.values[number], gap]
    values = scaled(with_deltas(np.concatenate(pieces)), data.mean, data.deviation)
    return String(values, of.digits[list(which)] + 1)


def plan(size: int, counts: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """The numbers 0 .. size - 1 in a random order, cut into strings: as many of each of ``counts`` digits.

    Those left over, fewer than the sum of ``counts``, are others each time.
    """
    order = rng.permutation(size).tolist()
    sizes = rng.permutation(list(counts) * (size // sum(counts))).tolist()
    ends = np.cumsum(sizes).tolist()
    return [order[end - count : end] for count, end in zip(sizes, ends, strict=True)]


def fixed(of: Recordings, counts: Sequence[int], rounds: int, data: Spoken) -> list[String]:
    """Strings to measure on, the same always: every recording once in each of ``rounds``, but for those left over."""
    rng = keyed(rounds, *counts)
    return [joined(of, which, data, rng) for _ in range(rounds) for which in plan(len(of), counts, rng)]


def padded(strings: Sequence[String]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (T, B, F) float32 and labels (B, S) int64 with zeros behind what is shorter, and the lengths of both."""
    steps = np.array([len(string.values) for string in strings])
    counts = np.array([len(string.labels) for string in strings])
    values = np.zeros((steps.max(), len(strings), strings[0].values.shape[1]), np.float32)
    labels = np.zeros((len(strings), counts.max()), np.int64)
    for b, string in enumerate(strings):
        values[: steps[b], b] = string.values
        labels[b, : counts[b]] = string.labels
    return values, steps, labels, counts


class Strings:
    """Endless batches of strings, made of the training part of ``data``: others in every epoch.

    Inputs are (T, B, F) float32 with ``lengths``; ``targets`` (B, S) with ``target_lengths`` (B,). Strings of like
    length are side by side. All follows from ``seed``, the epoch's number and the batch's. ``noise`` is the deviation
    of normal noise on the scaled features.

    Raises:
        ValueError: ``batch`` below 1, or above the number of strings of an epoch; ``seed`` below 0.
        TypeError: one of these that is no integer.
    """

    def __init__(self, data: Spoken, batch: int, *, seed: int = 0, noise: float = 0.0) -> None:
        self.batch, self.seed = checks.integer(batch, "batch"), checks.integer(seed, "seed", 0)
        self._data, self._noise = data, noise
        strings = len(COUNTS) * (len(data.train) // sum(COUNTS))
        self.steps_per_epoch = strings // batch
        if not self.steps_per_epoch:
            raise ValueError(f"batch: expected at most {strings}, the strings of an epoch, got {batch}")
        self.epoch = self._number = 0
        self._shuffle()

    def next(self) -> Batch:
        """The next batch; every one is ``fresh``."""
        rng = keyed(self.seed, self.epoch, self._number)
        train = self._data.train
        strings = [joined(train, which, self._data, rng) for which in self._plan[self._number]]
        values, steps, labels, counts = padded(strings)
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
        return {
            "epoch": self.epoch,
            "number": self._number,
            "recordings": len(self._data.train),
            "batch": self.batch,
            "seed": self.seed,
        }

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
        """Which recordings the strings of each batch of this epoch have."""
        train, rng = self._data.train, keyed(self.seed, self.epoch)
        strings = plan(len(train), COUNTS, rng)
        strings.sort(key=lambda which: sum(len(train.values[number]) for number in which))
        start = int(rng.integers(len(strings) - self.steps_per_epoch * self.batch + 1))  # others are left out each time
        batches = [strings[start + k * self.batch :][: self.batch] for k in range(self.steps_per_epoch)]
        self._plan = [batches[k] for k in rng.permutation(len(batches))]
