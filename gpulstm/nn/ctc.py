"""The CTC loss: the labels of a sequence are known, but not the steps at which they are said.

Graves et al. 2006, "Connectionist temporal classification". The arithmetic is that of
:mod:`gpulstm_kernels.cpu.alignments`, NumPy's where those kernels do not run, or on a GPU that of ``kernels/ctc.cu``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulstm_kernels.memory import empty

from .. import arrays, checks, dispatch


def ctc(
    logits: Any,
    targets: Any,
    input_lengths: Any = None,
    target_lengths: Any = None,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[float, np.ndarray]:
    """Minus the log-probability of all alignments of each sequence's labels, in nats, and the gradient of the mean.

    An alignment says one label or ``blank`` a step; without repetitions and then without blanks it is the labels. The
    mean is that of ``torch.nn.functional.ctc_loss``: over sequences, each divided by the number of its labels (at least
    1). The softmax over classes is part of this loss: torch's takes log-probabilities, this one logits, and gives
    their gradient. Sums are float64 whatever the dtype, and the same bits on any number of threads.

    Args:
        logits: (T, B, V) float32 or float64.
        targets: labels (B, S), integers in 0..V-1 but ``blank``, whatever past a sequence's own; or all in one row,
            (sum(target_lengths),). They and lengths lie on the CPU, where they are checked, also for logits on a GPU.
        input_lengths: steps of each sequence (B,), 0..T; None: T.
        target_lengths: labels of each sequence (B,), 0 for none; None: S.
        blank: the class that says no label.
        zero_infinity: a sequence that no alignment fits counts as a loss of 0, with a gradient of zeros.

    Returns:
        The loss as a float and dlogits (T, B, V), of the dtype of logits and zero past a sequence's length. NaN or +inf
        logits give a NaN loss; -inf is a class that cannot be said, and where that leaves no alignment the loss is
        infinite and its gradient holds NaN.

    Raises:
        ValueError: shapes that do not fit, a label out of range, lengths out of range; a sequence with fewer steps than
            labels, blanks between equal ones included, unless ``zero_infinity``.
        TypeError: logits, targets or lengths of another kind.
    """
    device = arrays.device_of(logits)
    logits = checks.array(logits, "logits", None, ("T", "B", "V"), device=device)
    logits = arrays.library(device).contiguous(logits)
    steps, batch, classes = logits.shape
    blank = check_blank(blank, classes)
    zero_infinity = checks.flag(zero_infinity, "zero_infinity")
    if input_lengths is None:
        input_lengths = np.full(batch, steps)
    input_lengths = checks.lengths(input_lengths, batch, steps, name="input_lengths").astype(np.int64)
    labels, target_lengths = _in_rows(targets, target_lengths, batch)
    labels = _check_labels(labels, target_lengths, classes, blank)
    if not zero_infinity:
        _check_time(labels, target_lengths, input_lengths)
    scales = 1 / (batch * np.maximum(target_lengths, 1))
    arguments = logits, labels, input_lengths, target_lengths, scales, blank, zero_infinity
    if device == "cuda":
        from . import losses_cuda

        return losses_cuda.ctc(*arguments)
    if dispatch.select(device="cpu")[0].name == "numba_cpu":
        from gpulstm_kernels.cpu import alignments

        losses, dlogits = alignments.forward_backward(*arguments)
    else:
        losses, dlogits = _forward_backward(*arguments)
    return float(np.sum(losses * scales)), dlogits


def check_blank(blank: Any, classes: int) -> int:
    """``blank`` as an int, one of so many ``classes``."""
    result = checks.integer(blank, "blank", 0)
    if result >= classes:
        raise ValueError(f"blank: expected 0 <= blank < {classes}, the number of classes, got {checks.shown(blank)}")
    return result


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of the last axis, in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _in_rows(targets: Any, target_lengths: Any, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels as a row (B, S) a sequence, and how many of each count (B,) int64."""
    labels = checks.integers(targets, "targets")
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and len(labels) != batch):
        raise ValueError(f"targets: expected shape ({batch}, S) or (sum(target_lengths),), got {labels.shape}")
    if labels.ndim == 1 and target_lengths is None:
        raise ValueError(f"targets: expected shape ({batch}, S) without target_lengths, got {labels.shape}")
    longest = labels.shape[-1]
    if target_lengths is None:
        target_lengths = np.full(batch, longest)
    counts = checks.lengths(target_lengths, batch, longest, name="target_lengths", of="the number of labels")
    counts = counts.astype(np.int64)
    if labels.ndim == 2:
        return labels, counts
    if counts.sum() != longest:
        raise ValueError(f"targets: expected {counts.sum()} labels, the sum of target_lengths, got {longest}")
    rows = np.zeros((batch, int(counts.max())), labels.dtype)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = labels
    return rows, counts


def _check_labels(labels: np.ndarray, counts: np.ndarray, classes: int, blank: int) -> np.ndarray:
    """``labels`` as int64, with zeros for those that do not count."""
    counted = np.arange(labels.shape[1]) < counts[:, None]
    wrong = counted & ((labels < 0) | (labels >= classes) | (labels == blank))
    if wrong.any():
        b, k = (int(place) for place in np.argwhere(wrong)[0])
        raise ValueError(
            f"targets: expected labels in 0..{classes - 1} other than the blank {blank}, got {labels[b, k]} "
            f"in sequence {b}"
        )
    return np.where(counted, labels, 0).astype(np.int64)


def _check_time(labels: np.ndarray, counts: np.ndarray, input_lengths: np.ndarray) -> None:
    """Refuse a sequence that no alignment fits: a blank must stand between equal labels."""
    counted = np.arange(1, max(labels.shape[1], 1)) < counts[:, None]
    repeats = np.count_nonzero(counted & (labels[:, 1:] == labels[:, :-1]), axis=1)
    short = np.flatnonzero(counts + repeats > input_lengths)
    if short.size:
        b = int(short[0])
        raise ValueError(
            f"targets: expected at most {input_lengths[b]} labels and blanks between equal ones in sequence {b}, "
            f"which has as many steps, got {counts[b]} labels and {repeats[b]} such blanks"
        )


def _forward_backward(
    logits: np.ndarray,
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    scales: np.ndarray,
    blank: int,
    zero_infinity: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`gpulstm_kernels.cpu.alignments.forward_backward` as the paper prints it, a step of the batch at a time.

    States are blank, label 0, blank, label 1, ..., blank. Each may follow itself and the one before; and, a label, the
    one two before, unless the two are equal.
    """
    (steps, batch), longest = logits.shape[:2], targets.shape[1]
    rows, none = np.arange(batch), -np.inf
    said = np.full((batch, 2 * longest + 1), blank)
    said[:, 1::2] = targets
    skips = np.full((batch, 2 * longest + 3), none)  # onto a state from two before; two more, past the end
    skips[:, 3:-2:2] = np.where(targets[:, 1:] != targets[:, :-1], 0, none)
    before = np.full((steps + 1, batch, 2 * longest + 3), none)  # two more, ahead of the first
    before[0, :, 2] = 0
    after = np.full((batch, 2 * longest + 3), none)  # two more, past the end
    dlogits = empty(logits.shape, logits.dtype)
    counted = np.arange(steps)[:, None] < input_lengths
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        log_p = log_softmax(np.where(counted[:, :, None], logits, 0))
        emitted = log_p[:, rows[:, None], said]
        for t in range(steps):
            stay, follow, skip = before[t, :, 2:], before[t, :, 1:-1], before[t, :, :-2] + skips[:, :-2]
            before[t + 1, :, 2:] = emitted[t] + np.logaddexp(np.logaddexp(stay, follow), skip)
        last = 2 + 2 * target_lengths
        log_all = np.logaddexp(before[input_lengths, rows, last], before[input_lengths, rows, last - 1])
        for t in range(steps - 1, -1, -1):
            ends = np.flatnonzero(input_lengths == t + 1)
            after[ends, 2 * target_lengths[ends]] = 0
            stay, follow, skip = after[:, :-2], after[:, 1:-1], after[:, 2:] + skips[:, 2:]
            rest = np.logaddexp(np.logaddexp(stay, follow), skip)
            gradient = np.exp(log_p[t])
            np.subtract.at(gradient, (rows[:, None], said), np.exp(before[t + 1, :, 2:] + rest - log_all[:, None]))
            dlogits[t] = gradient * scales[:, None]
            after[:, :-2] = rest + emitted[t]
    if zero_infinity:
        counted &= log_all != none
        log_all = np.where(log_all == none, 0, log_all)
    dlogits[~counted] = 0
    return -log_all, dlogits
