"""Losses: gradients by finite differences, values and gradients as torch's, extremes, bad input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from gpulstm import arrays, nn

RNG = np.random.default_rng(3)


def differences(loss: Any, value: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of ``loss(value)`` by central differences."""
    gradient = np.empty(value.shape)
    for index in np.ndindex(value.shape):
        above, below = value.copy(), value.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (loss(above) - loss(below)) / (2 * step)
    return gradient


@pytest.mark.parametrize("ignore_index", [None, -100, 2])
@pytest.mark.parametrize("shape", [(5,), (1, 1), (6, 4), (3, 2, 5)])
def test_cross_entropy_gradient(shape: tuple[int, ...], ignore_index: int | None) -> None:
    logits, targets = RNG.standard_normal(shape), np.array(RNG.integers(0, shape[-1], shape[:-1]))
    if targets.size > 1 and ignore_index == -100:
        targets.flat[1] = ignore_index
    if ignore_index is not None and targets.size > 1:
        targets.flat[0] = 0  # one at least counts
    elif ignore_index == 2:
        targets[...] = 0
    with arrays.poison():
        loss, dlogits = nn.cross_entropy(logits, targets, ignore_index)
    assert isinstance(loss, float)
    assert dlogits.shape == shape
    expected = differences(lambda z: nn.cross_entropy(z, targets, ignore_index)[0], logits)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ignore_index", [None, -1, 3])
def test_cross_entropy_is_torchs(ignore_index: int | None, dtype: str) -> None:
    logits = (RNG.standard_normal((7, 6, 30)) * 4).astype(dtype)
    targets = RNG.integers(0, 30, (7, 6))
    if ignore_index is not None:
        targets[2, 1:4] = ignore_index
    twin = torch.from_numpy(logits).requires_grad_()
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    torch_loss = torch.nn.functional.cross_entropy(
        twin.reshape(-1, 30), torch.from_numpy(targets).reshape(-1), **options
    )
    torch_loss.backward()
    loss, dlogits = nn.cross_entropy(logits, targets, ignore_index)
    close = {"rtol": 1e-5, "atol": 1e-7} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
    assert dlogits.dtype == dtype
    np.testing.assert_allclose(loss, torch_loss.item(), rtol=close["rtol"])
    np.testing.assert_allclose(dlogits, twin.grad, **close)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64"])
def test_cross_entropy_takes_every_integer(dtype: str) -> None:
    logits, targets = RNG.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    expected = nn.cross_entropy(logits, targets)
    loss, dlogits = nn.cross_entropy(logits, targets.astype(dtype))
    assert loss == expected[0]
    np.testing.assert_array_equal(dlogits, expected[1])
    assert nn.cross_entropy(logits, targets.astype(dtype), ignore_index=-100)[0] == loss


def test_unsigned_targets_are_ignored_alike() -> None:
    """Of so many classes that -1 would wrap around to one of them."""
    logits, targets = RNG.standard_normal((4, 300)), np.array([0, 4, 2, 4])
    expected = nn.cross_entropy(logits, targets, ignore_index=4)
    for dtype in ("uint8", "uint16", "uint64"):
        loss, dlogits = nn.cross_entropy(logits, targets.astype(dtype), ignore_index=4)
        assert loss == expected[0]
        np.testing.assert_array_equal(dlogits, expected[1])


def test_cross_entropy_is_stable() -> None:
    logits = np.array([[1e4, 0, -1e4], [-3e38, 0, 3e38]], np.float32)
    loss, dlogits = nn.cross_entropy(logits, np.array([0, 2]))
    assert loss == 0
    np.testing.assert_array_equal(dlogits, 0)
    loss, dlogits = nn.cross_entropy(logits[:1], np.array([1]))
    assert loss == 1e4
    np.testing.assert_array_equal(dlogits, [[1, -1, 0]])


def test_cross_entropy_of_a_masked_class_is_finite() -> None:
    loss, dlogits = nn.cross_entropy(np.array([[0.0, -np.inf, 0.0]]), np.array([0]))
    np.testing.assert_allclose(loss, np.log(2))
    np.testing.assert_allclose(dlogits, [[-0.5, 0, 0.5]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cross_entropy_of_a_broken_model_is_nan(value: float) -> None:
    logits = np.zeros((2, 3), np.float32)
    logits[0, 1] = value
    assert np.isnan(nn.cross_entropy(logits, np.array([0, 0]))[0])
    loss, dlogits = nn.cross_entropy(logits, np.array([7, 0]), ignore_index=7)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    np.testing.assert_array_equal(dlogits[0], 0)


def test_any_memory_layout_works() -> None:
    logits, targets = RNG.standard_normal((4, 3, 5)), RNG.integers(0, 5, (4, 3))
    loss, dlogits = nn.cross_entropy(logits, targets)
    for view, view_targets in ((np.asfortranarray(logits), np.asfortranarray(targets)),):
        view.flags.writeable = False
        view_targets.flags.writeable = False
        other_loss, other = nn.cross_entropy(view, view_targets)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-14)
        np.testing.assert_array_equal(other, dlogits)
    swapped = nn.cross_entropy(logits.swapaxes(0, 1), targets.T)[1]
    np.testing.assert_array_equal(swapped.swapaxes(0, 1), dlogits)


@pytest.mark.parametrize("shape", [(), (1,), (4, 3, 2)])
def test_mse_gradient(shape: tuple[int, ...]) -> None:
    prediction, target = np.array(RNG.standard_normal(shape)), np.array(RNG.standard_normal(shape))
    with arrays.poison():
        loss, gradient = nn.mse(prediction, target)
    assert isinstance(loss, float)
    expected = differences(lambda p: nn.mse(p, target)[0], prediction)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mse_is_torchs(dtype: str) -> None:
    prediction, target = RNG.standard_normal((2, 30, 4)).astype(dtype)
    twin = torch.from_numpy(prediction).requires_grad_()
    torch_loss = torch.nn.functional.mse_loss(twin, torch.from_numpy(target))
    torch_loss.backward()
    loss, gradient = nn.mse(prediction, target)
    rtol = 1e-5 if dtype == "float32" else 1e-12
    assert gradient.dtype == dtype
    np.testing.assert_allclose(loss, torch_loss.item(), rtol=rtol)
    np.testing.assert_allclose(gradient, twin.grad, rtol=rtol)


@pytest.mark.parametrize("ignore_index", [None, 3])
@pytest.mark.parametrize("smoothing", [0.1, 1.0, 1])
def test_smoothed_labels_are_torchs(smoothing: float, ignore_index: int | None) -> None:
    logits, targets = RNG.standard_normal((7, 30)) * 4, RNG.integers(0, 30, 7)
    targets[2] = 3
    twin = torch.from_numpy(logits).requires_grad_()
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    torch_loss = torch.nn.functional.cross_entropy(
        twin, torch.from_numpy(targets), label_smoothing=smoothing, **options
    )
    torch_loss.backward()
    with arrays.poison():
        loss, dlogits = nn.cross_entropy(logits, targets, ignore_index, smoothing)
    np.testing.assert_allclose(loss, torch_loss.item(), rtol=1e-12)
    np.testing.assert_allclose(dlogits, twin.grad, rtol=1e-12, atol=1e-14)
    expected = differences(lambda z: nn.cross_entropy(z, targets, ignore_index, smoothing)[0], logits)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("delta", [1.0, 0.3, 2])
@pytest.mark.parametrize("shape", [(), (1,), (4, 3, 20)])
def test_huber_is_torchs(shape: tuple[int, ...], delta: float, dtype: str) -> None:
    prediction, target = (np.array(2 * RNG.standard_normal(shape), dtype) for _ in range(2))
    twin = torch.from_numpy(prediction).requires_grad_()
    torch_loss = torch.nn.functional.huber_loss(twin, torch.from_numpy(target), delta=delta)
    torch_loss.backward()
    with arrays.poison():
        loss, gradient = nn.huber(prediction, target, delta)
    rtol = 1e-6 if dtype == "float32" else 1e-13
    assert isinstance(loss, float)
    assert gradient.dtype == dtype
    assert gradient.shape == shape
    np.testing.assert_allclose(loss, torch_loss.item(), rtol=rtol)
    np.testing.assert_allclose(gradient, twin.grad, rtol=rtol)
    if dtype == "float64":
        expected = differences(lambda p: nn.huber(p, target, delta)[0], prediction)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (1,), (4, 5)])
def test_quantile_gradient(shape: tuple[int, ...]) -> None:
    levels = [0.05, 0.5, 0.9]
    prediction, target = RNG.standard_normal((*shape, 3)), np.array(RNG.standard_normal(shape))
    with arrays.poison():
        loss, gradient = nn.quantile(prediction, target, levels)
    assert isinstance(loss, float)
    q, d = torch.tensor(levels), torch.from_numpy(target)[..., None] - torch.from_numpy(prediction)
    q = q.double()
    np.testing.assert_allclose(loss, torch.maximum(q * d, (q - 1) * d).mean().item(), rtol=1e-7)
    expected = differences(lambda p: nn.quantile(p, target, tuple(levels))[0], prediction)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)
    in_float32 = nn.quantile(prediction.astype("f4"), target.astype("f4"), np.array(levels))
    assert in_float32[1].dtype == np.float32
    np.testing.assert_allclose(in_float32[0], loss, rtol=1e-5)
    np.testing.assert_allclose(in_float32[1], gradient, rtol=1e-5)


def test_quantile_is_least_at_the_quantile() -> None:
    """Of 1, ..., 99 that of level 0.2 is 20, where a step to either side costs more."""
    target = np.arange(1.0, 100)
    losses = [nn.quantile(np.full((99, 1), float(value)), target, [0.2])[0] for value in range(1, 100)]
    assert np.argmin(losses) == 19
    assert nn.quantile(np.zeros((1, 2)), np.zeros(1), [0.1, 0.9])[1].tolist() == [[0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_other_losses_of_a_broken_model(value: float) -> None:
    prediction = np.array([[0, value]])
    for loss, gradient in (nn.huber(prediction, np.zeros((1, 2))), nn.quantile(prediction, np.zeros(1), [0.2, 0.4])):
        np.testing.assert_equal(loss, value)
        assert gradient[0, 0] == 0
        assert np.isnan(gradient[0, 1]) == np.isnan(value)


Z, Y = np.zeros((2, 3)), np.zeros(2, int)
BAD: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: nn.cross_entropy(Z.astype(int), Y),
        TypeError,
        "logits: expected dtype float32 or float64, got int64",
    ),
    (
        lambda: nn.cross_entropy(Z.astype(complex), Y),
        TypeError,
        "logits: expected dtype float32 or float64, got complex128",
    ),
    (lambda: nn.cross_entropy(np.zeros(()), Y), ValueError, "logits: expected shape (..., V), got ()"),
    (
        lambda: nn.cross_entropy(Z[:0], Y[:0]),
        ValueError,
        "logits: expected at least one element, got shape (0, 3)",
    ),
    (lambda: nn.cross_entropy(Z, Z[:, 0]), TypeError, "targets: expected an integer dtype, got float64"),
    (lambda: nn.cross_entropy(Z, [0, 1]), TypeError, "targets: expected an array, got list"),
    (
        lambda: nn.cross_entropy(Z, Y[:1]),
        ValueError,
        "targets: expected shape (2,), as logits but its last axis, got (1,)",
    ),
    (
        lambda: nn.cross_entropy(Z, Y + 3),
        ValueError,
        "targets: expected 0 <= id < 3, the number of classes, got 3",
    ),
    (
        lambda: nn.cross_entropy(Z, Y - 1),
        ValueError,
        "targets: expected 0 <= id < 3, the number of classes, got -1",
    ),
    (
        lambda: nn.cross_entropy(Z, Y, 0),
        ValueError,
        "targets: expected at least one that is not ignore_index=0, got none",
    ),
    (lambda: nn.cross_entropy(Z, Y, 0.5), TypeError, "ignore_index: expected an integer"),  # type: ignore[arg-type]
    (
        lambda: nn.cross_entropy(Z, Y, label_smoothing=1.5),
        ValueError,
        "label_smoothing: expected a number in [0, 1], got 1.5",
    ),
    (lambda: nn.huber(Z, Z[:1]), ValueError, "target: expected shape (2, 3), got (1, 3)"),
    (lambda: nn.huber(Z, Z, 0), ValueError, "delta: expected a number in (0, inf), got 0"),
    (lambda: nn.quantile(Z, Z, [0.5] * 3), ValueError, "target: expected shape (2,), got (2, 3)"),
    (lambda: nn.quantile(Z, Z[:, 0], [0.5]), ValueError, "levels: expected 3 numbers, one for each prediction, got 1"),
    (lambda: nn.quantile(Z, Z[:, 0], [0.5, 1, 0.1]), ValueError, "levels: expected a number in (0, 1), got 1"),
    (lambda: nn.quantile(Z, Z[:, 0], 0.5), TypeError, "levels: expected several numbers in (0, 1), got 0.5"),
    (lambda: nn.mse(Y, Y), TypeError, "prediction: expected dtype float32 or float64, got int64"),
    (lambda: nn.mse(Z, Z.astype("f4")), TypeError, "target: expected dtype float64, got float32"),
    (lambda: nn.mse(Z, Z[:1]), ValueError, "target: expected shape (2, 3), got (1, 3)"),
    (lambda: nn.mse(Z[:0], Z[:0]), ValueError, "prediction: expected at least one element, got shape (0, 3)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:60] for *_, message in BAD])
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
