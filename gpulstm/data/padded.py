"""Batches of series of different lengths, each padded with zeros to the longest of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import checks
from .batch import Batch
from .epochs import Epochs, noisy

_POOL = 8  # batches among whose series those of like length are put together


def padded(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Series (T, F) side by side: (longest T, B, F) float32, and their lengths (B,)."""
    lengths = np.array([len(values) for values in series], np.int64)
    side_by_side = np.zeros((int(lengths.max()), len(series), series[0].shape[1]), np.float32)
    for lane, values in enumerate(series):
        side_by_side[: len(values), lane] = values
    return side_by_side, lengths


class Padded(Epochs):
    """Endless batches of series with their labels: each epoch has every series once, in an order of its own.

    A batch has ``inputs`` (T, B, F) float32, ``targets`` (B,) and ``lengths``; the last of an epoch may be smaller.
    Series of like length are put together, so that little is padding. ``noise`` is the deviation of normal noise on
    all values.

    Raises:
        ValueError: ``batch`` below 1, ``seed`` or ``noise`` below 0, or no series.
        TypeError: one of these of another type.
    """

    def __init__(
        self, series: Sequence[np.ndarray], labels: np.ndarray, batch: int, *, seed: int = 0, noise: float = 0.0
    ) -> None:
        self._batch = checks.integer(batch, "batch")
        self._noise = checks.real(noise, "noise", "[0, inf)")
        if not len(series) == len(labels) > 0:
            raise ValueError(f"series: expected some, with a label each, got {len(series)} and {len(labels)} labels")
        self._series, self._labels = series, labels
        self._lengths = np.array([len(values) for values in series])
        super().__init__(-(-len(series) // batch), seed, series=len(series), batch=batch)

    def _made(self, order: list[np.ndarray], step: int, rng: np.random.Generator) -> Batch:
        inputs, lengths = padded([self._series[number] for number in order[step]])
        inputs = noisy(inputs, lengths, self._noise, rng)
        return Batch({"inputs": inputs, "targets": self._labels[order[step]]}, lengths=lengths)

    def _shuffled(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Which series each batch has."""
        order = rng.permutation(len(self._series))
        pool = _POOL * self._batch
        for begin in range(0, len(order), pool):
            some = order[begin : begin + pool]
            order[begin : begin + pool] = some[np.argsort(self._lengths[some], kind="stable")]
        batches = [order[begin : begin + self._batch] for begin in range(0, len(order), self._batch)]
        return [batches[number] for number in rng.permutation(len(batches))]
