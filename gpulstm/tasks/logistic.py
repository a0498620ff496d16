"""Logistic regression on features of whole series: the linear model that a classifier of series stands beside.

In NumPy alone, float64. Features are the mean and deviation of each channel, those of its differences from step to
step, and, as a second set with these, the channel itself at :data:`POINTS` moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Features = Callable[[Sequence[np.ndarray]], np.ndarray]
POINTS = 12
PENALTIES = (1e-3, 1e-2, 1e-1)
_STEPS = 400
_MOST = 4000  # features of the second set; with more there is the first alone


def summary_features(series: Sequence[np.ndarray]) -> np.ndarray:
    """Of each series (T, F): mean, deviation, and mean and deviation of its absolute differences: (N, 4·F) float64."""
    rows = []
    for values in series:
        values = values.astype(np.float64)
        steps = np.abs(np.diff(values, axis=0)) if len(values) > 1 else np.zeros_like(values)
        rows.append(np.concatenate([values.mean(0), values.std(0), steps.mean(0), steps.std(0)]))
    return np.stack(rows)


def flat_features(series: Sequence[np.ndarray]) -> np.ndarray:
    """:func:`summary_features`, and each series at :data:`POINTS` moments, evenly from its first step to its last,
    interpolated linearly: (N, (4 + POINTS)·F) float64."""
    rows = []
    for values in series:
        at = np.linspace(0, len(values) - 1, POINTS)
        before = np.minimum(at.astype(int), max(0, len(values) - 2))
        after = np.minimum(before + 1, len(values) - 1)
        share = (at - before)[:, None]
        rows.append(((1 - share) * values[before] + share * values[after]).ravel())
    return np.concatenate([summary_features(series), np.stack(rows)], axis=1)


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression: ``weight`` (D, K), ``bias`` (K,), features' ``mean`` and ``scale`` (D,)."""

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fitted(cls, features: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> Logistic:
        """The one with the least ``mean cross-entropy + penalty/2 |weight|²`` on ``features`` (N, D), which are scaled.

        Newton's method with the fixed bound ``XᵀX/2N + penalty`` in the place of the Hessian (Böhning 1992,
        "Multinomial logistic regression algorithm"), which is diagonal in the coordinates of X's singular vectors, and
        with Nesterov's momentum.
        """
        mean, scale = features.mean(0), features.std(0)
        scale = np.where(scale > 0, scale, 1)
        u, size, vt = np.linalg.svd((features - mean) / scale, full_matrices=False)
        x = u * size  # its columns have the mean 0, so that the bias stands apart
        bound = (size**2 / (2 * len(x)) + penalty)[:, None]
        targets = np.eye(classes)[labels]
        weight = ahead = np.zeros((x.shape[1], classes))
        bias = bias_ahead = np.zeros(classes)
        for step in range(_STEPS):
            error = targets - _softmax(x @ ahead + bias_ahead)
            new = ahead + (x.T @ error / len(x) - penalty * ahead) / bound
            new_bias = bias_ahead + 2 * error.mean(0)
            momentum = step / (step + 3)
            ahead, bias_ahead = new + momentum * (new - weight), new_bias + momentum * (new_bias - bias)
            weight, bias = new, new_bias
        return cls(vt.T @ weight, bias, mean, scale)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Of each class (N, K), for ``features`` (N, D)."""
        return _softmax((features - self.mean) / self.scale @ self.weight + self.bias)


def predicted(
    train: Sequence[np.ndarray],
    labels: np.ndarray,
    validation: Sequence[np.ndarray],
    validation_labels: np.ndarray,
    test: Sequence[np.ndarray],
    classes: int,
) -> np.ndarray:
    """The class (N,) of each series of ``test``, by that of several regressions which does best in validation.

    Each is fitted to ``train`` alone. Best is the most right answers, then the least cross-entropy.
    """
    best: tuple[tuple[float, float], Logistic, Features] | None = None
    features: Features
    for features in (summary_features, flat_features):
        own, others = features(train), features(validation)
        if features is flat_features and own.shape[1] > _MOST:
            continue
        for penalty in PENALTIES:
            model = Logistic.fitted(own, labels, classes, penalty)
            probable = model.probabilities(others)
            right = probable[np.arange(len(probable)), validation_labels]
            score = float(np.mean(probable.argmax(1) == validation_labels)), float(np.mean(np.log(right + 1e-300)))
            if best is None or score > best[0]:
                best = score, model, features
    assert best is not None
    _, model, features = best
    return model.probabilities(features(test)).argmax(1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
