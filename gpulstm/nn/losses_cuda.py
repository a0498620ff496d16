"""The arithmetic of :mod:`gpulstm.nn.losses` on a GPU: each loss is a 0-d float64 array there."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulstm_kernels.cuda.device.source import type_name

from ..arrays.cuda import contiguous, empty, launch, total

_FILE = "kernels/network"
_WARP = 32  # threads, which share a row of logits


def cross_entropy(logits: Any, ids: Any, count: int) -> tuple[Any, Any]:
    """The mean over ``count`` rows, and its gradient; an id of -1 does not count."""
    rows, classes = logits.shape
    dlogits = empty(logits.shape, logits.dtype)
    losses = empty((rows,), np.float64 if logits.dtype == np.float64 else np.float32)
    arguments = (logits, ids, dlogits, losses, count, rows, classes)
    launch(_FILE, f"cross_entropy<{type_name(logits.dtype)}>", rows * _WARP, arguments)
    return total([losses], over=count), dlogits


def mse(prediction: Any, target: Any) -> tuple[Any, Any]:
    """The mean over all elements, and its gradient."""
    name, count = type_name(prediction.dtype), prediction.size
    difference = empty(prediction.shape, prediction.dtype)
    launch(_FILE, f"subtract<{name}>", count, (contiguous(prediction), contiguous(target), difference, count))
    loss = total([difference], squares=True, over=count)
    launch(_FILE, f"mse_gradient<{name}>", count, (difference, count))
    return loss, difference
