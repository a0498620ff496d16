"""The CTC loss and its gradient: all ways to align labels with the steps of a sequence, added up in logarithms.

Graves et al. 2006, "Connectionist temporal classification", equations 6 to 16, here of the softmax of logits. Of L
labels there are L + 1 states of blank and L of the labels between them, which lie apart: blank k comes before label k.
With e the log-probability of what a state emits at a step, and ``skip`` -inf where two labels are equal, else 0::

    blank[k]  <-  e_blank    + log(exp blank[k] + exp label[k-1])
    label[k]  <-  e[label k] + log(exp label[k] + exp blank[k] + exp(label[k-1] + skip[k]))

and the same from the last step back, where what a state emits is added after the sum. The probability that a state is
passed at a step is exp(forward + backward - log of all). All of that is float64, a register of states at a time. A
sequence is one thread's from its first step to its last, so that no sum depends on how many threads there are.

Scratch of a thread, in float64: the trellis (T + 1, 2, width), blanks before labels, whose first row is what holds
before the first step; rows of ``width`` for emissions, skips and the backward blanks and labels; a row of classes; the
log-normalisers (T,). The first register of a row and all that lies behind the last state are -inf; the first place of
the emissions holds, in between, a number that all lanes share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..cells.activations import exp, log, maximum
from ..memory import empty
from . import tuning
from .codegen import activations  # noqa: F401 - which implements those
from .codegen.compilation import inline, kernel
from .codegen.row_sums import load_splat, store_lane_sum
from .codegen.vector import constant_like, lanes, load, store
from .crew.team import is_aborted, share
from .crew.thread_pool import crew

_LEAST = float(np.finfo(np.float64).min)  # instead of -inf where -inf - -inf would be NaN
_COST = 16  # multiply-adds in the time of one exp or log of a register, or more


class Scratch(NamedTuple):
    """Of all threads, first axis: see above."""

    trellis: np.ndarray
    states: np.ndarray
    classes: np.ndarray
    norms: np.ndarray


@inline
def _log_sum_2(a, b):
    """log(exp a + exp b) lane by lane; -inf where both are."""
    most = maximum(maximum(a, b), _LEAST)
    return log(exp(a - most) + exp(b - most)) + most


@inline
def _log_sum_3(a, b, c):
    """log(exp a + exp b + exp c) lane by lane; -inf where all are."""
    most = maximum(maximum(maximum(a, b), c), _LEAST)
    return log(exp(a - most) + exp(b - most) + exp(c - most)) + most


@inline
def _log_softmax_norm(row, classes, to):
    """log Σ exp(row) to ``to``, a row of one element. ``row``: padded with -inf to whole registers."""
    at, lane = row.ctypes.data, lanes(row)
    most = -np.inf
    for v in range(classes):
        if row[v] > most:
            most = row[v]
    total = constant_like(load(row, at, lane), 0.0)
    for v in range(0, classes, lane):
        total = total + exp(load(row, at + v * 8, lane) - most)
    store_lane_sum(total, 1.0, to.ctypes.data)
    to[0] = np.log(to[0]) + most


@inline
def _read(row, logits, t, b):
    """The logits of a step in float64."""
    for v in range(logits.shape[2]):
        row[v] = logits[t, b, v]


@inline
def _emit(emissions, first, row, norm, targets, b, length):
    """The log-probabilities of the labels of a sequence in the states that begin at ``first``."""
    for k in range(length):
        emissions[first + k] = row[targets[b, k]] - norm


@inline
def _forward(scratch, logits, targets, b, steps, length, blank, rank, barrier):
    """Fill the trellis of a sequence; the log-probability of all alignments, NaN if the call is aborted."""
    trellis, row, norms = scratch.trellis[rank], scratch.classes[rank], scratch.norms[rank]
    emissions, skips = scratch.states[rank, 0], scratch.states[rank, 1]
    lane, width, classes = lanes(row), emissions.size, logits.shape[2]
    line = width * 8
    emissions[:] = -np.inf
    skips[:] = -np.inf
    for k in range(1, length):
        if targets[b, k] != targets[b, k - 1]:
            skips[lane + k] = 0.0
    trellis[0] = -np.inf
    trellis[0, 0, lane] = 0.0
    for t in range(steps):
        if is_aborted(barrier, rank, _COST * (classes + 7 * length + 3)):
            return np.nan
        _read(row, logits, t, b)
        _log_softmax_norm(row, classes, norms[t : t + 1])
        _emit(emissions, lane, row, norms[t], targets, b, length)
        emissions[0] = row[blank] - norms[t]
        of_blank = load_splat(row, emissions.ctypes.data)
        emissions[0] = -np.inf
        trellis[t + 1, 0, :lane] = -np.inf
        trellis[t + 1, 1, :lane] = -np.inf
        before = trellis.ctypes.data + 2 * t * line + lane * 8
        after = before + 2 * line
        for k in range(0, (length + 1) * 8, lane * 8):
            blanks, labels = load(row, before + k, lane), load(row, before + line + k, lane)
            shifted = load(row, before + line + k - 8, lane)
            skipped = shifted + load(row, skips.ctypes.data + lane * 8 + k, lane)
            emitted = load(row, emissions.ctypes.data + lane * 8 + k, lane)
            store(row, _log_sum_2(blanks, shifted) + of_blank, after + k, lane)
            store(row, _log_sum_3(labels, blanks, skipped) + emitted, after + line + k, lane)
    a, b = trellis[steps, 0, lane + length], trellis[steps, 1, lane + length - 1]
    most = max(a, b, _LEAST)
    return np.log(np.exp(a - most) + np.exp(b - most)) + most


@inline
def _backward(scratch, logits, dlogits, targets, b, steps, length, blank, total, scale, rank, barrier):
    """The gradient of a sequence from its trellis, times ``scale``."""
    trellis, row, norms = scratch.trellis[rank], scratch.classes[rank], scratch.norms[rank]
    emissions, skips = scratch.states[rank, 0], scratch.states[rank, 1]
    lane, width, classes = lanes(row), emissions.size, logits.shape[2]
    line = width * 8
    scratch.states[rank, 2:] = -np.inf
    scratch.states[rank, 2, lane + length] = 0.0
    later = scratch.states[rank, 2].ctypes.data + lane * 8
    for t in range(steps - 1, -1, -1):
        if is_aborted(barrier, rank, _COST * (classes + 9 * length + 3)):
            return
        _read(row, logits, t, b)
        _emit(emissions, lane, row, norms[t], targets, b, length)
        emissions[0] = row[blank] - norms[t]
        of_blank = load_splat(row, emissions.ctypes.data)
        forward = trellis.ctypes.data + 2 * (t + 1) * line + lane * 8
        passed = constant_like(of_blank, 0.0)
        for k in range(0, (length + 1) * 8, lane * 8):
            blanks, labels = load(row, later + k, lane), load(row, later + line + k, lane)
            next_blanks, next_labels = load(row, later + k + 8, lane), load(row, later + line + k + 8, lane)
            skipped = next_labels + load(row, skips.ctypes.data + lane * 8 + k + 8, lane)
            emitted = load(row, emissions.ctypes.data + lane * 8 + k, lane)
            blanks = _log_sum_2(blanks, labels)
            labels = _log_sum_3(labels, next_blanks, skipped)
            passed = passed + exp(load(row, forward + k, lane) + blanks - total)
            store(row, exp(load(row, forward + line + k, lane) + labels - total), forward + line + k, lane)
            store(row, blanks + of_blank, later + k, lane)
            store(row, labels + emitted, later + line + k, lane)
        for v in range(0, classes, lane):
            store(row, exp(load(row, row.ctypes.data + v * 8, lane) - norms[t]), row.ctypes.data + v * 8, lane)
        store_lane_sum(passed, 1.0, emissions.ctypes.data)
        row[blank] -= emissions[0]
        emissions[0] = -np.inf
        for k in range(length):
            row[targets[b, k]] -= trellis[t + 1, 1, lane + k]
        for v in range(classes):
            dlogits[t, b, v] = row[v] * scale
        row[classes:] = -np.inf


class Call(NamedTuple):
    """The arguments of :func:`forward_backward`, and what it returns."""

    logits: np.ndarray
    dlogits: np.ndarray
    losses: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    scales: np.ndarray


@kernel
def _forward_backward(call, blank, zero_infinity, scratch, rank, size, barrier):
    logits, dlogits, targets = call.logits, call.dlogits, call.targets
    first, last = share(logits.shape[1], rank, size)
    scratch.classes[rank] = -np.inf
    for b in range(first, last):
        steps, length, scale = call.input_lengths[b], call.target_lengths[b], call.scales[b]
        total = _forward(scratch, logits, targets, b, steps, length, blank, rank, barrier)
        if zero_infinity and total == -np.inf:
            call.losses[b], steps = 0.0, 0
        else:
            call.losses[b] = -total
            _backward(scratch, logits, dlogits, targets, b, steps, length, blank, total, scale, rank, barrier)
        dlogits[steps:, b] = 0


def forward_backward(
    logits: np.ndarray,
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    scales: np.ndarray,
    blank: int,
    zero_infinity: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The CTC loss of every sequence, and the gradient of their sum weighted by ``scales``.

    Args:
        logits: (T, B, V), C-contiguous.
        targets: labels (B, S) int64, which are read up to the length of each.
        input_lengths, target_lengths: (B,) int64.
        scales: (B,) float64.
        blank: the class of no label.
        zero_infinity: whether an infinite loss counts as 0, with a gradient of zeros.

    Returns:
        The losses (B,) float64 and dlogits, of the shape and dtype of logits; zeros past a sequence's length.
    """
    steps, batch, classes = logits.shape
    longest = targets.shape[1]
    work = _COST * steps * batch * (classes + 16 * longest + 6)
    threads = max(1, min(crew.size, batch, work // tuning.current.gemm_per_thread))
    lane, double = lanes(np.dtype(np.float64)), np.float64
    width = (longest // lane + 3) * lane
    scratch = Scratch(
        empty((threads, steps + 1, 2, width), double),
        empty((threads, 4, width), double),
        empty((threads, -(-classes // lane) * lane), double),
        empty((threads, steps), double),
    )
    losses, dlogits = empty((batch,), double), empty(logits.shape, logits.dtype)
    call = Call(logits, dlogits, losses, targets, input_lengths, target_lengths, scales)
    crew.run(_forward_backward, logits.dtype, (call, blank, zero_infinity, scratch), threads)
    return losses, dlogits
