"""The CTC loss, by kernels and in NumPy: as torch's, finite differences, all alignments, extremes, bad input."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import gpulstm
from gpulstm import arrays, nn

RNG = np.random.default_rng(11)
CLOSE: dict[str, dict[str, float]] = {
    "float32": {"rtol": 2e-7, "atol": 1e-9},  # the gradient is rounded once
    "float64": {"rtol": 1e-11, "atol": 1e-13},
}


@pytest.fixture(params=["reference", pytest.param("numba_cpu", marks=pytest.mark.slow)], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with gpulstm.use_backend(request.param), arrays.poison():
        yield request.param


def problem(
    steps: int, batch: int, classes: int, longest: int, dtype: str = "float64", blank: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Random logits and labels, ragged on both sides, that fit; the first sequence has no labels."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, batch)
    lengths[0], lengths[-1] = 0, longest
    labels = rng.integers(0, classes - 1, (batch, longest))
    labels[labels >= blank] += 1
    needed = np.minimum(2 * lengths, steps)
    return {
        "logits": (3 * rng.standard_normal((steps, batch, classes))).astype(dtype),
        "targets": labels,
        "input_lengths": rng.integers(needed, steps + 1),
        "target_lengths": lengths,
        "blank": blank,
    }


def torchs(p: dict[str, Any]) -> tuple[float, np.ndarray]:
    """In float64, of the same logits."""
    given = {"input_lengths": np.full(p["logits"].shape[1], len(p["logits"]))} | p
    logits = torch.from_numpy(given.pop("logits").astype("f8")).requires_grad_()
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    loss = torch.nn.functional.ctc_loss(logits.log_softmax(2), **tensors)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("blank", [0, 2, 4])
@pytest.mark.parametrize(("steps", "batch", "longest"), [(1, 1, 0), (1, 2, 1), (7, 3, 3), (40, 9, 17)])
def test_it_is_torchs(steps: int, batch: int, longest: int, blank: int, dtype: str) -> None:
    p = problem(steps, batch, 5, longest, dtype, blank, seed=steps)
    p["input_lengths"][-1] = steps
    loss, dlogits = nn.ctc(**p)
    expected, gradient = torchs(p)
    assert isinstance(loss, float)
    assert dlogits.dtype == dtype
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(dlogits, gradient, **CLOSE[dtype])


def test_many_classes_and_labels_are_torchs() -> None:
    p = problem(90, 3, 70, 40, seed=3)
    loss, dlogits = nn.ctc(**p)
    expected, gradient = torchs(p)
    np.testing.assert_allclose(loss, expected, rtol=1e-11)
    np.testing.assert_allclose(dlogits, gradient, **CLOSE["float64"])


def test_gradient_by_differences() -> None:
    p = problem(5, 3, 4, 2)
    _, dlogits = nn.ctc(**p)
    for index in np.ndindex(dlogits.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = p["logits"].copy()
            moved[index] += step
            ends.append(nn.ctc(**p | {"logits": moved})[0])
        assert abs((ends[0] - ends[1]) / 2e-6 - dlogits[index]) < 1e-8


def test_it_sums_all_alignments() -> None:
    """The definition: every path of classes that is the labels once repetitions, then blanks, are gone."""
    steps, classes = 5, 3
    logits = RNG.standard_normal((steps, 1, classes))
    log_p = torch.from_numpy(logits).log_softmax(2).numpy()[:, 0]
    by_labels: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(classes), repeat=steps):
        labels = tuple(label for label, _ in itertools.groupby(path) if label != 1)
        by_labels[labels] = by_labels.get(labels, 0) + float(np.exp(log_p[np.arange(steps), path].sum()))
    assert (0, 0) in by_labels
    for labels, probability in by_labels.items():
        targets = np.array([labels], dtype=int)
        loss, _ = nn.ctc(logits, targets, blank=1)
        np.testing.assert_allclose(loss, -np.log(probability) / max(len(labels), 1), rtol=1e-12)


@pytest.mark.parametrize("kind", ["int16", "uint8", "int64"])
def test_targets_in_one_row_and_of_any_integers(kind: str) -> None:
    p = problem(12, 4, 5, 5)
    expected = nn.ctc(**p)
    counted = np.arange(5) < p["target_lengths"][:, None]
    for targets in (p["targets"], p["targets"][counted], np.where(counted, p["targets"], 99)):
        loss, dlogits = nn.ctc(**p | {"targets": targets.astype(kind)})
        assert loss == expected[0]
        np.testing.assert_array_equal(dlogits, expected[1])


def test_lengths_left_out_are_all() -> None:
    logits, targets = RNG.standard_normal((9, 2, 4)), np.array([[1, 2, 2], [3, 1, 3]])
    loss, dlogits = nn.ctc(logits, targets)
    full = nn.ctc(logits, targets, [9, 9], [3, 3])
    assert loss == full[0]
    np.testing.assert_array_equal(dlogits, full[1])
    swapped = np.ascontiguousarray(logits.swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_array_equal(nn.ctc(swapped, targets)[1], dlogits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_sequences_are_stable(dtype: str) -> None:
    """4,000 steps of a model that is sure of itself and wrong: the alignments have probabilities of e^-100000."""
    logits = (20 * np.random.default_rng(0).standard_normal((4000, 1, 6))).astype(dtype)
    targets = np.random.default_rng(1).integers(1, 6, (1, 300))
    loss, dlogits = nn.ctc(logits, targets)
    expected, gradient = torchs({"logits": logits, "targets": targets, "target_lengths": np.array([300])})
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert -np.log(1e-300) < loss * 300  # of what no float64 holds
    np.testing.assert_allclose(dlogits, gradient, rtol=1e-6, atol=1e-10)  # logarithms of 1e5 have places of 1e-11


def test_padding_may_hold_nan_and_gets_zeros() -> None:
    p = problem(9, 4, 5, 4)
    p["input_lengths"][1] = 6
    expected = nn.ctc(**p)
    past = np.arange(9)[:, None] >= p["input_lengths"]
    p["logits"][past] = np.nan
    loss, dlogits = nn.ctc(**p)
    assert loss == expected[0]
    np.testing.assert_array_equal(dlogits, expected[1])
    np.testing.assert_array_equal(dlogits[past], 0)


def test_zero_steps_and_no_labels_cost_nothing() -> None:
    logits = RNG.standard_normal((4, 2, 3))
    loss, dlogits = nn.ctc(logits, np.array([[1], [1]]), [0, 4], [0, 1])
    alone, gradient = nn.ctc(logits[:, 1:], np.array([[1]]))
    np.testing.assert_allclose(loss, alone / 2, rtol=1e-14)
    np.testing.assert_array_equal(dlogits[:, 0], 0)
    np.testing.assert_allclose(dlogits[:, 1:], gradient / 2, rtol=1e-13)


def test_what_does_not_fit_may_count_as_zero() -> None:
    logits = RNG.standard_normal((4, 3, 5))
    targets, lengths = np.array([[1, 1, 1, 2], [1, 2, 3, 4], [3, 3, 4, 0]]), np.array([4, 4, 3])
    loss, dlogits = nn.ctc(logits, targets, [4, 3, 4], lengths, zero_infinity=True)
    alone, gradient = nn.ctc(logits[:, 2:], targets[2:, :3])
    np.testing.assert_allclose(loss, alone / 3, rtol=1e-14)
    np.testing.assert_array_equal(dlogits[:, :2], 0)
    np.testing.assert_allclose(dlogits[:, 2:], gradient / 3, rtol=1e-13)


def test_classes_that_cannot_be_said() -> None:
    logits = np.zeros((3, 1, 3))
    logits[:, :, 2] = -np.inf
    loss, dlogits = nn.ctc(logits, np.array([[1]]))
    np.testing.assert_allclose(loss, -np.log(6 / 8))
    np.testing.assert_array_equal(dlogits[:, :, 2], 0)
    assert nn.ctc(logits, np.array([[2]]))[0] == np.inf
    loss, dlogits = nn.ctc(logits, np.array([[2]]), zero_infinity=True)
    assert loss == 0
    np.testing.assert_array_equal(dlogits, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_model_is_nan(value: float) -> None:
    logits = np.zeros((3, 2, 3), "f4")
    logits[1, 1, 2] = value
    assert np.isnan(nn.ctc(logits, np.array([[1], [1]]))[0])
    assert np.isnan(nn.ctc(logits, np.array([[1], [1]]), zero_infinity=True)[0])


@pytest.mark.slow
def test_the_same_bits_on_any_number_of_threads() -> None:
    p = problem(200, 7, 40, 30, "float32")
    before = gpulstm.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            gpulstm.set_num_threads(count)
            found.append(nn.ctc(**p))
    finally:
        gpulstm.set_num_threads(before)
    for loss, dlogits in found[1:]:
        assert loss == found[0][0]
        np.testing.assert_array_equal(dlogits, found[0][1])


Z = np.zeros((4, 2, 3), "f4")
Y = np.array([[1, 2], [2, 1]])
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: nn.ctc(Z[0], Y), ValueError, "logits: expected shape (T, B, V), got (2, 3)"),
    (lambda: nn.ctc(Z, Y[:1]), ValueError, "targets: expected shape (2, S) or (sum(target_lengths),), got (1, 2)"),
    (lambda: nn.ctc(Z, Y[0]), ValueError, "targets: expected shape (2, S) without target_lengths, got (2,)"),
    (lambda: nn.ctc(Z, Y[0], None, [1, 2]), ValueError, "targets: expected 3 labels, the sum of target_lengths, got 2"),
    (
        lambda: nn.ctc(Z, Y, blank=2),
        ValueError,
        "targets: expected labels in 0..2 other than the blank 2, got 2 in sequence 0",
    ),
    (lambda: nn.ctc(Z, Y + 1), ValueError, "other than the blank 0, got 3 in sequence 0"),
    (lambda: nn.ctc(Z, -Y), ValueError, "other than the blank 0, got -1 in sequence 0"),
    (lambda: nn.ctc(Z, Y, blank=3), ValueError, "blank: expected 0 <= blank < 3, the number of classes, got 3"),
    (lambda: nn.ctc(Z, Y, [4, 5]), ValueError, "input_lengths: expected 0 <= length <= 4, the number of steps, got 5"),
    (lambda: nn.ctc(Z, Y, None, [1]), ValueError, "target_lengths: expected shape (2,), one a sequence, got (1,)"),
    (
        lambda: nn.ctc(Z, Y, None, [1, 3]),
        ValueError,
        "target_lengths: expected 0 <= length <= 2, the number of labels, got 3",
    ),
    (
        lambda: nn.ctc(Z, np.array([[1, 2], [1, 1]]), [4, 2]),
        ValueError,
        "targets: expected at most 2 labels and blanks between equal ones in sequence 1, which has as many steps, got "
        "2 labels and 1 such blanks",
    ),
    (lambda: nn.ctc(Z, Y, [0, 4]), ValueError, "targets: expected at most 0 labels and blanks"),
    (lambda: nn.ctc(Z, Y, zero_infinity=1), TypeError, "zero_infinity: expected True or False"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:60] for *_, message in BAD])
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
