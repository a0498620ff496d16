"""Each promise of device.cuh by itself, against NumPy: on a GPU, and so of the emulator that stands for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import activation_checks
import numpy as np
import pytest
from problems import dtype_of

from gpulstm_kernels.cuda.device.kernel import Argument, Kernel

HALVES = ("float16", "bfloat16")


def kernel(name: str, *arguments: Argument, file: str = "primitives") -> Kernel:
    return Kernel(str(Path(__file__).with_name(file)), name, arguments)


def emulated(runtime: Any) -> bool:
    return type(runtime).__name__ == "EmulatedRuntime"


@pytest.fixture(params=range(4))
def seeded(runtime: Any, request: pytest.FixtureRequest) -> Any:
    """The runtime, its threads in another order each time; a GPU sees to that itself."""
    runtime.seed = request.param
    return runtime


def run(runtime: Any, what: Kernel, blocks: int, threads: int, *args: Any, **options: Any) -> list[np.ndarray]:
    """Launch it with NumPy arrays, and give back what they hold then."""
    there = [runtime.to_device(value) if isinstance(value, np.ndarray) else value for value in args]
    runtime.launch(what, (blocks, 1, 1), (threads, 1, 1), tuple(there), **options)
    return [runtime.to_host(value) for value in there if not isinstance(value, int)]


def tf32(value: np.ndarray, rounded: bool = True) -> np.ndarray:
    """To 10 bits of mantissa: to nearest, ties away from zero; or cut, as tensor cores read what was not rounded."""
    bits = value.view(np.uint32)
    return ((bits + 0x1000 if rounded else bits) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("name", HALVES)
def test_products_of_halves(runtime: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(dtype_of(name)) for shape in ((16, 16), (8, 16)))
    d = rng.normal(size=(16, 8)).astype(np.float32)
    *_, found = run(runtime, kernel("product_of_halves", a.dtype), 1, 32, a, b, d)
    np.testing.assert_allclose(found, d + a.astype(np.float64) @ b.astype(np.float64).T, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rounded", [True, False])
def test_products_of_tf32(runtime: Any, rounded: bool) -> None:
    if not rounded and not emulated(runtime):
        pytest.skip("what tensor cores make of floats that are not rounded is not documented")
    rng = np.random.default_rng(0)
    a, b, d = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    *_, found = run(runtime, kernel("product_of_tf32", rounded), 1, 32, a, b, d)
    expected = d + tf32(a, rounded).astype(np.float64) @ tf32(b, rounded).astype(np.float64).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_rounding_to_tf32(runtime: Any) -> None:
    ties = (np.arange(64, dtype=np.uint32) * 0x1000 + 0x3F800000).view(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.finfo(np.float32).tiny, 3.4e38], np.float32)
    x = np.concatenate([ties, -ties, ties + np.spacing(ties), ties - np.spacing(ties), special])
    expected = tf32(x)
    expected[np.isinf(x)] = x[np.isinf(x)]
    _, found = run(runtime, kernel("round_to_tf32"), 3, 128, x, np.empty_like(x), x.size)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    nan = np.full(1, np.nan, np.float32)
    assert np.isnan(run(runtime, kernel("round_to_tf32"), 1, 1, nan, np.zeros(1, np.float32), 1)[1])


@pytest.mark.parametrize("name", HALVES)
def test_half_conversions(runtime: Any, name: str) -> None:
    dtype = dtype_of(name)
    every = np.arange(2**16).astype(np.uint16).view(dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN; numbers over the largest half
        wide = every.astype(np.float32)
        following = np.concatenate([wide[1:], wide[:1]])
        x = np.where(np.isfinite(wide + following), wide / 2 + following / 2, wide)  # ties
        if name == "bfloat16":  # floats below the normal ones are zero on a GPU, as CuPy compiles
            tiny = np.abs(x) < np.finfo(np.float32).tiny
            x[tiny], wide[tiny], every[tiny] = 0, 0, 0
        narrowed = x.astype(dtype)
    found = run(runtime, kernel("convert", dtype), 64, 1024, x, np.empty_like(every), every, np.empty_like(x), x.size)
    np.testing.assert_array_equal(found[1].astype(np.float32), narrowed.astype(np.float32))
    np.testing.assert_array_equal(found[3], every.astype(np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("float", "float32"), ("double", "float64")])
def test_activations(runtime: Any, name: str, dtype: str) -> None:
    subnormal = dtype == "float64" or emulated(runtime)  # floats below the normal ones are zero, as CuPy compiles
    a, b = activation_checks.pairs(dtype, subnormal)
    y = np.empty((len(activation_checks.NAMES), a.size), dtype)
    *_, found = run(runtime, kernel("activations", name), -(-a.size // 128), 128, a, b, y, a.size)
    activation_checks.check(a, b, found)


@pytest.mark.parametrize("name", ["float", "double", "int", "unsigned long long"])
def test_shuffles(runtime: Any, name: str) -> None:
    dtype = {"float": np.float32, "double": np.float64, "int": np.int32, "unsigned long long": np.uint64}[name]
    x = np.random.default_rng(0).integers(0, 2**31, 32).astype(dtype)
    lanes = np.arange(32)
    for seed, source, mask in ((0, 0, 1), (1, 31, 16), (2, 7, 31)):
        runtime.seed = seed
        _, y = run(runtime, kernel("shuffles", name), 1, 32, x, np.empty((3, 32), dtype), source, mask)
        np.testing.assert_array_equal(y, [np.full(32, x[source]), x[(lanes + 1) % 32], x[lanes ^ mask]])


@pytest.mark.parametrize("width", [4, 8, 16])
def test_a_copy_has_landed_after_its_wait(runtime: Any, width: int) -> None:
    words, threads = width // 4, 40
    x = np.arange(threads * 2 * words, dtype=np.uint32)
    y = np.empty((2, threads, 2, words), np.uint32)
    _, found = run(runtime, kernel("copies", width), 1, threads, x, y, shared=threads * 32)
    both = x.reshape(threads, 2, words)
    np.testing.assert_array_equal(found[0, :, 0], both[:, 0])
    if emulated(runtime):  # what is still under way lands as late as it may
        assert (found[0, :, 1] == 0xFFFFFFFF).all()
    np.testing.assert_array_equal(found[1], both)


def test_named_barriers(seeded: Any) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (5, 32)).astype(np.float32)
    _, y = run(seeded, kernel("named_barriers"), 1, 64, x, np.empty(32, np.float32), 5)
    np.testing.assert_array_equal(y, np.roll(x.sum(0), -1))


@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (3, 1), (7, 64)])
def test_grid_barriers(seeded: Any, blocks: int, threads: int) -> None:
    x = np.arange(blocks, dtype=np.float32)
    y, z, counter = np.empty_like(x), np.empty((2, blocks), np.float32), np.zeros(1, np.uint32)
    found = run(seeded, kernel("ring_of_blocks"), blocks, threads, x, y, z, counter, 5, cooperative=True)
    np.testing.assert_array_equal(found[1], np.roll(x, 5))


def test_every_thread_of_a_launch_runs_once(seeded: Any) -> None:
    y = seeded.zeros((2 * 3 * 4 * 5 * 2 * 3,), np.int32)
    seeded.launch(kernel("places"), (2, 3, 4), (5, 2, 3), (y,))
    np.testing.assert_array_equal(seeded.to_host(y), np.arange(y.size))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_clusters(seeded: Any, size: int) -> None:
    if not emulated(seeded):
        pytest.skip("CuPy has no launch of clusters; python -m bench run gpu tries them")
    blocks, threads, rounds = 2 * size, 32, 5
    x = np.arange(1, blocks + 1, dtype=np.float32)
    there, y, sums = (
        seeded.to_device(x),
        *(seeded.empty((count,), np.float32) for count in (blocks, blocks * threads)),
    )
    for name, out in (("ring_of_cluster", y), ("sums_by_mbarrier", sums)):
        arguments = (there, out, rounds)
        seeded.launch(kernel(name, file="clusters"), (blocks, 1, 1), (threads, 1, 1), arguments, cluster=size)
    ring = np.roll(x.reshape(2, size), rounds, 1)
    np.testing.assert_array_equal(seeded.to_host(y).reshape(2, size), ring)
    weights = np.arange(1, size + 1)
    expected = (x.reshape(2, size) @ weights) * float(weights.sum()) ** (rounds - 1)
    np.testing.assert_array_equal(seeded.to_host(sums), np.repeat(expected, size * threads))
