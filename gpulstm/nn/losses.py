"""Losses: ``loss, gradient = f(output, target)``, both for the mean, ready for the pullback of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import arrays, checks


def cross_entropy(logits: Any, targets: Any, ignore_index: int | None = None) -> tuple[float, np.ndarray]:
    """``mean(log Σ exp(logits) - logits[target])`` over all positions, in nats, and its gradient.

    Args:
        logits: (..., V) float32 or float64, for instance (T, B, V).
        targets: (...) integers in 0..V-1.
        ignore_index: positions with this target (any integer) count neither in the mean nor in the gradient.

    Returns:
        The loss as a float and dlogits (..., V), of the dtype of logits. NaN or +inf logits give a NaN loss.

    Raises:
        ValueError: shapes that do not fit, empty logits, a target out of range, or no target that counts.
        TypeError: logits or targets of another kind.
    """
    logits = checks.array(logits, "logits", None, (..., "V"))
    targets = checks.integers(targets, "targets")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets: expected shape {logits.shape[:-1]}, as logits but its last axis, got {targets.shape}"
        )
    classes = logits.shape[-1]
    flat_logits, ids = logits.reshape(-1, classes), targets.reshape(-1)
    counted = np.ones(ids.shape, bool)
    if ignore_index is not None:
        counted = ids != checks.integer(ignore_index, "ignore_index", -(2**63))
        if not counted.any():
            raise ValueError(f"targets: expected at least one that is not ignore_index={ignore_index}, got none")
        ids = np.where(counted, ids, 0)
    ids = checks.indices(ids, "targets", classes, "the number of classes")

    rows = np.arange(len(ids))
    scale = 1 / np.count_nonzero(counted)
    dlogits = arrays.empty(flat_logits.shape, logits.dtype)  # also the scratch for every step on the way
    with np.errstate(invalid="ignore", over="ignore"):  # of inf - inf the loss tells by being NaN
        np.subtract(flat_logits, flat_logits.max(axis=1, keepdims=True), out=dlogits)
        picked = dlogits[rows, ids]
        np.exp(dlogits, out=dlogits)
        total = arrays.gemm(dlogits, np.ones((classes, 1), logits.dtype))  # row sums, faster than sum(1)
        losses = np.log(total[:, 0]) - picked
        dlogits *= scale / total
    dlogits[rows, ids] -= scale
    if ignore_index is not None:
        losses = losses[counted]
        dlogits[~counted] = 0
    return float(losses.mean(dtype=np.float64)), dlogits.reshape(logits.shape)


def mse(prediction: Any, target: Any) -> tuple[float, np.ndarray]:
    """``mean((prediction - target)²)`` over all elements, and its gradient.

    Args:
        prediction: (...) float32 or float64.
        target: the same shape and dtype; nothing is broadcast.

    Returns:
        The loss as a float and dprediction, of the shape and dtype of prediction.

    Raises:
        ValueError: shapes that differ, or no elements.
        TypeError: dtypes that differ, or are not floating point.
    """
    prediction = checks.array(prediction, "prediction", None, (...,))
    target = checks.array(target, "target", prediction.dtype, prediction.shape)
    difference = np.subtract(prediction, target, out=arrays.empty(prediction.shape, prediction.dtype))
    loss = float(np.mean(difference * difference, dtype=np.float64))
    difference *= 2 / difference.size
    return loss, difference
