"""The functions that cells call, in CPU kernels: within two units in the last place over the whole range."""

from __future__ import annotations

from collections.abc import Callable
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


NAMES = ["tanh", "sigmoid", "exp", "log", "softplus", "sqrt", "absolute"]
KERNELS = {name: _applied(getattr(activations, name)) for name in NAMES}
# in float64
EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "exp": np.exp,
    "log": np.log,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sqrt": np.sqrt,
    "absolute": np.abs,
}
DECIMALS: dict[str, Callable[[Decimal], Decimal]] = {
    "tanh": lambda x: (1 - _power(-2 * x)) / (1 + _power(-2 * x)) if abs(x) > 1e-8 else x - x**3 / 3,
    "sigmoid": lambda x: 1 / (1 + _power(-x)),
    "exp": lambda x: _power(x),
    "log": Decimal.ln,
    "softplus": lambda x: max(x, Decimal(0)) + ((1 + _power(-abs(x))).ln() if abs(x) < 40 else _power(-abs(x))),
    "sqrt": Decimal.sqrt,
}
POSITIVE = {"log", "sqrt"}  # what these are defined for


def _power(x: Decimal) -> Decimal:
    """exp(x), or what rounds to the same infinity or 0."""
    return max(Decimal(-4000), min(Decimal(4000), x)).exp()


def units(found: np.ndarray, expected: np.ndarray, bits: int, least: int) -> np.ndarray:
    """|found - expected| in units of the last of ``bits`` places of ``expected``, at least 2**least."""
    exponent = np.frexp(np.abs(expected))[1]
    return np.abs(found - expected) / np.ldexp(1.0, np.maximum(exponent - bits, least))


SWEEPS = [(name, 4001) for name in NAMES]
SLOW_SWEEPS = [pytest.param(name, 251, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize(("name", "step"), [*SWEEPS, *SLOW_SWEEPS])
def test_float32_over_the_whole_range(name: str, step: int) -> None:
    """One in ``step`` of all numbers, the smallest and the largest, and those around where something changes."""
    bits = np.arange(0, 1 << 32, step, dtype=np.uint64)
    borders = [0.0, 2.0**-126, 0.34657359, 0.625, 0.70710678, 1.0, 1.41421356, 8.3, 9.0, 10.0, 16.6, 17.4, 20.0, 87.4]
    borders += [88.8, 103.98, 104.0, np.finfo(np.float32).max]
    around = np.float32(borders).view(np.uint32).astype(np.int64)[:, None] + np.arange(-300, 301)
    around = np.concatenate([around[around >= 0], np.arange(1 << 12)])
    x = np.concatenate([bits, around, around + (1 << 31)]).astype(np.uint32).view(np.float32)
    found = KERNELS[name](x)
    with np.errstate(all="ignore"):
        expected = EXACT[name](x.astype(np.float64))
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    x, found, expected = x[~nan], found[~nan], expected[~nan]
    if name == "tanh":
        np.testing.assert_array_equal(np.signbit(found), np.signbit(x))
    limit = 2.0**128  # that is, infinity
    off = units(np.clip(found.astype(np.float64), -limit, limit), np.clip(expected, -limit, limit), 24, -149)
    assert off.max() <= 2, x[off.argmax()]
    if name in ("tanh", "sigmoid"):
        assert np.abs(found).max() <= 1


def _drawn(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if name in POSITIVE:
        near_1 = 1 + rng.choice([-1, 1], 500) * np.exp(rng.uniform(-37, -0.7, 500))
        borders = np.sqrt([0.5, 2.0])[:, None] + np.arange(-20, 21) * 2.0**-53
        sizes = [2.0**-1074, 1e-310, 2.0**-1022, np.finfo(np.float64).max]
        drawn = np.exp(rng.uniform(-745, 709, 1000)), rng.uniform(0.3, 3, 1000)
        return np.concatenate([sizes, *drawn, near_1, borders.ravel()])
    sizes = [2.0**-1074, 1e-310, 0.3465735902799726, 0.625, 19.06, 20.0, 36.7, 40.0, 708.4, 709.8, 744.5, 746.0, 1e300]
    drawn = np.concatenate([sizes, np.exp(rng.uniform(-30, np.log(750), 1500)), rng.uniform(0, 3, 500)])
    return np.concatenate([drawn, -drawn])


@pytest.mark.parametrize("name", DECIMALS)
def test_float64_against_decimals(name: str) -> None:
    x = _drawn(name)
    limit = Decimal(2) ** 1024  # that is, infinity
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**6), 10**6
        for value, result in zip(x.tolist(), KERNELS[name](x).tolist(), strict=True):
            expected = min(DECIMALS[name](Decimal(value)), limit)
            unit = Decimal(2) ** max(int(np.frexp(float(abs(expected)))[1]) - 53, -1074)
            assert abs(min(Decimal(result), limit) - expected) <= 2 * unit, value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits(dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, -1.0, -np.finfo(dtype).max], dtype)
    limits = {
        "tanh": [1, -1, np.nan, 0, 0, -np.tanh(1.0), -1],
        "sigmoid": [1, 0, np.nan, 0.5, 0.5, 1 / (1 + np.e), 0],
        "exp": [np.inf, 0, np.nan, 1, 1, 1 / np.e, 0],
        "log": [np.inf, np.nan, np.nan, -np.inf, -np.inf, np.nan, np.nan],
        "softplus": [np.inf, 0, np.nan, np.log(2.0), np.log(2.0), np.log1p(1 / np.e), 0],
        "sqrt": [np.inf, np.nan, np.nan, 0, 0, np.nan, np.nan],
        "absolute": [np.inf, np.inf, np.nan, 0, 0, 1, np.finfo(dtype).max],
    }
    for name in NAMES:
        found = KERNELS[name](x)
        np.testing.assert_allclose(found, np.array(limits[name], dtype), rtol=2 * np.finfo(dtype).eps, err_msg=name)
        np.testing.assert_array_equal(np.isinf(found), np.isinf(limits[name]), name)
        np.testing.assert_array_equal(np.signbit(found[3:5]), [name == "log", name in ("tanh", "sqrt", "log")], name)


@njit(**OPTIONS)
def _compare(a, b, x, rows):
    """Choices between elements of arrays, and of arrays and numbers."""
    for k in range(0, a.size, lanes(a)):
        at, n = k * a.itemsize, a.size - k
        va, vb = load(a, a.ctypes.data + at, n), load(b, b.ctypes.data + at, n)
        vx = load(x, x.ctypes.data + at, n)
        to, stride = rows.ctypes.data + at, a.size * a.itemsize
        store(a, activations.maximum(va, vb), to, n)
        store(a, activations.minimum(va, vb), to + stride, n)
        store(a, activations.maximum(va, 0.1), to + 2 * stride, n)
        store(a, activations.minimum(va, 1), to + 3 * stride, n)
        store(a, activations.select(va, vb, vx, va), to + 4 * stride, n)
        store(a, activations.select(va, 0, vx, 0.1), to + 5 * stride, n)
        store(a, activations.select(va, 0.0, 1, -1), to + 6 * stride, n)
        store(a, activations.select(va, vb, 0.1, vb), to + 7 * stride, n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_choices(dtype: str) -> None:
    info = np.finfo(dtype)
    special = [0.0, -0.0, 0.1, 1.0, -1.0, info.tiny, 2.0**info.minexp / 4, info.max, np.inf, -np.inf, np.nan]
    a, b = (values.ravel() for values in np.meshgrid(np.array(special, dtype), np.array(special, dtype)))
    x = np.arange(a.size, dtype=dtype)
    found = np.full((8, a.size), 7, dtype)
    _compare(a, b, x, found)
    tenth = np.dtype(dtype).type(0.1)
    expected = [
        np.maximum(a, b),
        np.minimum(a, b),
        np.maximum(a, tenth),
        np.minimum(a, 1),
        np.where(a > b, x, a),
        np.where(a > 0, x, tenth),
        np.where(a > 0, 1, -1),
        np.where(a > b, tenth, b),
    ]
    np.testing.assert_array_equal(found, np.array(expected, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_keeps_the_dtype(dtype: str) -> None:
    x = np.array([0.5, 0.25, np.nan], dtype)
    cells = activations
    for name in NAMES:
        found = getattr(cells, name)(x)
        assert found.dtype == dtype
        np.testing.assert_allclose(found[:2], EXACT[name](x[:2].astype(np.float64)), rtol=3 * np.finfo(dtype).eps)
        assert np.isnan(found[2])
    choices = [
        (cells.maximum(x, 0.5), [0.5, 0.5, np.nan]),
        (cells.minimum(x, 0.25), [0.25, 0.25, np.nan]),
        (cells.maximum(x, x[::-1]), [np.nan, 0.25, np.nan]),
        (cells.select(x, 0.25, 1, 2), [1, 2, 2]),
        (cells.select(x, 0.25, -x, 2.0), [-0.5, 2, 2]),
        (cells.select(x, x[::-1], 3.0, x), [0.5, 0.25, np.nan]),
    ]
    for found, expected in choices:
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


def test_numpy_softplus_of_large_numbers() -> None:
    x = np.array([-800.0, -700.0, -50.0, 50.0, 800.0, -np.inf, np.inf])
    expected = [0.0, np.exp(-700.0), np.exp(-50.0), 50.0, 800.0, 0.0, np.inf]
    np.testing.assert_allclose(activations.softplus(x), expected, rtol=1e-15)


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
