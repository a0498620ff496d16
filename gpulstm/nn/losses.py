"""Losses: ``loss, gradient = f(output, target)``, both for the mean, ready for the pullback of a model.

On a GPU the loss is a 0-d float64 array: ``float(loss)`` waits for it, and nothing else here does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulstm_kernels.memory import empty

from .. import arrays, checks


def cross_entropy(
    logits: Any, targets: Any, ignore_index: int | None = None, label_smoothing: float = 0.0
) -> tuple[float, np.ndarray]:
    """``mean(log Σ exp(logits) - logits[target])`` over all positions, in nats, and its gradient.

    With label smoothing the target is no longer certain (Szegedy et al. 2016, "Rethinking the Inception architecture"):
    all V classes share ``label_smoothing`` of its probability, so that instead of ``logits[target]`` there is
    ``(1 - label_smoothing) logits[target] + label_smoothing mean(logits)``.

    Args:
        logits: (..., V) float32 or float64, for instance (T, B, V).
        targets: (...) integers in 0..V-1.
        ignore_index: positions with this target (any integer) count neither in the mean nor in the gradient.
        label_smoothing: the probability that classes share, in [0, 1].

    Returns:
        The loss as a float and dlogits (..., V), of the dtype of logits. NaN or +inf logits give a NaN loss.

    Raises:
        ValueError: shapes that do not fit, empty logits, a target out of range, no target that counts, or
            label_smoothing out of range.
        TypeError: logits, targets or label_smoothing of another kind.
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
    smoothing = checks.real(label_smoothing, "label_smoothing", "[0, 1]")
    arguments = logits.reshape(-1, classes), ids.reshape(-1), int(count), smoothing
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
    prediction, target, device = _pair(prediction, target)
    if device == "cuda":
        from . import losses_cuda

        return losses_cuda.mse(prediction, target)
    return _mse(prediction, target)


def huber(prediction: Any, target: Any, delta: float = 1.0) -> tuple[float, np.ndarray]:
    """``mean(d²/2 where |d| <= delta, else delta (|d| - delta/2))`` of ``d = prediction - target``, and its gradient.

    A square near 0 and a line beyond, so that outliers weigh less (Huber 1964, "Robust estimation of a location
    parameter"): ``torch.nn.functional.huber_loss``.

    Args:
        prediction: (...) float32 or float64.
        target: the same shape and dtype; nothing is broadcast.
        delta: where the line begins, above 0.

    Returns:
        The loss as a float and dprediction, of the shape and dtype of prediction.

    Raises:
        ValueError: shapes that differ, no elements, or delta not above 0.
        TypeError: dtypes that differ, or are not floating point; delta of another kind.
    """
    prediction, target, device = _pair(prediction, target)
    delta = checks.real(delta, "delta", "(0, inf)")
    if device == "cuda":
        from . import losses_cuda

        return losses_cuda.huber(prediction, target, delta)
    return _huber(prediction, target, delta)


def quantile(prediction: Any, target: Any, levels: Any) -> tuple[float, np.ndarray]:
    """``mean(max(q d, (q - 1) d))`` of ``d = target - prediction`` over all elements and levels q, and its gradient.

    The pinball loss: the prediction for which it is least is the quantile of level q of the target (Koenker and Bassett
    1978, "Regression quantiles"). Where d is 0, which is between two slopes, the gradient is 0.

    Args:
        prediction: (..., Q) float32 or float64, a quantile a level.
        target: (...), of the same dtype.
        levels: Q numbers in (0, 1): a list, a tuple or an array (Q,).

    Returns:
        The loss as a float and dprediction, of the shape and dtype of prediction.

    Raises:
        ValueError: shapes that do not fit, no elements, or a level out of range.
        TypeError: dtypes that differ, or are not floating point; levels of another kind.
    """
    device = arrays.device_of(prediction)
    prediction = checks.array(prediction, "prediction", None, (..., "Q"), device=device)
    target = checks.array(target, "target", prediction.dtype, prediction.shape[:-1], device=device)
    if not isinstance(levels, (list, tuple)) and not (isinstance(levels, np.ndarray) and levels.ndim == 1):
        raise TypeError(f"levels: expected several numbers in (0, 1), got {checks.shown(levels)}")
    shares = np.array([checks.real(level, "levels", "(0, 1)") for level in levels])
    if len(shares) != prediction.shape[-1]:
        raise ValueError(f"levels: expected {prediction.shape[-1]} numbers, one for each prediction, got {len(shares)}")
    if device == "cuda":
        from . import losses_cuda

        return losses_cuda.quantile(prediction, target, shares)
    return _quantile(prediction, target, shares)


def _pair(prediction: Any, target: Any) -> tuple[Any, Any, str]:
    """Two arrays of one shape and dtype, and the device that both are on."""
    device = arrays.device_of(prediction)
    prediction = checks.array(prediction, "prediction", None, (...,), device=device)
    return prediction, checks.array(target, "target", prediction.dtype, prediction.shape, device=device), device


def _cross_entropy(logits: np.ndarray, ids: np.ndarray, count: int, smoothing: float) -> tuple[float, np.ndarray]:
    """The mean over ``count`` rows, and its gradient; an id of -1 does not count."""
    rows, counted = np.arange(len(ids)), ids >= 0
    dlogits = empty(logits.shape, logits.dtype)  # also the scratch for every step on the way
    own, each = 1 - smoothing, smoothing / logits.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # of inf - inf the loss tells by being NaN
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=dlogits)
        picked = own * dlogits[rows, ids]
        if smoothing:
            picked += each * dlogits.sum(axis=1)
        np.exp(dlogits, out=dlogits)
        total = arrays.gemm(dlogits, np.ones((logits.shape[1], 1), logits.dtype))  # row sums, faster than sum(1)
        losses = np.log(total[:, 0]) - picked
        dlogits *= (1 / count) / total
    dlogits[rows, ids] -= own / count
    if smoothing:
        dlogits -= each / count
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


def _huber(prediction: np.ndarray, target: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
    """As :func:`huber`, with n = d cut to [-delta, delta]: the loss is n (d - n/2), its gradient n."""
    difference = prediction - target
    near = np.clip(difference, -delta, delta, out=empty(prediction.shape, prediction.dtype))
    loss = float(np.mean(near * (difference - near / 2), dtype=np.float64))
    near /= near.size
    return loss, near


def _quantile(prediction: np.ndarray, target: np.ndarray, levels: np.ndarray) -> tuple[float, np.ndarray]:
    """As :func:`quantile`, with the slope s at each prediction: the loss is -s d."""
    difference = target[..., None] - prediction
    levels = levels.astype(prediction.dtype)
    slope = empty(prediction.shape, prediction.dtype)
    slope[...] = np.where(difference > 0, -levels, np.where(difference < 0, 1 - levels, difference))
    loss = float(np.mean(-(slope * difference), dtype=np.float64))
    slope /= slope.size
    return loss, slope
