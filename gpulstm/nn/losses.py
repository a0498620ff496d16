"""Losses: ``loss, gradient = f(output, target)``, both for the mean, ready for the pullback of a model.

On a GPU the loss is a 0-d float64 array: ``float(loss)`` waits for it, and nothing else here does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulstm_kernels.memory import empty

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
            raise ValueError("ignore_index: expected None for targets on a GPU, whose values are not looked at")
        ids = checks.indices(ids, "targets", classes, "the number of classes", device)
    else:
        counted = np.ones(ids.shape, bool)
        if ignore_index is not None:
            counted = ids != checks.integer(ignore_index, "ignore_index", -(2**63))
        count = np.count_nonzero(counted)
        if not count:
            raise ValueError(f"targets: expected at least one that is not ignore_index={ignore_index}, got none")
        ids = checks.indices(np.where(counted, ids, 0), "targets", classes, "the number of classes")
        ids = library.indices(np.where(counted, ids, -1))  # signed by now, whatever targets are
    arguments = logits.reshape(-1, classes), ids.reshape(-1), int(count)
    if device == "cuda":
        from . import losses_cuda

        loss, dlogits = losses_cuda.cross_entropy(*arguments)
    else:
        loss, dlogits = _cross_entropy(*arguments)
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
    if device == "cuda":
        from . import losses_cuda

        return losses_cuda.mse(prediction, target)
    return _mse(prediction, target)


def _cross_entropy(logits: np.ndarray, ids: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """The mean over ``count`` rows of log Σ exp(logits) - logits[id], and its gradient; an id of -1 does not count."""
    rows, counted = np.arange(len(ids)), ids >= 0
    dlogits = empty(logits.shape, logits.dtype)  # also the scratch for every step on the way
    with np.errstate(invalid="ignore", over="ignore"):  # of inf - inf the loss tells by being NaN
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=dlogits)
        picked = dlogits[rows, ids]
        np.exp(dlogits, out=dlogits)
        total = arrays.gemm(dlogits, np.ones((logits.shape[1], 1), logits.dtype))  # row sums, faster than sum(1)
        losses = np.log(total[:, 0]) - picked
        dlogits *= (1 / count) / total
    dlogits[rows, ids] -= 1 / count
    if count < len(ids):
        losses = losses[counted]
        dlogits[~counted] = 0
    return float(losses.mean(dtype=np.float64)), dlogits


def _mse(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of (prediction - target)², and its gradient."""
    difference = np.subtract(prediction, target, out=empty(prediction.shape, prediction.dtype))
    loss = float(np.mean(difference * difference, dtype=np.float64))
    difference *= 2 / difference.size
    return loss, difference
