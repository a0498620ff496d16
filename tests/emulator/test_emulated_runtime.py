"""What the emulated runtime refuses or makes visible, so that tests on it fail where a device would."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import dtype_of

from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.runtime import Device

from . import build
from .runtime import EmulatedRuntime

pytestmark = pytest.mark.emulator

ADD = Kernel("kernels/layer", "add_biases", (np.dtype(np.float32),))
ONE, MANY = (1, 1, 1), (64, 1, 1)


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there + here,
        lambda here, there: np.add(here, there),
        lambda here, there: np.asarray(there),
        lambda here, there: np.copyto(here, there),
        lambda here, there: np.stack([here, there]),
        lambda here, there: here.__setitem__(slice(None), there),
        lambda here, there: np.matmul(here, there),
        lambda here, there: there * 2,
    ],
)
def test_device_memory_is_out_of_numpys_reach(mix: Any) -> None:
    runtime = EmulatedRuntime()
    with pytest.raises(TypeError):
        mix(np.zeros(4, np.float32), runtime.zeros((4,), np.float32))


def test_host_arrays_are_refused() -> None:
    runtime = EmulatedRuntime()
    there: Any = runtime.zeros((4,), np.float32)
    here: Any = np.zeros(4, np.float32)
    for misuse in (
        lambda: runtime.to_device(there),
        lambda: runtime.launch(ADD, ONE, MANY, (there, there, here, 4)),
        lambda: runtime.copy(there, here),
        lambda: runtime.copy(here, there),
        lambda: runtime.gemm(here.reshape(2, 2), there.reshape(2, 2), there.reshape(2, 2)),
        lambda: runtime.pointer(here),
    ):
        with pytest.raises((TypeError, AttributeError)):
            misuse()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_empty_memory_is_full_of_nan(dtype: str) -> None:
    kind = dtype_of(dtype)
    runtime = EmulatedRuntime()
    assert np.isnan(runtime.to_host(runtime.empty((3, 5), kind)).astype(np.float64)).all()
    filled = runtime.empty((3, 5), kind)
    runtime.copy(filled, runtime.zeros((3, 5), kind))
    assert not np.isnan(runtime.to_host(filled).astype(np.float64)).any()


def test_memory_of_a_graph_holds_nothing_from_one_launch_to_the_next() -> None:
    runtime = EmulatedRuntime()
    graph = runtime.capture(lambda: runtime.empty((4,), np.float32))
    runtime.copy(graph.result, runtime.zeros((4,), np.float32))
    graph.launch()
    assert np.isnan(runtime.to_host(graph.result)).all()


def test_memory_has_an_end_and_comes_back() -> None:
    runtime = EmulatedRuntime(memory=1000)
    kept = runtime.to_device(np.arange(200, dtype=np.float32))
    with pytest.raises(MemoryError, match="404 bytes were asked for"):
        runtime.empty((101,), np.float32)
    rest = runtime.empty((50,), np.float32)
    view = rest[10:20]
    del rest
    with pytest.raises(MemoryError, match="4 bytes"):
        runtime.empty((1,), np.float32)  # a view keeps all of it
    del view
    runtime.empty((50,), np.float32)
    np.testing.assert_array_equal(runtime.to_host(kept), np.arange(200))


def test_indexing_gives_views_and_never_copies() -> None:
    runtime = EmulatedRuntime()
    there = runtime.zeros((2, 3, 4), np.float32)
    runtime.copy(there[1, :, 1:3], runtime.to_device(np.ones((3, 2), np.float32)))
    assert runtime.to_host(there).sum() == 6
    assert there[0, 1, 2].shape == ()
    with pytest.raises(TypeError, match="index: expected integers and slices"):
        there[[0, 1]]
    with pytest.raises(ValueError, match="reshape: expected a view"):
        there[:, :2].reshape(-1)


def test_arguments_must_be_those_of_the_kernel() -> None:
    runtime = EmulatedRuntime()
    there = runtime.zeros((4,), np.float32)
    for args in ((there, there, there), (there, there, there, 4.0), (there, there, 4, there)):
        with pytest.raises(TypeError, match="takes pppi, got"):
            runtime.launch(ADD, ONE, MANY, args)
    with pytest.raises(ValueError, match="expected C-contiguous arrays"):
        runtime.launch(ADD, ONE, MANY, (there[::2], there, there, 2))
    for grid, block in (((0, 1, 1), MANY), (ONE, (1025, 1, 1))):
        with pytest.raises(RuntimeError, match="a launch of no threads, or of over 1024 a block"):
            runtime.launch(ADD, grid, block, (there, there, there, 4))


def test_residency_follows_the_device() -> None:
    tiny = Device("tiny", 80, 2, 4096, 10240, 65536, 128)
    runtime = EmulatedRuntime(tiny)
    assert runtime.occupancy(ADD, 32, 0) == 4
    assert runtime.occupancy(ADD, 32, 4096) == 2
    there = runtime.zeros((4,), np.float32)
    runtime.launch(ADD, (4, 1, 1), MANY, (there, there, there, 4), cooperative=True)
    runtime.launch(ADD, (5, 1, 1), MANY, (there, there, there, 4))
    with pytest.raises(RuntimeError, match="cooperative: 5 blocks, but 4 can be resident"):
        runtime.launch(ADD, (5, 1, 1), MANY, (there, there, there, 4), cooperative=True)


def test_replays_run_the_recorded_work() -> None:
    runtime = EmulatedRuntime()
    there, out = runtime.to_device(np.ones(4, np.float32)), runtime.empty((4,), np.float32)
    asked: list[int] = []

    def enqueue() -> None:
        asked.append(len(asked))
        runtime.launch(ADD, ONE, MANY, (there, there, out, 4))

    for turn in range(1, 5):
        runtime.replay(("a",), enqueue)
        assert (runtime.launches, runtime.replays) == (turn, turn - 1)
    assert len(asked) == 2  # once to run, once to record
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        runtime.capture(lambda: runtime.to_host(there))


def test_launches_of_many_threads_take_turns() -> None:
    runtime = EmulatedRuntime(seed=1)
    one = runtime.to_device(np.ones(4096, np.float32))
    outs = [runtime.empty((4096,), np.float32) for _ in range(4)]

    def work(out: Any) -> None:
        for _ in range(10):
            runtime.launch(ADD, (64, 1, 1), MANY, (one, one, out, 4096))

    threads = [threading.Thread(target=work, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        np.testing.assert_array_equal(runtime.to_host(out), np.full(4096, 2))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match=r"needs a C\+\+20 compiler: install g\+\+ or clang\+\+"):
        build.compiler.__wrapped__()


def test_without_cudas_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match=r"needs CUDA's headers .* pip install nvidia-cuda-runtime"):
        build.headers.__wrapped__()


def test_what_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text('#include "device.cuh"\n__global__ void wrong(int* y) { *y = nonsense; }\n')
    runtime = EmulatedRuntime()
    with pytest.raises(build.BuildError, match="nonsense"):
        runtime.launch(Kernel(str(tmp_path / "wrong"), "wrong"), ONE, ONE, (runtime.zeros((1,), np.int32),))


def order_of_turns(seed: int) -> Any:
    runtime = EmulatedRuntime(seed=seed)
    order = runtime.empty((2, 64), np.int32)
    turns = Kernel(str(Path(__file__).with_name("turns")), "turns")
    runtime.launch(turns, ONE, MANY, (order, runtime.zeros((2,), np.int32)))
    return runtime.to_host(order)


def test_a_seed_decides_the_order_of_turns() -> None:
    before, after = order_of_turns(0)
    np.testing.assert_array_equal(before, np.arange(64))
    np.testing.assert_array_equal(after, np.roll(before, 1))  # the last thread at a barrier runs on at once
    one, other = order_of_turns(1), order_of_turns(2)
    np.testing.assert_array_equal(one, order_of_turns(1))
    for first, second in ((one[0], one[1]), (one[0], other[0]), (other[0], before)):
        assert (first != second).any()
        np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_a_grid_barrier_needs_a_cooperative_launch() -> None:
    runtime = EmulatedRuntime()
    ring = Kernel(str(Path(__file__).parents[1] / "cuda" / "primitives"), "ring_of_blocks")
    x, counter = runtime.zeros((6,), np.float32), runtime.zeros((1,), np.uint32)
    with pytest.raises(RuntimeError, match="polls memory that none will write; 1 blocks are resident"):
        runtime.launch(ring, (3, 1, 1), MANY, (x, x, x, counter, 5))
