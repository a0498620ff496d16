"""tanh and the logistic function of the CPU kernels: within two units in the last place over the whole range."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import problems
import pytest
from numba import njit

import gpulstm
from gpulstm_kernels.cells import activations
from gpulstm_kernels.cpu.codegen import activations as of_vectors  # noqa: F401 - which implements them
from gpulstm_kernels.cpu.codegen.compilation import OPTIONS
from gpulstm_kernels.cpu.codegen.vector import lanes, load, store


def _applied(function: Any) -> Any:
    @njit(**OPTIONS)
    def apply(x, y):
        for k in range(0, x.size, lanes(x)):
            value = load(x, x.ctypes.data + k * x.itemsize, x.size - k)
            store(y, function(value), y.ctypes.data + k * y.itemsize, y.size - k)

    def applied(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        apply(x, y)
        return y

    return applied


KERNELS = {"tanh": _applied(activations.tanh), "sigmoid": _applied(activations.sigmoid)}


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """In float64."""
    with np.errstate(over="ignore"):
        return np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))


def units(found: np.ndarray, expected: np.ndarray, bits: int, least: int) -> np.ndarray:
    """|found - expected| in units of the last of ``bits`` places of ``expected``, at least 2**least."""
    exponent = np.frexp(np.abs(expected))[1]
    return np.abs(found - expected) / np.ldexp(1.0, np.maximum(exponent - bits, least))


@pytest.mark.parametrize("name", KERNELS)
def test_float32_over_the_whole_range(name: str) -> None:
    """Every 251st of all numbers, the smallest and the largest, and those around where something changes."""
    bits = np.arange(0, 1 << 32, 251, dtype=np.uint64)
    borders = np.float32([0.0, 0.34657359, 0.625, 8.3, 9.0, 10.0, 16.6, 17.4, 20.0, 87.4, 88.8, 103.98, 104.0])
    around = borders.view(np.uint32).astype(np.int64)[:, None] + np.arange(-300, 301)
    around = np.concatenate([around[around >= 0], np.arange(1 << 12)])
    x = np.concatenate([bits, around, around + (1 << 31)]).astype(np.uint32).view(np.float32)
    found = KERNELS[name](x)
    nan = np.isnan(x)
    assert np.isnan(found[nan]).all()
    x, found = x[~nan], found[~nan]
    expected = exact(name, x.astype(np.float64))
    off = units(found.astype(np.float64), expected, 24, -149)
    assert off.max() <= 2, x[off.argmax()]
    if name == "tanh":
        np.testing.assert_array_equal(np.signbit(found), np.signbit(x))
    assert np.abs(found).max() <= 1


@pytest.mark.parametrize("name", KERNELS)
def test_float64_against_decimals(name: str) -> None:
    rng = np.random.default_rng(0)
    sizes = [2.0**-1074, 1e-310, 0.3465735902799726, 0.625, 19.06, 20.0, 36.7, 40.0, 708.4, 709.8, 744.5, 746.0, 1e300]
    drawn = np.concatenate([sizes, np.exp(rng.uniform(-30, np.log(750), 1500)), rng.uniform(0, 3, 500)])
    x = np.concatenate([drawn, -drawn])
    found = KERNELS[name](x)
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**6), 10**6
        for value, result in zip(x.tolist(), found.tolist(), strict=True):
            clipped = Decimal(max(-2000.0, min(2000.0, value)))
            e = (-2 * clipped).exp() if name == "tanh" else (-clipped).exp()
            expected = (1 - e) / (1 + e) if name == "tanh" else 1 / (1 + e)
            if abs(value) < 1e-8 and name == "tanh":
                expected = clipped - clipped**3 / 3  # the difference above would cancel
            unit = Decimal(2) ** max(int(np.frexp(float(abs(expected)))[1]) - 53, -1074)
            assert abs(Decimal(result) - expected) <= 2 * unit, value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits(dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype)
    np.testing.assert_array_equal(KERNELS["tanh"](x), np.array([1, -1, np.nan, 0, 0], dtype))
    np.testing.assert_array_equal(np.signbit(KERNELS["tanh"](x[3:])), [False, True])
    np.testing.assert_array_equal(KERNELS["sigmoid"](x), np.array([1, 0, np.nan, 0.5, 0.5], dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("steps", "batch"), [(1, 3), (4, 3), (4, 20)])  # a step, rows with weights in place, tiles
def test_nan_and_infinities_stay_in_their_row(dtype: str, steps: int, batch: int) -> None:
    layer = gpulstm.LSTM(5, 9, dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((steps, batch, 5)).astype(dtype)
    clean, _ = layer(x)
    x[0, 1, 2], x[0, 2, :] = np.nan, 0
    x[0, 2, 3] = np.inf
    y, (_, c) = layer(x)
    assert np.isnan(y[:, 1]).all()
    others = [b for b in range(batch) if b not in (1, 2)]
    np.testing.assert_array_equal(y[:, others], clean[:, others])
    expected, (_, c_expected) = layer(x, backend="reference")  # gates at plus and minus infinity
    np.testing.assert_allclose(y[:, 2], expected[:, 2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c[:, 2], c_expected[:, 2], rtol=1e-5, atol=1e-6)
    assert np.isfinite(y[:, 2]).all()


@pytest.mark.parametrize("split", ["batch", "units"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_every_time_and_on_any_number_of_threads(dtype: str, split: str) -> None:
    """No sum depends on how threads share the work."""
    layer = gpulstm.LSTM(33, 150, bidirectional=True, dtype=dtype, seed=0)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((6, 23, size)).astype(dtype) for size in (33, 300))

    def results() -> list[np.ndarray]:
        (y, state), pullback = layer.vjp(x)
        dx, dstate, grads = pullback(dy)
        return [y, *state, dx, *dstate, *grads.values(), layer(x)[0]]

    with problems.threads(1, split):
        expected = results()
    for threads in (1, 2, 3):
        with problems.threads(threads, split):
            for _ in range(2):
                for found, wanted in zip(results(), expected, strict=True):
                    np.testing.assert_array_equal(found, wanted)
