"""Batches of series of different lengths, each padded with zeros to the longest of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch

_POOL = 8  # batches among whose series those of like length are put together


def padded(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Series (T, F) side by side: (longest T, B, F) float32, and their lengths (B,)."""
    lengths = np.array([len(values) for values in series], np.int64)
    side_by_side = np.zeros((int(lengths.max()), len(series), series[0].shape[1]), np.float32)
    for lane, values in enumerate(series):
        side_by_side[: len(values), lane] = values
    return side_by_side, lengths


class Padded:
    """Endless batches of series with their labels: each epoch has every series once, in an order of its own.

    A batch has ``inputs`` (T, B, F) float32, ``targets`` (B,) and ``lengths``; the last of an epoch may be smaller.
    Series of like length are put together, so that little is padding. The order depends on ``seed`` and the epoch's
    number alone, and so does the noise: normal, of deviation ``noise``, which is added to all values.

    Raises:
        ValueError: ``batch`` below 1, ``seed`` or ``noise`` below 0, or no series.
        TypeError: one of these of another type.
    """

    def __init__(
        self, series: Sequence[np.ndarray], labels: np.ndarray, batch: int, *, seed: int = 0, noise: float = 0.0
    ) -> None:
        self.batch = checks.integer(batch, "batch")
        self.seed = checks.integer(seed, "seed", 0)
        self.noise = checks.real(noise, "noise", "[0, inf)")
        if not len(series) == len(labels) > 0:
            raise ValueError(f"series: expected some, with a label each, got {len(series)} and {len(labels)} labels")
        self._series, self._labels = series, labels
        self._lengths = np.array([len(values) for values in series])
        self.steps_per_epoch = -(-len(series) // self.batch)
        self.epoch = self._next = 0
        self._order = self._ordered()

    def next(self) -> Batch:
        """The next batch."""
        chosen = self._order[self._next]
        inputs, lengths = padded([self._series[number] for number in chosen])
        if self.noise:
            drawn = keyed(self.seed, self.epoch, self._next).standard_normal(inputs.shape, np.float32)
            valid = np.arange(len(inputs))[:, None] < lengths
            inputs += np.float32(self.noise) * drawn * valid[..., None]
        self._next += 1
        if self._next == self.steps_per_epoch:
            self.epoch, self._next = self.epoch + 1, 0
            self._order = self._ordered()
        return Batch({"inputs": inputs, "targets": self._labels[chosen]}, lengths=lengths)

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; JSON holds it."""
        return {
            "epoch": self.epoch,
            "next": self._next,
            "series": len(self._series),
            "batch": self.batch,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict()``.

        Raises:
            ValueError, TypeError: it is a position in other series, in batches of another size or order, beyond their
                end, or none.
        """
        position = parsing.Fields(state, "state")
        for name, value in self.state_dict().items():
            if name not in ("epoch", "next") and position.take(name) != value:
                raise ValueError(f"data position: made for {name} {checks.shown(state[name])}, expected {value}")
        epoch, following = position.integer("epoch"), position.integer("next")
        if following >= self.steps_per_epoch:
            raise ValueError(f"state.next: expected less than {self.steps_per_epoch}, got {following}")
        self.epoch, self._next = epoch, following
        self._order = self._ordered()

    def _ordered(self) -> list[np.ndarray]:
        """Which series each batch of this epoch has."""
        rng = keyed(self.seed, self.epoch)
        order = rng.permutation(len(self._series))
        pool = _POOL * self.batch
        for begin in range(0, len(order), pool):
            some = order[begin : begin + pool]
            order[begin : begin + pool] = some[np.argsort(self._lengths[some], kind="stable")]
        batches = [order[begin : begin + self.batch] for begin in range(0, len(order), self.batch)]
        return [batches[number] for number in rng.permutation(len(batches))]
