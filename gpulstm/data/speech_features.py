"""Features of speech by step: what is put beside cepstral coefficients, and how all are scaled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_REACH = 2  # steps to either side that a slope is taken over


def deltas(values: np.ndarray) -> np.ndarray:
    """The slope of each column of ``values`` (T, F) at each step, by regression over two steps to either side.

    Σ k·(v[t+k] − v[t−k]) / (2·Σ k²) for k = 1, 2, with the first and the last step repeated beyond the ends: Young et
    al., The HTK Book (2006), equation 5.16.
    """
    steps = len(values)
    padded = np.pad(values, ((_REACH, _REACH), (0, 0)), mode="edge")
    slope = np.zeros_like(values)
    for k in range(1, _REACH + 1):
        slope += k * (padded[_REACH + k :][:steps] - padded[_REACH - k :][:steps])
    return slope / np.asarray(2 * sum(k * k for k in range(1, _REACH + 1)), values.dtype)


def with_deltas(values: np.ndarray) -> np.ndarray:
    """``values`` (T, F), their slopes, and the slopes of these: (T, 3·F)."""
    first = deltas(values)
    return np.concatenate([values, first, deltas(first)], axis=1)


def scale(recordings: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (F,) float64 of each column over the steps of all ``recordings``; no deviation is 0."""
    steps = np.concatenate(recordings).astype(np.float64)
    deviation = steps.std(axis=0)
    return steps.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


def scaled(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """``values`` (T, F), each column with its mean taken away and divided by its deviation, float32."""
    return ((values - mean) / deviation).astype(np.float32)
