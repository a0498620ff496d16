"""The arithmetic of :mod:`gpulstm.nn.losses` on a GPU: each loss is a 0-d float64 array there."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.process import current

from ..arrays.cuda import contiguous, empty, from_host, launch, total

_FILE, _CTC = "kernels/network", "kernels/ctc"
_THREADS = 256
_WARP = 32  # threads, which share a row of logits


def cross_entropy(logits: Any, ids: Any, count: int, smoothing: float) -> tuple[Any, Any]:
    """The mean over ``count`` rows, and its gradient; an id of -1 does not count."""
    rows, classes = logits.shape
    dlogits = empty(logits.shape, logits.dtype)
    losses = _losses((rows,), logits.dtype)
    arguments = (logits, ids, dlogits, losses, *_halves(smoothing), count, rows, classes)
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


def huber(prediction: Any, target: Any, delta: float) -> tuple[Any, Any]:
    """The mean over all elements, and its gradient."""
    dtype, count = prediction.dtype, prediction.size
    gradient, losses = empty(prediction.shape, dtype), _losses(prediction.shape, dtype)
    arguments = (contiguous(prediction), contiguous(target), gradient, losses, *_halves(delta), count)
    launch(_FILE, "huber", (dtype,), count, arguments)
    return total([losses], over=count), gradient


def quantile(prediction: Any, target: Any, levels: np.ndarray) -> tuple[Any, Any]:
    """The mean over all elements and levels, and its gradient."""
    dtype, count = prediction.dtype, target.size
    gradient, losses = empty(prediction.shape, dtype), _losses(prediction.shape, dtype)
    arrays = contiguous(prediction), contiguous(target), gradient, losses
    for k, level in enumerate(levels):
        launch(_FILE, "quantile", (dtype,), count, (*arrays, *_halves(level), k, len(levels), count))
    return total([losses], over=prediction.size), gradient


def ctc(
    logits: Any,
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    scales: np.ndarray,
    blank: int,
    zero_infinity: bool,
) -> tuple[Any, Any]:
    """The sum of the losses of all sequences weighted by ``scales``, and its gradient; all but logits (T, B, V) come
    from the host, as :func:`gpulstm_kernels.cpu.alignments.forward_backward` has them.
    """
    (steps, batch, classes), longest, dtype = logits.shape, targets.shape[1], logits.dtype
    firsts, nexts = _chains(targets, target_lengths, classes)
    ints = targets, input_lengths, target_lengths, firsts, nexts
    labels, lengths, counts, heads, links = (from_host(value.astype(np.int32)) for value in ints)
    weights = from_host(scales)
    norms, totals, losses = (empty(shape, np.float64) for shape in ((steps, batch), (batch,), (batch,)))
    trellis = empty((batch, steps + 1, 2, longest + 1), np.float64)
    later = empty((batch, 2, 2, longest + 1), np.float64)
    counted, dlogits = empty((batch,), np.int32), empty(logits.shape, dtype)
    rows, sizes = steps * batch, (steps, batch, classes, longest)

    def walk(name: str, *arguments: Any) -> None:
        """A block a sequence."""
        current().launch(Kernel(_CTC, name, (dtype,)), (batch, 1, 1), (_THREADS, 1, 1), (logits, norms, *arguments))

    launch(_CTC, "ctc_norms", (dtype,), rows * _WARP, (logits, norms, rows, classes))
    found = trellis, totals, losses, counted
    walk("ctc_forward", labels, lengths, counts, weights, *found, blank, int(zero_infinity), *sizes)
    walk("ctc_backward", labels, counts, totals, counted, trellis, later, blank, *sizes)
    arguments = (logits, norms, trellis, heads, links, counts, counted, weights, dlogits, blank, *sizes)
    launch(_CTC, "ctc_gradient", (dtype,), rows * _WARP, arguments)
    return total([losses]), dlogits


def _chains(targets: np.ndarray, counts: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each sequence the first label of a class (B, V), and of each label the next one of its class (B, S), or -1.

    So the gradient of a class is the sum of one thread, in the order of labels.
    """
    batch, longest = targets.shape
    rows, firsts, nexts = np.arange(batch), np.full((batch, classes), -1), np.full((batch, max(longest, 1)), -1)
    for k in range(longest - 1, -1, -1):
        label = targets[:, k]
        nexts[:, k] = firsts[rows, label]
        firsts[rows, label] = np.where(k < counts, k, nexts[:, k])
    return firsts, nexts


def _losses(shape: tuple[int, ...], dtype: Any) -> Any:
    """A buffer for a loss a row or element, in the type that sums are held in."""
    return empty(shape, np.float64 if dtype == np.float64 else np.float32)


def _halves(number: float) -> tuple[float, float]:
    """Two float32 whose sum is ``number``: kernels take no other, and an array would have to be copied there."""
    first = float(np.float32(number))
    return first, float(number) - first
