"""The CTC loss on a device: as on the CPU, in whatever ways a call can go; decoding of logits that lie there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpulstm
from gpulstm import arrays, nn


def on_the_cpu(*arguments: Any, **options: Any) -> Any:
    with gpulstm.use_backend("reference"):
        return nn.ctc(*arguments, **options)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    with arrays.poison():
        yield


def compare(runtime: Any, logits: np.ndarray, *arguments: Any, **options: Any) -> None:
    loss, dlogits = on_the_cpu(logits, *arguments, **options)
    there, gradient = nn.ctc(runtime.to_device(logits), *arguments, **options)
    assert runtime.owns(there)
    assert there.dtype == np.float64
    assert gradient.dtype == logits.dtype
    np.testing.assert_allclose(float(there), loss, rtol=1e-12)
    gradient = runtime.to_host(gradient)
    close = {"rtol": 2e-7, "atol": 1e-9} if logits.dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-13}
    np.testing.assert_allclose(gradient, dlogits, **close)
    np.testing.assert_array_equal(gradient[dlogits == 0], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("steps", "batch", "classes", "longest", "blank"),
    [(1, 1, 1, 0, 0), (1, 2, 2, 1, 0), (9, 3, 5, 4, 2), (30, 5, 40, 12, 39), (6, 1, 257, 3, 0)],
)
def test_it_is_the_cpus(
    runtime: Any, steps: int, batch: int, classes: int, longest: int, blank: int, dtype: str
) -> None:
    rng = np.random.default_rng(steps)
    lengths = rng.integers(0, longest + 1, batch)
    lengths[-1] = longest
    labels = rng.integers(0, max(classes - 1, 1), (batch, longest))
    labels[labels >= blank] += 1
    logits = (3 * rng.standard_normal((steps, batch, classes))).astype(dtype)
    compare(runtime, logits, labels, rng.integers(np.minimum(2 * lengths, steps), steps + 1), lengths, blank)


def test_more_labels_than_threads_of_a_block(runtime: Any) -> None:
    rng = np.random.default_rng(0)
    compare(runtime, rng.standard_normal((310, 1, 8)), rng.integers(1, 8, (1, 270)), None, None)


def test_what_does_not_fit_and_what_is_not_there(runtime: Any) -> None:
    logits = np.random.default_rng(1).standard_normal((4, 4, 5))
    logits[3, 2:] = np.nan
    targets = np.array([[1, 1, 1, 2], [1, 2, 3, 4], [3, 3, 0, 0], [0, 0, 0, 0]])
    compare(runtime, logits, targets, [4, 3, 3, 0], [4, 4, 2, 0], zero_infinity=True)
    with pytest.raises(ValueError, match="targets: expected at most 4 labels and blanks"):
        nn.ctc(runtime.to_device(logits[:, :1].copy()), targets[:1])


def test_a_broken_model_is_nan(runtime: Any) -> None:
    for value in (np.nan, np.inf):
        logits = np.zeros((3, 2, 3), "f4")
        logits[1, 1, 2] = value
        assert np.isnan(float(nn.ctc(runtime.to_device(logits), np.array([[1], [1]]))[0]))


def test_half_types_are_widened(runtime: Any) -> None:
    logits, targets = np.random.default_rng(2).standard_normal((7, 2, 4)).astype("f2"), np.array([[1, 2], [3, 3]])
    loss, dlogits = on_the_cpu(logits.astype("f8"), targets)
    there, gradient = nn.ctc(runtime.to_device(logits), targets)
    np.testing.assert_allclose(float(there), loss, rtol=1e-12)
    assert gradient.dtype == np.float16
    np.testing.assert_allclose(runtime.to_host(gradient), dlogits, rtol=1e-3, atol=1e-6)


def test_targets_on_the_device_are_refused_and_logits_there_decoded(runtime: Any) -> None:
    logits, targets = np.random.default_rng(3).standard_normal((7, 2, 4)), np.array([[1, 2], [3, 3]])
    with pytest.raises(TypeError, match="targets"):
        nn.ctc(runtime.to_device(logits), runtime.to_device(targets.astype(np.int32)))
    for decode in (nn.greedy, nn.beam):
        there, here = decode(runtime.to_device(logits)), decode(logits)
        assert repr(there) == repr(here)
