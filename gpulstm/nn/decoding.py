"""From the logits of a model that was trained by :func:`gpulstm.nn.ctc` to labels: the best path, and beam search."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import arrays, checks
from .ctc import check_blank, log_softmax

_NOTHING, _NO_PARENT, _NO_LABEL = -1, -2, -1  # what a slot without a prefix holds; the last two, empty prefixes too


def greedy(logits: Any, lengths: Any = None, blank: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """The labels of each sequence's most probable path: of the most probable class at every step.

    Repetitions of a class are one label, and ``blank`` is none. Other paths of the same labels do not count here, so
    that these are not always the most probable labels: those :func:`beam` looks for.

    Args:
        logits: (T, B, V) float32 or float64; on a GPU they are copied from there.
        lengths: steps of each sequence (B,), 0..T; None: T.
        blank: the class that says no label.

    Returns:
        B arrays of labels, int64, and the log-probability of each one's path (B,) float64, of the softmax of logits.

    Raises:
        ValueError: shapes that do not fit, lengths or blank out of range, or logits without a softmax.
        TypeError: logits, lengths or blank of another kind.
    """
    log_p, lengths, blank = _log_probabilities(logits, lengths, blank)
    path = log_p.argmax(axis=2)
    counted = np.arange(len(path))[:, None] < lengths
    said = counted & (path != blank)
    said[1:] &= path[1:] != path[:-1]
    best = np.where(counted, log_p.max(axis=2), 0).sum(axis=0)
    return [path[said[:, b], b] for b in range(path.shape[1])], best


def beam(
    logits: Any, lengths: Any = None, blank: int = 0, width: int = 16
) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """Prefix beam search: the most probable labels of each sequence, all paths that say them added up.

    Of all labels so far the ``width`` most probable ones are kept after every step (Hannun et al. 2014, "First-pass
    large vocabulary continuous speech recognition using bi-directional recurrent DNNs", algorithm 1, without a language
    model). Where ``width`` is enough to keep all, log-probabilities are exact, as in :func:`gpulstm.nn.ctc`; else paths
    are missing from them.

    Args:
        logits: (T, B, V) float32 or float64; on a GPU they are copied from there.
        lengths: steps of each sequence (B,), 0..T; None: T.
        blank: the class that says no label.
        width: how many labels are kept.

    Returns:
        Of each sequence, the most probable first and ``width`` at most: arrays of labels, int64; and their
        log-probabilities, float64, of the softmax of logits.

    Raises:
        ValueError: shapes that do not fit, lengths, blank or width out of range, or logits without a softmax.
        TypeError: logits, lengths, blank or width of another kind.
    """
    log_p, lengths, blank = _log_probabilities(logits, lengths, blank)
    width = checks.integer(width, "width")
    steps, batch, classes = log_p.shape
    width = min(width, _prefixes(steps, classes - 1))
    checks.fits(8 * batch * width * (2 * classes + width), "width", width)
    tree = _Tree([_NO_PARENT] * batch, [_NO_LABEL] * batch, {})
    slots = np.empty((3, batch, width), np.int64)  # of each kept prefix its node, the one before, its last label
    slots[...] = np.reshape([_NOTHING, _NO_PARENT, _NO_LABEL], (3, 1, 1))
    slots[0, :, 0] = range(batch)
    ends = np.full((2, batch, width), -np.inf)  # log-probabilities of its paths that end in blank, and in a label
    ends[0, :, 0] = 0
    for t in range(int(lengths.max())):
        active = np.flatnonzero(t < lengths)
        slots[:, active], ends[:, active] = _step(tree, slots[:, active], ends[:, active], log_p[t, active], blank)
    return _read(tree, slots[0], np.logaddexp(*ends))


class _Tree(NamedTuple):
    """All prefixes that were ever kept. A node is a prefix; the first ones are the empty prefixes of the sequences.

    ``parents``, ``labels``: of each node the prefix before it and the label behind that; ``children``: the node of each
    (parent, label), so that what is dropped and found again is the same.
    """

    parents: list[int]
    labels: list[int]
    children: dict[tuple[int, int], int]

    def child(self, parent: int, label: int) -> int:
        """The node of a prefix and one more label."""
        node = self.children.setdefault((parent, label), len(self.parents))
        if node == len(self.parents):
            self.parents.append(parent)
            self.labels.append(label)
        return node


def _step(
    tree: _Tree, slots: np.ndarray, ends: np.ndarray, log_p: np.ndarray, blank: int
) -> tuple[np.ndarray, np.ndarray]:
    """``slots`` (3, B, W) and ``ends`` (2, B, W) after one more step, whose log-probabilities (B, V) are ``log_p``."""
    nodes, parents, last = slots
    (batch, width), classes, rows = nodes.shape, log_p.shape[1], np.arange(len(nodes))[:, None]
    said = last != _NO_LABEL
    again = np.where(said, log_p[rows, last], -np.inf)
    total = np.logaddexp(*ends)
    in_blank, in_label = total + log_p[:, blank, None], ends[1] + again
    longer = total[:, :, None] + log_p[:, None, :]  # by each label
    b, w = np.nonzero(said)
    longer[b, w, last[b, w]] = (ends[0] + again)[b, w]  # a label again after itself needs a blank between
    longer[:, :, blank] = -np.inf
    b, w, before = np.nonzero(parents[:, :, None] == nodes[:, None, :])  # kept, and so is the prefix before it
    label = last[b, w]
    in_label[b, w] = np.logaddexp(in_label[b, w], longer[b, before, label])
    longer[b, before, label] = -np.inf

    found = np.concatenate([np.logaddexp(in_blank, in_label), longer.reshape(batch, width * classes)], axis=1)
    kept = np.argpartition(-found, width - 1, axis=1)[:, :width]
    value, stays = found[rows, kept], kept < width
    possible = value > -np.inf
    source, label = np.where(stays, kept, (kept - width) // classes), (kept - width) % classes
    before = nodes[rows, source]
    new = np.where(stays, slots[:, rows, source], [before, before, label])
    for row, slot in np.argwhere(possible & ~stays).tolist():
        new[0, row, slot] = tree.child(int(before[row, slot]), int(label[row, slot]))
    new = np.where(possible, new, np.reshape([_NOTHING, _NO_PARENT, _NO_LABEL], (3, 1, 1)))
    in_blank = np.where(stays, in_blank[rows, source], -np.inf)
    return new, np.stack([in_blank, np.where(stays, in_label[rows, source], value)])


def _read(tree: _Tree, nodes: np.ndarray, log_p: np.ndarray) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """The labels of each node and their log-probabilities, the most probable first; without those of probability 0."""
    found: list[list[np.ndarray]] = []
    values = []
    for own, value in zip(nodes, log_p, strict=True):
        order = [w for w in np.argsort(-value, kind="stable") if value[w] > -np.inf]
        found.append([])
        for node in own[order].tolist():
            labels = []
            while tree.parents[node] != _NO_PARENT:
                labels.append(tree.labels[node])
                node = tree.parents[node]
            found[-1].append(np.array(labels[::-1], np.int64))
        values.append(value[order])
    return found, values


def _prefixes(steps: int, labels: int) -> int:
    """How many different labels so many steps can say at most, or 2**40 where that is less."""
    count, longest = 1, 1
    for _ in range(steps):
        longest *= labels
        count += longest
        if count >= 2**40 or not longest:
            break
    return min(count, 2**40)


def _log_probabilities(logits: Any, lengths: Any, blank: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Log-softmax (T, B, V) in float64, zeros past the lengths, which come checked, as blank does."""
    logits = checks.array(arrays.on_host(logits, "logits"), "logits", None, ("T", "B", "V"))
    steps, batch, classes = logits.shape
    blank = check_blank(blank, classes)
    lengths = np.full(batch, steps) if lengths is None else checks.lengths(lengths, batch, steps)
    counted = np.arange(steps)[:, None, None] < lengths[:, None]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        log_p = log_softmax(np.where(counted, logits, 0))
    broken = np.isnan(log_p).any(axis=2)
    if broken.any():
        t, b = (int(place) for place in np.argwhere(broken)[0])
        given = checks.shown(logits[t, b].tolist())
        raise ValueError(f"logits: expected numbers that have a softmax, got {given} at [{t}, {b}]")
    return log_p, lengths, blank
