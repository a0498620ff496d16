"""Decoding of CTC's logits: against all paths, against the loss, ragged batches, ties, bad input."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

import gpulstm
from gpulstm import nn

RNG = np.random.default_rng(5)


def said(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def all_labels(logits: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The log-probability of all that (T, V) logits can say: every path, added up."""
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        probability = float(np.exp(log_p[np.arange(len(logits)), path].sum()))
        labels = said(path, blank)
        found[labels] = found.get(labels, 0) + probability
    return {labels: float(np.log(probability)) for labels, probability in found.items()}


@pytest.mark.parametrize(("steps", "classes", "blank"), [(1, 2, 1), (3, 1, 0), (4, 3, 0), (5, 3, 2), (4, 4, 1)])
def test_a_wide_beam_finds_all_labels(steps: int, classes: int, blank: int) -> None:
    logits = 2 * RNG.standard_normal((steps, 3, classes))
    lengths = np.array([steps, steps - 1, 0])
    labels, log_p = nn.beam(logits, lengths, blank, width=10**6)
    for b in range(3):
        expected = all_labels(logits[: lengths[b], b], blank)
        found = dict(zip((tuple(part.tolist()) for part in labels[b]), log_p[b].tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert all(abs(found[key] - expected[key]) < 1e-12 for key in expected)
        assert (np.diff(log_p[b]) <= 0).all()
        assert all(part.dtype == np.int64 for part in labels[b])


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_a_narrow_beam_finds_no_more_than_there_is(width: int) -> None:
    """What is dropped and found again, and what is kept without the prefix before it, counts once."""
    for seed in range(20):
        logits = 1.5 * np.random.default_rng(seed).standard_normal((6, 1, 3))
        expected = all_labels(logits[:, 0], 0)
        (labels,), (log_p,) = nn.beam(logits, width=width)
        found = [tuple(part.tolist()) for part in labels]
        assert len(set(found)) == len(found) <= width
        assert all(value <= expected[key] + 1e-12 for key, value in zip(found, log_p, strict=True))
        if width == 20:
            assert found[0] == max(expected, key=lambda key: expected[key])


def test_beam_is_the_algorithm_as_printed() -> None:
    """Hannun et al. 2014, algorithm 1: a dict of prefixes, in probabilities."""
    logits = 2 * RNG.standard_normal((25, 1, 5))
    p = np.exp(logits[:, 0])
    p /= p.sum(axis=1, keepdims=True)
    width = 4
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    for t in range(25):
        found: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_label) in kept.items():
            for c in range(5):
                end = prefix[-1:] == (c,)
                if c == 0:
                    found.setdefault(prefix, [0, 0])[0] += p[t, c] * (in_blank + in_label)
                else:
                    longer = found.setdefault((*prefix, c), [0, 0])
                    longer[1] += p[t, c] * (in_blank if end else in_blank + in_label)
                    if end:
                        found.setdefault(prefix, [0, 0])[1] += p[t, c] * in_label
        best = sorted(found, key=lambda prefix: -sum(found[prefix]))[:width]
        kept = {prefix: (found[prefix][0], found[prefix][1]) for prefix in best}
    (labels,), (log_p,) = nn.beam(logits, width=width)
    assert [tuple(part.tolist()) for part in labels] == list(kept)
    np.testing.assert_allclose(log_p, [np.log(sum(value)) for value in kept.values()], rtol=1e-12)


def test_beam_finds_what_greedy_misses() -> None:
    """Of two steps the best path is two blanks, 0.36; the other three say the label."""
    logits = np.log(np.array([[[0.6, 0.4]]] * 2))
    (path,), log_p = nn.greedy(logits)
    assert path.tolist() == []
    np.testing.assert_allclose(log_p, [np.log(0.36)])
    (labels,), (values,) = nn.beam(logits, width=2)
    assert [part.tolist() for part in labels] == [[1], []]
    np.testing.assert_allclose(np.exp(values), [0.64, 0.36])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("blank", [0, 3])
def test_greedy_is_the_best_path(blank: int, dtype: str) -> None:
    logits = (3 * RNG.standard_normal((30, 4, 4))).astype(dtype)
    lengths = [30, 0, 1, 17]
    labels, log_p = nn.greedy(logits, lengths, blank)
    for b, length in enumerate(lengths):
        rows = logits[:length, b].astype("f8")
        path = tuple(rows.argmax(axis=1).tolist())
        assert tuple(labels[b].tolist()) == said(path, blank)
        best = sum(row.max() - np.log(np.exp(row).sum()) for row in rows)
        np.testing.assert_allclose(log_p[b], best, rtol=1e-12)


def test_log_probabilities_are_those_of_the_loss() -> None:
    logits = 6 * RNG.standard_normal((40, 3, 5))
    with gpulstm.use_backend("reference"):
        labels, log_p = nn.beam(logits, [40, 3, 25], width=200)
        for b, length in enumerate([40, 3, 25]):
            best = labels[b][0]
            loss, _ = nn.ctc(logits[:length, b : b + 1], best[None])
            assert -1e-12 < -log_p[b][0] - loss * max(len(best), 1) < 1e-2


def test_padding_may_hold_nan_and_a_batch_is_its_sequences() -> None:
    logits = 2 * RNG.standard_normal((12, 3, 6)).astype("f4")
    lengths = np.array([7, 12, 1])
    padded = np.where(np.arange(12)[:, None, None] < lengths[:, None], logits, np.nan)
    labels, log_p = nn.beam(padded.astype("f4"), lengths, width=7)
    for b, length in enumerate(lengths):
        (alone,), (values,) = nn.beam(logits[:length, b : b + 1], width=7)
        assert [part.tolist() for part in labels[b]] == [part.tolist() for part in alone]
        np.testing.assert_allclose(log_p[b], values, rtol=1e-12)
        assert nn.greedy(padded, lengths)[0][b].tolist() == nn.greedy(logits[:length, b : b + 1])[0][0].tolist()


def test_classes_that_cannot_be_said_are_not() -> None:
    logits = np.zeros((3, 1, 3))
    logits[:, :, 1] = -np.inf
    (labels,), (log_p,) = nn.beam(logits)
    assert sorted(part.tolist() for part in labels) == [[], [2], [2, 2]]
    np.testing.assert_allclose(np.exp(log_p).sum(), 1)


Z = np.zeros((4, 2, 3), "f4")
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: nn.greedy(Z[0]), ValueError, "logits: expected shape (T, B, V), got (2, 3)"),
    (lambda: nn.greedy(Z, blank=3), ValueError, "blank: expected 0 <= blank < 3, the number of classes, got 3"),
    (lambda: nn.greedy(Z, [4, 5]), ValueError, "lengths: expected 0 <= length <= 4, the number of steps, got 5"),
    (lambda: nn.beam(Z, width=0), ValueError, "width: expected an integer >= 1, got 0"),
    (
        lambda: nn.beam(Z + np.nan),
        ValueError,
        "logits: expected numbers that have a softmax, got [nan, nan, nan]",
    ),
    (lambda: nn.greedy(Z - np.inf), ValueError, "logits: expected numbers that have a softmax"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:60] for *_, message in BAD])
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
