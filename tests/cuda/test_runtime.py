"""What a runtime promises, on the emulator and, with ``-m gpu``, through CuPy on a device."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from problems import dtype_of

from gpulstm_kernels.cuda.device.kernel import Kernel

DTYPES = ["float32", "float64", "float16", "bfloat16"]
WIDEN = Kernel("kernels/layer", "to_accumulate", (np.dtype(np.float16),))
ADD = Kernel("kernels/layer", "add_biases", (np.dtype(np.float32),))


def integers(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """Small ones: every sum of products is exact in every type."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


@pytest.mark.parametrize("name", [*DTYPES, "int32", "uint8"])
def test_arrays_go_there_and_back(runtime: Any, name: str) -> None:
    dtype = dtype_of(name)
    value = integers((3, 4), dtype)
    for given in (value, value.T, value[:, ::2], value[:0]):
        array = runtime.to_device(given)
        assert runtime.owns(array)
        assert array.flags.c_contiguous
        assert (array.shape, array.dtype) == (given.shape, dtype)
        np.testing.assert_array_equal(runtime.to_host(array), given)
    np.testing.assert_array_equal(runtime.to_host(runtime.zeros((2, 3), dtype)), np.zeros((2, 3), dtype))


def test_copies_between_views(runtime: Any) -> None:
    value = integers((4, 6), np.float16)
    source, target = runtime.to_device(value), runtime.zeros((4, 6), np.float16)
    runtime.copy(target[:, 1:4], source[:, 3:6])
    runtime.copy(target[0], source[0])
    expected = np.zeros_like(value)
    expected[:, 1:4] = value[:, 3:6]
    expected[0] = value[0]
    np.testing.assert_array_equal(runtime.to_host(target), expected)
    with pytest.raises(ValueError, match="src: expected"):
        runtime.copy(target, source[:2])


def test_no_array_of_the_host(runtime: Any) -> None:
    array = runtime.zeros((2,), np.float32)
    assert runtime.as_array(array, "x") is array
    with pytest.raises(TypeError, match="x: expected an array on the GPU"):
        runtime.as_array(np.zeros(2), "x")


def test_too_much_memory(runtime: Any) -> None:
    before = runtime.to_device(np.arange(3.0))
    with pytest.raises(MemoryError):
        runtime.empty((2**50, 64), np.float64)
    np.testing.assert_array_equal(runtime.to_host(before), np.arange(3.0))


@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("name", DTYPES)
def test_products_of_views(runtime: Any, name: str, transposed: tuple[bool, bool]) -> None:
    dtype = dtype_of(name)
    m, n, k = 5, 7, 6
    a = integers((3, *((k, m) if transposed[0] else (m, k))), dtype)
    b = integers((3, *((n, k) if transposed[1] else (k, n))), dtype, seed=1)
    flags = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    left, right = (x.astype(np.float64) for x in (a, b))
    product = (left.swapaxes(1, 2) if transposed[0] else left) @ (right.swapaxes(1, 2) if transposed[1] else right)
    wide = runtime.to_device(np.concatenate([np.ones_like(a), a], 2))[..., a.shape[2] :]
    there = runtime.to_device(b)
    for result in {dtype, np.dtype("float32")} if dtype.itemsize == 2 else {dtype}:
        whole = runtime.to_device(integers((3, m, 2 * n), result, seed=2))
        out, before = whole[..., :n], runtime.to_host(whole).astype(np.float64)
        runtime.gemm(wide, there, out, **flags)
        np.testing.assert_array_equal(runtime.to_host(whole[..., n:]).astype(np.float64), before[..., n:])
        np.testing.assert_array_equal(runtime.to_host(out).astype(np.float64), product)
        runtime.gemm(wide[0], there[0], out[0], accumulate=True, **flags)
        np.testing.assert_array_equal(runtime.to_host(out[0]).astype(np.float64), 2 * product[0])
        np.testing.assert_array_equal(runtime.to_host(out[1]).astype(np.float64), product[1])


def test_products_are_as_exact_as_they_say(runtime: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
    there = [runtime.to_device(x) for x in (a, b)]
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for tf32, least, most in ((False, 0, 2e-6), (True, 1e-5, 2e-3)):
        out = runtime.empty((64, 64), np.float32)
        runtime.gemm(*there, out, tf32=tf32)
        error = np.abs(runtime.to_host(out) - exact).max() / np.abs(exact).max()
        assert least <= error <= most


def test_replays_read_memory_anew(runtime: Any) -> None:
    a, out = runtime.zeros((4, 4), np.float32), runtime.empty((4, 4), np.float32)
    kernel_out = runtime.empty((16,), np.float32)

    def enqueue() -> None:
        runtime.gemm(a, a, out)
        runtime.launch(ADD, (1, 1, 1), (32, 1, 1), (out, out, kernel_out, 16))

    for turn in range(5):
        value = np.eye(4, dtype=np.float32) * turn
        runtime.copy(a, runtime.to_device(value))
        runtime.replay(("test", runtime.pointer(a), runtime.pointer(out)), enqueue)
        np.testing.assert_array_equal(runtime.to_host(out), value @ value)
        np.testing.assert_array_equal(runtime.to_host(kernel_out), 2 * (value @ value).reshape(-1))


def test_a_capture_may_allocate_and_runs_nothing_by_itself(runtime: Any) -> None:
    a = runtime.to_device(np.eye(4, dtype=np.float16))
    count = runtime.zeros((1, 1), np.float32)
    one = runtime.to_device(np.ones((1, 1), np.float32))

    def enqueue() -> Any:
        assert runtime.is_capturing()
        runtime.gemm(one, one, count, accumulate=True)
        half = runtime.empty((4, 4), np.float16)
        runtime.gemm(a, a, half)
        wide = runtime.zeros((4, 4), np.float32)
        runtime.launch(WIDEN, (1, 1, 1), (32, 1, 1), (half, wide, 16))
        return wide

    enqueue_once = runtime.zeros((1, 1), np.float32)
    runtime.gemm(one, one, enqueue_once)  # so that nothing has yet to be loaded while capturing
    runtime.launch(WIDEN, (1, 1, 1), (32, 1, 1), (a, runtime.zeros((4, 4), np.float32), 16))
    graph = runtime.capture(enqueue)
    assert not runtime.is_capturing()
    assert float(runtime.to_host(count)[0, 0]) == 0
    for turn in range(3):
        runtime.copy(a, runtime.to_device((np.eye(4) * turn).astype(np.float16)))
        graph.launch()
        np.testing.assert_array_equal(runtime.to_host(graph.result), np.eye(4) * turn**2)
    assert float(runtime.to_host(count)[0, 0]) == 3


def test_a_failed_capture_leaves_everything_usable(runtime: Any) -> None:
    def fail() -> None:
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        runtime.capture(fail)
    assert not runtime.is_capturing()
    np.testing.assert_array_equal(runtime.to_host(runtime.zeros((2,), np.float32)), np.zeros(2))


def test_launches_from_another_thread(runtime: Any) -> None:
    half, wide = runtime.to_device(np.ones(32, np.float16)), runtime.zeros((32,), np.float32)
    done = threading.Thread(target=runtime.launch, args=(WIDEN, (1, 1, 1), (32, 1, 1), (half, wide, 32)))
    done.start()
    done.join()
    runtime.synchronize()
    np.testing.assert_array_equal(runtime.to_host(wide), np.ones(32))


def test_blocks_that_cannot_all_be_resident(runtime: Any) -> None:
    half, wide = runtime.to_device(np.ones(32, np.float16)), runtime.zeros((32,), np.float32)
    resident = runtime.occupancy(WIDEN, 256, 0) * runtime.device().multiprocessors
    assert resident > 0
    arguments = (half, wide, 32)
    runtime.launch(WIDEN, (min(resident, 8), 1, 1), (256, 1, 1), arguments, cooperative=True)
    with pytest.raises(RuntimeError, match=f"cooperative: {resident + 1} blocks, but {resident} can be resident"):
        runtime.launch(WIDEN, (resident + 1, 1, 1), (256, 1, 1), arguments, cooperative=True)
    with pytest.raises(ValueError, match=r"shared: .* bytes are more than"):
        runtime.launch(WIDEN, (1, 1, 1), (256, 1, 1), arguments, shared=2**20)


@pytest.mark.gpu
def test_what_a_compiled_kernel_takes() -> None:
    from gpulstm_kernels.cuda.device.process import current

    runtime = current()
    found = runtime.attributes(Kernel("kernels/layer", "sum_rows", (np.dtype(np.float32),)))
    assert 0 < found.registers < 255
    assert (found.spills, found.shared) == (0, 1024)
    device = runtime.device()
    assert device.capability >= 75
    most = device.shared_per_block
    assert runtime.occupancy(WIDEN, 32, most) == 1
    assert runtime.occupancy(WIDEN, 32, most + 1) == 0
