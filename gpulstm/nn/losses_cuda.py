"""The arithmetic of :mod:`gpulstm.nn.losses` on a GPU: each loss is a 0-d float64 array there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.cuda import contiguous, empty, launch, total

_FILE = "kernels/network"
_WARP = 32  # threads, which share a row of logits


def cross_entropy(logits: Any, ids: Any, count: int) -> tuple[Any, Any]:
    """The mean over ``count`` rows, and its gradient; an id of -1 does not count."""
    rows, classes = logits.shape
    dlogits = empty(logits.shape, logits.dtype)
    losses = empty((rows,), np.float64 if logits.dtype == np.float64 else np.float32)
    arguments = (logits, ids, dlogits, losses, count, rows, classes)
    launch(_FILE, "cross_entropy", (logits.dtype,), rows * _WARP, arguments)
    return total([losses], over=count), dlogits


def mse(prediction: Any, target: Any) -> tuple[Any, Any]:
    """The mean over all elements, and its gradient."""
    dtype, count = prediction.dtype, prediction.size
    difference = empty(prediction.shape, prediction.dtype)
    launch(_FILE, "subtract", (dtype,), count, (contiguous(prediction), contiguous(target), difference, count))
    loss = total([difference], squares=True, over=count)
    launch(_FILE, "mse_gradient", (dtype,), count, (difference, count))
    return loss, difference
