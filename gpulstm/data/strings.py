"""Recordings of one digit each, joined into strings with gaps; and batches of such strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays.random import keyed
from .speech import Recordings, Spoken
from .speech_features import scaled, with_deltas
from .utterances import Bucketed, Utterance

COUNTS = (1, 2, 3, 4, 5)  # digits in the strings that are trained
LONG = 10  # digits in strings that are longer than any that is trained
_ROUNDS = {"validation": 2, "test": 5}  # how often a recording is in the strings that are measured on
_GAP = 10  # steps that a gap has at most: before, between and after digits


def joined(of: Recordings, which: Sequence[int], data: Spoken, rng: np.random.Generator) -> Utterance:
    """The recordings ``which``, one after another, with gaps that ``rng`` draws from the quiet steps of ``data``."""
    gaps = [
        data.quiet[rng.integers(len(data.quiet), size=size)] for size in rng.integers(_GAP + 1, size=len(which) + 1)
    ]
    pieces = [gaps[0]]
    for number, gap in zip(which, gaps[1:], strict=True):
        pieces += [of.values[number], gap]
    values = scaled(with_deltas(np.concatenate(pieces)), data.mean, data.deviation)
    digits = of.digits[list(which)]
    return Utterance(values, digits + 1, "".join(map(str, digits)))


def plan(size: int, counts: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """The numbers 0 .. size - 1 in a random order, cut into strings: as many of each of ``counts`` digits.

    Those left over, fewer than the sum of ``counts``, are others each time.
    """
    order = rng.permutation(size).tolist()
    sizes = rng.permutation(list(counts) * (size // sum(counts))).tolist()
    ends = np.cumsum(sizes).tolist()
    return [order[end - count : end] for count, end in zip(sizes, ends, strict=True)]


def fixed(of: Recordings, counts: Sequence[int], rounds: int, data: Spoken) -> list[Utterance]:
    """Strings to measure on, the same always: every recording once in each of ``rounds``, but for those left over."""
    rng = keyed(rounds, *counts)
    return [joined(of, which, data, rng) for _ in range(rounds) for which in plan(len(of), counts, rng)]


class Strings(Bucketed):
    """Batches of strings of the training part of ``data``: others in every epoch."""

    def __init__(self, data: Spoken, batch: int, *, seed: int = 0, noise: float = 0.0) -> None:
        self._data = data
        size = len(data.train)
        super().__init__(len(COUNTS) * (size // sum(COUNTS)), size, batch, seed, noise)

    def _planned(self, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
        train = self._data.train
        return [(sum(len(train.values[k]) for k in which), which) for which in plan(len(train), COUNTS, rng)]

    def _utterance(self, of: list[int], rng: np.random.Generator) -> Utterance:
        return joined(self._data.train, of, self._data, rng)


class Digits:
    """Strings of spoken digits as the speech task takes them."""

    symbols = tuple("0123456789")
    rate = 0

    def __init__(self, spoken: Spoken) -> None:
        self.spoken = spoken
        self.source, self.digest, self.notes = spoken.source, spoken.digest, spoken.notes
        self.mean, self.deviation = spoken.mean, spoken.deviation

    def describe(self) -> str:
        return self.spoken.describe()

    def batches(self, batch: int, seed: int, noise: float) -> Bucketed:
        return Strings(self.spoken, batch, seed=seed, noise=noise)

    def validation_utterances(self) -> list[Utterance]:
        return fixed(self.spoken.validation, COUNTS, _ROUNDS["validation"], self.spoken)

    def test_utterances(self) -> dict[str, list[Utterance]]:
        """Strings like those trained, and longer ones."""
        test, rounds = self.spoken.test, _ROUNDS["test"]
        return {"": fixed(test, COUNTS, rounds, self.spoken), "_long": fixed(test, (LONG,), rounds, self.spoken)}
