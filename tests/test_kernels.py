"""The Numba CPU backend against the reference: every cell, dtype, split of the work and awkward shape.

Buffers are poisoned throughout, so an element that a kernel forgot to write is NaN and fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
from numba import njit
from problems import Arrays, Problem
from tolerances import assert_close

import gpulstm
from gpulstm import arrays
from gpulstm_kernels.cells import activations
from gpulstm_kernels.cpu import gemm, layer, tuning
from gpulstm_kernels.cpu.codegen import features, vector

DTYPES = ["float32", "float64"]
CELLS = ["lstm", "rnn"]
SPLITS = [(1, "batch"), (2, "batch"), (2, "units"), (3, "batch"), (3, "units")]

# awkward ones, of which two threads and more take parts
SHAPES = [
    "one of each",
    "one step",
    "one step, no bias",
    "one sequence",
    "odd",
    "even",
    "no bias",
    "wide",
    "deep sums",
    "many rows",
    "projected",
    "projected to one",
    "projected wide",
]


def solved(cell: str, dtype: str, shape: str) -> tuple[Problem, Arrays]:
    """A problem, and the reference's outputs and gradients."""
    return layer_checks.case(cell, dtype, layer_checks.SHAPES[shape])


def computed(p: Problem) -> Arrays:
    """The same by the kernels, from poisoned buffers."""
    with arrays.poison():
        return layer_checks.computed(layer, p)


@pytest.fixture(params=["step by step", "in chunks", "few rows"])
def rows(request: pytest.FixtureRequest) -> Iterator[str]:
    """Weights packed into tiles, for the input of a step or of several; or read in place: at any size."""
    packs_from = 1 << 62 if request.param == "few rows" else 1
    fused_from = 1 if request.param == "step by step" else 1 << 62
    with tuning.replaced(packs_from=packs_from, fused_from=fused_from, block_rows=5):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_reference_on_any_number_of_threads(cell: str, dtype: str, shape: str, rows: str) -> None:
    """Within tolerance, and the same bits for every number of threads, every split, every call, tape or none."""
    p, expected = solved(cell, dtype, shape)
    first: Arrays = {}
    for count, split in SPLITS:
        label = f"{shape}, {count} threads, {split}"
        with arrays.poison(), problems.threads(count, split):
            found = layer_checks.check(layer, p, "kernel", label, expected)
        first = first or found
        for name, value in found.items():
            np.testing.assert_array_equal(value, first[name], f"{label}: {name}")


@pytest.mark.parametrize("shape", ["odd", "many rows", "projected"])
@pytest.mark.parametrize("chunk_rows", [1, 14, 20])  # one step at a time; a whole number of steps; a rest
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_input_is_projected_in_chunks(cell: str, dtype: str, chunk_rows: int, shape: str) -> None:
    p, expected = solved(cell, dtype, shape)
    for count, split in SPLITS[:3]:
        with problems.threads(count, split), tuning.replaced(fused_from=1 << 62, chunk_rows=chunk_rows):
            found = computed(p)
        for name, value in expected.items():
            assert_close(found[name], value, "kernel", dtype, f"{shape}: {name}")


@pytest.mark.parametrize("shape", ["odd", "wide", "projected"])
@pytest.mark.parametrize("chunk_rows", [1, 10])  # one step at a time; a few with a rest, in both directions
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_taken_in_chunks(cell: str, dtype: str, chunk_rows: int, shape: str) -> None:
    """The same bits on any number of threads."""
    p, expected = solved(cell, dtype, shape)
    first: Arrays = {}
    for count, split in SPLITS[:3]:
        with problems.threads(count, split), tuning.replaced(backward_rows=chunk_rows):
            found = computed(p)
        first = first or found
        for name, value in expected.items():
            assert_close(found[name], value, "kernel", dtype, f"{shape}: {name}")
            np.testing.assert_array_equal(found[name], first[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_pullback_may_be_called_again(cell: str, dtype: str) -> None:
    p, _ = solved(cell, dtype, "projected" if (cell, dtype) == ("lstm", "float32") else "odd")
    _, tape = problems.outputs(layer, p, training=True)
    first = problems.gradients(layer, p, tape)
    problems.gradients(layer, p._replace(dy=2 * p.dy), tape)
    again = problems.gradients(layer, p, tape)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], name)


def test_both_splits_were_taken() -> None:
    """The shapes above reach both branches: otherwise the tests of splits would show nothing."""
    p, _ = solved("lstm", "float32", "wide")
    for split, by_batch in (("batch", True), ("units", False)):
        with problems.threads(3, split):
            assert layer.thread_split(p.shape(training=True)) == (3, by_batch)


def test_threads_share_large_weights_unless_the_cores_are_oversubscribed() -> None:
    """Many rows are split while others want the cores, few never: no thread would have enough of them."""
    p, _ = solved("lstm", "float32", "wide")
    shape = p.shape(training=False)._replace(steps=8, inputs=1024, hidden=1024, outputs=1024)
    with problems.threads(2), tuning.replaced(split_from=6, shared_from=4 * 1024 * 1024 * 4):
        few, some, many = (shape._replace(batch=batch) for batch in (4, 16, 64))
        assert layer.thread_split(some) == (2, False)
        assert layer.thread_split(some, oversubscribed=True) == (2, True)
        assert layer.thread_split(some, forward=False) == (2, True)
        assert layer.thread_split(many) == (2, True)
        assert layer.thread_split(few, oversubscribed=True) == (2, False)


@pytest.mark.parametrize(
    ("text", "size"), [("512K\n", 512 << 10), ("2048K\n", 2 << 20), ("", 1 << 20), (None, 1 << 20)]
)
def test_size_of_the_l2_cache(text: str | None, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux writes it; 1 MB where nothing is written, or nothing to read."""
    place = tmp_path / "size"
    if text is not None:
        place.write_text(text)
    monkeypatch.setattr(features, "_L2_SIZE", place)
    assert features._l2_bytes() == size


def ragged_lstm(dtype: str, **options: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    lstm = gpulstm.LSTM(5, 9, 2, bidirectional=True, dtype=dtype, seed=0, **options)
    x = np.random.default_rng(1).standard_normal((6, 4, 5)).astype(dtype)
    return lstm, x, np.array([6, 1, 4, 2])


@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("projected", [False, True], ids=["whole", "projected"])
def test_padding_may_hold_anything(projected: bool, dtype: str, backend: str) -> None:
    """NaN and infinities past the lengths, in x and in dy, change nothing; outputs and dx are zero there."""
    lstm, x, lengths = ragged_lstm(dtype, proj_size=4 if projected else 0)
    valid = (np.arange(len(x))[:, None] < lengths)[:, :, None]
    dy = np.random.default_rng(2).standard_normal((6, 4, 8 if projected else 18)).astype(dtype)
    results = []
    for padding in (0, np.nan, np.inf):
        with arrays.poison():
            (y, state), pullback = lstm.vjp(np.where(valid, x, x.dtype.type(padding)), None, lengths, backend=backend)
            dx, dstate, grads = pullback(np.where(valid, dy, dy.dtype.type(padding)), state)
        results.append([y, *state, dx, *dstate, *grads.values()])
        assert not y[~valid[..., 0]].any()
        assert not dx[~valid[..., 0]].any()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(part).all() for part in results[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_nan_and_infinity_stay_visible(kind: str, dtype: str, rows: str) -> None:
    """Bad input is seen exactly where the equations carry it: in the sequence it is in, from its step on."""
    net = getattr(gpulstm, kind)(3, 5, dtype=dtype, seed=0)
    x = np.random.default_rng(1).standard_normal((6, 4, 3)).astype(dtype)
    x[2, 1, 0], x[3, 2, 1], x[1, 3, :2] = np.nan, np.inf, (np.inf, -np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        expected, _ = net(x, backend="reference")
    found, state = net(x, backend="numba_cpu")
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found[2:, 1]).all()
    assert not np.isnan(found[:2]).all()
    assert np.isnan(problems.parts(state)[0][0, 1]).all()
    assert np.isfinite(found[:, 0]).all()
    assert_close(np.nan_to_num(found), np.nan_to_num(expected), "kernel", dtype)


# --- activations --------------------------------------------------------------------------------------------------


def _apply(name: str) -> Any:
    function = getattr(activations, name)

    @njit
    def apply(out, x):
        for i in range(0, x.size, vector.lanes(x)):
            value = vector.load(x, x.ctypes.data + i * x.itemsize, x.size - i)
            vector.store(x, function(value), out.ctypes.data + i * x.itemsize, x.size - i)

    return apply


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_in_place(dtype: str) -> None:
    """A cell may say ``c += i`` as well."""

    @njit
    def apply(out, x):
        value = vector.load(x, x.ctypes.data, x.size)
        before = value
        value += 0.5
        value *= before
        value -= 2.0
        value /= before
        vector.store(x, value, out.ctypes.data, x.size)

    x = np.array([0.5, -0.25], dtype)
    out = np.empty_like(x)
    apply(out, x)
    np.testing.assert_array_equal(out, ((x + np.dtype(dtype).type(0.5)) * x - 2) / x)


def _whole_range(dtype: str) -> np.ndarray:
    """Both signs of numbers over all exponents, and closely where the functions bend."""
    bits = np.arange(0, 0x7F80_0000, 9973, dtype=np.uint32).view(np.float32)
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    values = np.concatenate([bits.astype(dtype), np.linspace(0, 25, 200_001, dtype=dtype), [tiny, huge, 800.0]])
    return np.concatenate([values, -values]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activations(name: str, dtype: str) -> None:
    x = _whole_range(dtype)
    out = np.full_like(x, np.nan)
    apply = _apply(name)
    apply(out, x)
    with np.errstate(over="ignore"):
        wide = x.astype(np.float64)
        expected = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
    assert_close(out, expected, "activation", dtype, name)
    if name == "tanh":  # also relative to small values: near zero tanh is the identity
        small = (np.abs(x) < 0.5) & (np.abs(x) > 1e-30)  # below, products are subnormal
        assert np.max(np.abs(out[small] / expected[small] - 1)) <= 8 * np.finfo(dtype).eps

    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], dtype)
    found = np.empty_like(special)
    apply(found, special)
    of = math.tanh if name == "tanh" else lambda v: 1 / (1 + math.exp(-v)) if v != -math.inf else 0.0
    assert np.isnan(found[0])
    assert_close(found[1:], [of(float(v)) for v in special[1:]], "activation", dtype, name)
    assert np.all(np.abs(out) <= 1)


# --- matrix products ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_products_equal_numpys(count: int, dtype: str) -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    for m, n, k in ((1, 1, 1), (2, 3, 5), (7, 33, 17), (13, 64, 1), (5, 130, 3), (1, 65, 70), (50, 9, 600), (40, 1, 9)):
        label = f"{m} x {n} x {k}"
        a, b = normal(m, k), normal(k, n)
        expected = a.astype(np.float64) @ b.astype(np.float64)
        with arrays.poison(), problems.threads(count):
            for found in (
                arrays.gemm(a, b),
                arrays.gemm(a, b.T.copy(), transpose_b=True),
                arrays.gemm(a.T.copy(), b, transpose_a=True),
            ):
                assert_close(found, expected, "product", dtype, label)
            c = normal(m, n)
            total = c + expected
            gemm.multiply(c, a, b)
            assert_close(c, total, "product", dtype, f"{label}, added to C")


@pytest.mark.parametrize("dtype", DTYPES)
def test_outer_of_views_and_its_sums(dtype: str) -> None:
    """Columns of larger arrays, and the sums of A's columns that give a bias its gradient."""
    rng = np.random.default_rng(0)
    for rows, m, n in ((1, 1, 1), (3, 7, 5), (1030, 10, 3), (9, 70, 130)):
        label = f"{rows} x {m} x {n}"
        a, b, d = (rng.standard_normal((rows, k)).astype(dtype) for k in (m + 5, n + 3, 2 * n))
        right = [gemm.Rows(b.reshape(-1), (1, n + 3), n), gemm.Rows(d.reshape(-1), (0, 2 * n), 2 * n)]
        wide = a[:, 2 : 2 + m].astype(np.float64)
        expected = wide.T @ b[:, 1 : 1 + n].astype(np.float64), wide.T @ d.astype(np.float64)
        for count in (1, 3):
            for one_or_two in (1, 2):
                with arrays.poison(), problems.threads(count):
                    found, sums = gemm.outer(a.reshape(-1), (2, m + 5), rows, right[:one_or_two], m)
                for c, product in zip(found, expected, strict=False):
                    assert_close(c, product, "product", dtype, label)
                assert_close(sums[:m], wide.sum(0), "product", dtype, label)
