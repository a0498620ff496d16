"""Losses: ``loss, gradient = f(output, target)``, both for the mean, ready for the pullback of a model.

On a GPU the loss is a 0-d float64 array: ``float(loss)`` waits for it, and nothing else here does.
"""

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
    device = arrays.device_of(logits)
    library = arrays.library(device)
    logits = library.contiguous(checks.array(logits, "logits", None, (..., "V"), device=device))
    classes = logits.shape[-1]
    on_device = device == "cuda" and arrays.device_of(targets) == "cuda"
    ids: Any = targets if on_device else checks.integers(targets, "targets")
    if ids.shape != logits.shape[:-1]:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]}, as logits but its last axis, got {ids.shape}")
    count = ids.size
    if on_device:
        if ignore_index is not None:
            raise ValueError("ignore_index: expected None for targets on a GPU, which nobody here counts")
        ids = checks.indices(ids, "targets", classes, "the number of classes", device)
    else:
        counted = np.ones(ids.shape, bool)
        if ignore_index is not None:
            counted = ids != checks.integer(ignore_index, "ignore_index", -(2**63))
        count = np.count_nonzero(counted)
        if not count:
            raise ValueError(f"targets: expected at least one that is not ignore_index={ignore_index}, got none")
        checks.indices(np.where(counted, ids, 0), "targets", classes, "the number of classes")
        ids = library.indices(np.where(counted, ids, -1))
    loss, dlogits = library.cross_entropy(logits.reshape(-1, classes), ids.reshape(-1), int(count))
    return loss, dlogits.reshape(logits.shape)


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
    device = arrays.device_of(prediction)
    prediction = checks.array(prediction, "prediction", None, (...,), device=device)
    target = checks.array(target, "target", prediction.dtype, prediction.shape, device=device)
    return arrays.library(device).mse(prediction, target)
