"""The runtime on CuPy, over a CuPy that records what is asked of it. What a GPU makes of it: test_runtime.py."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_cupy import HANDLES, STATIC, FakeArray, FakeCupy, FakeStream, installed

from gpulstm_kernels.cuda.device import cupy_runtime
from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.runtime import Attributes, Device
from gpulstm_kernels.cuda.device.source import expression, source_text

KERNEL = Kernel("kernels/layer", "sum_rows", (np.dtype(np.float32),))
OTHER = Kernel("kernels/layer", "sum_rows", (np.dtype(np.float64),))
ONE = (1, 1, 1)


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    with installed(monkeypatch) as fake:
        yield fake


@pytest.fixture
def runtime(cupy: FakeCupy) -> cupy_runtime.CuPyRuntime:
    return cupy_runtime.CuPyRuntime()


def test_the_device(runtime: Any, cupy: FakeCupy) -> None:
    assert runtime.device() == Device("fake 0", 90, 4, 227 * 1024, 228 * 1024, 65536, 2048)
    cupy.current = 1
    assert runtime.device().name == "fake 1"


# --- launches -----------------------------------------------------------------------------------------------------


def test_arguments_are_packed_as_a_kernel_declares_them(runtime: Any, cupy: FakeCupy) -> None:
    cupy.parameters = "ppifi"
    array = runtime.empty((3, 4), np.float32)
    runtime.launch(KERNEL, (5, 6, 7), (32, 2, 1), (array, None, -3, 0.5, True), shared=64)
    assert cupy.enqueued == [("launch", HANDLES, 5, 6, 7, 32, 2, 1, 64, [array.ptr, 0, -3, 0.5, 1])]


def test_a_launch_goes_to_the_current_stream(runtime: Any, cupy: FakeCupy) -> None:
    with FakeStream(cupy, 77):
        runtime.launch(KERNEL, ONE, ONE, ())  # the fake's driver compares the stream that it is given
    assert len(cupy.enqueued) == 1


def test_strided_arrays_are_refused(runtime: Any, cupy: FakeCupy) -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        runtime.launch(KERNEL, ONE, ONE, (runtime.empty((3, 4), np.float32).swapaxes(0, 1),))
    assert cupy.enqueued == []


def test_a_kernel_is_compiled_once_a_device(runtime: Any, cupy: FakeCupy) -> None:
    for device in (0, 1, 0):
        cupy.current = device
        for kernel in (KERNEL, OTHER, KERNEL):
            runtime.launch(kernel, ONE, ONE, ())
    assert [module["name_expressions"] for module in cupy.modules] == [(expression(k),) for k in (KERNEL, OTHER)] * 2
    assert [what[1] - HANDLES for what in cupy.enqueued] == [0, 1, 0, 2, 3, 2, 0, 1, 0]
    assert cupy.modules[0]["code"] == source_text(KERNEL)
    assert cupy.modules[0]["options"][0] == "-std=c++17"
    assert all(option.startswith("-I") for option in cupy.modules[0]["options"][1:])
    assert runtime.attributes(KERNEL) == Attributes(40, 0, STATIC)


def test_a_full_folder_of_compiled_kernels(
    runtime: Any, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CuPy keeps kernels there, and raises where it cannot, unless it is told to keep them in memory."""
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "")
    compiles = cupy.RawModule

    def writes(**given: Any) -> Any:
        if os.environ["CUPY_CACHE_IN_MEMORY"] != "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return compiles(**given)

    monkeypatch.setattr(cupy, "RawModule", writes)
    for kernel in (KERNEL, OTHER):
        runtime.launch(kernel, ONE, ONE, ())
    assert len(cupy.enqueued) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "CuPy's kernel cache cannot be used, kernels are compiled in every process: [Errno 28] No space left on device"
    ]


def test_every_thread_gets_a_context(runtime: Any, cupy: FakeCupy) -> None:
    """The driver's launch needs one, and only calls of the runtime make one."""
    array = runtime.empty((1,), np.float32)
    cupy.parameters = "p"
    threads = [threading.Thread(target=runtime.launch, args=(KERNEL, ONE, ONE, (array,))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cupy.enqueued) == 2
    assert len(set(cupy.contexts)) == len(cupy.contexts) == 2


def test_shared_memory_beyond_48_kib_is_asked_for_once(runtime: Any, cupy: FakeCupy) -> None:
    left = 48 * 1024 - STATIC
    for size in (left, left + 1, 100_000, 60_000):
        runtime.launch(KERNEL, ONE, ONE, (), shared=size)
    assert cupy.kernels[0].granted == [left + 1, 100_000]
    most = 227 * 1024 - STATIC
    assert runtime.occupancy(KERNEL, 32, most) == 2
    assert runtime.occupancy(KERNEL, 32, most + 1) == 0
    with pytest.raises(ValueError, match=f"shared: {most + 1} bytes are more than the {most} that a block can have"):
        runtime.launch(KERNEL, ONE, ONE, (), shared=most + 1)


def test_a_cooperative_launch_fits_the_device(runtime: Any, cupy: FakeCupy) -> None:
    runtime.launch(KERNEL, (2, 2, 2), (64, 1, 1), (), cooperative=True)
    assert cupy.enqueued == [("cooperative", HANDLES, 2, 2, 2, 64, 1, 1, 0, [])]
    with pytest.raises(RuntimeError, match="cooperative: 9 blocks, but 8 can be resident at a time"):
        runtime.launch(KERNEL, (3, 3, 1), (64, 1, 1), (), cooperative=True)
    runtime.launch(KERNEL, (3, 3, 1), (64, 1, 1), ())
    assert len(cupy.enqueued) == 2


# --- products -----------------------------------------------------------------------------------------------------


def product(runtime: Any) -> None:
    a = runtime.empty((2, 2), np.float32)
    runtime.gemm(a, a, a)


def test_products_have_a_handle_a_device_and_a_workspace_a_stream(runtime: Any, cupy: FakeCupy) -> None:
    streams = [FakeStream(cupy, 11), FakeStream(cupy, 22)]
    for device in (0, 1):
        cupy.current = device
        for stream in (*streams, *streams):
            with stream:
                product(runtime)
    handles, workspaces = ([what[i] for what in cupy.enqueued] for i in (1, 2))
    assert handles == [1] * 4 + [2] * 4
    assert workspaces[:2] == workspaces[2:4]
    assert workspaces[4:6] == workspaces[6:8]
    assert len(set(workspaces)) == 4


def test_workspaces_of_streams_long_gone_are_let_go(runtime: Any, cupy: FakeCupy) -> None:
    for i in range(50):
        with FakeStream(cupy, i):
            product(runtime)
    assert len(runtime._workspaces) == cupy_runtime._WORKSPACES


# --- graphs -------------------------------------------------------------------------------------------------------


def test_replay_runs_then_captures_then_launches(runtime: Any, cupy: FakeCupy) -> None:
    calls = []

    def enqueue() -> None:
        calls.append(cupy.stream)
        product(runtime)
        runtime.launch(KERNEL, ONE, ONE, ())

    for _ in range(4):
        runtime.replay(("key",), enqueue)
    assert len(calls) == 2
    assert calls[0].ptr == 0
    assert calls[1].non_blocking
    assert [what[0] for what in cupy.enqueued] == ["gemm", "launch", "graph", "graph", "graph"]
    recorded = cupy.enqueued[2][1]
    assert list(recorded) == cupy.enqueued[:2]  # with the workspace of the stream that launches it, too
    assert cupy.stream.ptr == 0


def test_a_graph_belongs_to_its_key_stream_and_device(runtime: Any, cupy: FakeCupy) -> None:
    calls = 0

    def enqueue() -> None:
        nonlocal calls
        calls += 1

    for device in (0, 1):
        cupy.current = device
        for stream in (FakeStream(cupy, 11), FakeStream(cupy, 22)):
            for key in ("a", "b"):
                with stream:
                    for _ in range(3):
                        runtime.replay((key,), enqueue)
    assert calls == 2 * 2 * 2 * 2
    assert sum(what[0] == "graph" for what in cupy.enqueued) == 2 * 2 * 2 * 2


def test_the_least_recently_used_graph_goes_first(runtime: Any, cupy: FakeCupy) -> None:
    calls: list[int] = []

    def replay(key: int) -> None:
        runtime.replay((key,), lambda: calls.append(key))

    for key in range(cupy_runtime._GRAPHS):
        replay(key)
        replay(key)
    replay(0)
    replay(-1)  # pushes out 1, not 0
    calls.clear()
    replay(0)
    assert calls == []
    replay(1)
    assert calls == [1]


def test_replay_within_a_capture_only_enqueues(runtime: Any, cupy: FakeCupy) -> None:
    def inner() -> None:
        runtime.launch(KERNEL, ONE, ONE, ())

    graph = runtime.capture(lambda: [runtime.replay(("inner",), inner) for _ in range(3)])
    assert cupy.enqueued == []
    graph.launch()
    assert [what[0] for what in cupy.enqueued[0][1]] == ["launch"] * 3
    assert runtime._graphs == {}


def test_a_capture_owns_its_memory_and_workspace(runtime: Any, cupy: FakeCupy) -> None:
    def enqueue() -> FakeArray:
        assert runtime.is_capturing()
        product(runtime)
        return runtime.zeros((4,), np.float32)

    product(runtime)
    graphs = [runtime.capture(enqueue) for _ in range(2)]
    product(runtime)
    assert not runtime.is_capturing()
    for graph in graphs:
        graph.launch()
    first, last, *launched = cupy.enqueued
    assert first == last
    assert len({first[2], *(what[1][0][2] for what in launched)}) == 3
    owners = [graph.result.owner for graph in graphs]
    assert len({"default", *owners}) == 3
    assert [what[1][1] for what in launched] == [("memset", graph.result.ptr, 0, 16) for graph in graphs]
    assert cupy.allocators == ["default"]


def test_a_failure_while_capturing_ends_the_capture(runtime: Any, cupy: FakeCupy) -> None:
    def fail() -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        runtime.capture(fail)
    assert not runtime.is_capturing()
    assert not any(stream.is_capturing() for stream in runtime._streams.values())
    assert runtime._workspaces == {}
    runtime.capture(lambda: None).launch()
    assert cupy.enqueued == [("graph", ())]


def test_synchronize_waits_for_the_current_stream_alone(runtime: Any, cupy: FakeCupy) -> None:
    with FakeStream(cupy, 5):
        runtime.synchronize()
        assert cupy.stream.waited == 1
    assert cupy.stream.waited == 0


# --- arrays -------------------------------------------------------------------------------------------------------


def test_copies(runtime: Any, cupy: FakeCupy) -> None:
    a, b = runtime.empty((2, 3), np.float16), runtime.empty((2, 3), np.float16)
    runtime.copy(a, b)
    wide = runtime.empty((3, 2), np.float16).swapaxes(0, 1)
    runtime.copy(a, wide)
    assert cupy.enqueued == [("copy", a.ptr, b.ptr, 12), ("copyto", "<u2", (6, 2), (2, 4))]
    for other in (runtime.empty((3, 2), np.float16), runtime.empty((2, 3), np.float32)):
        with pytest.raises(ValueError, match="src: expected float16 of shape"):
            runtime.copy(a, other)


def test_arrays_from_the_host_are_contiguous(runtime: Any) -> None:
    assert runtime.to_device(np.ones((2, 3)).T).flags.c_contiguous
    assert runtime.pointer(None) == 0


class Foreign:
    """Another library's array."""

    def __init__(self, kind: int, device: int, array: Any) -> None:
        self.kind, self.device, self.array = kind, device, array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.device

    def __dlpack__(self) -> Any:
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


def test_arrays_that_are_where_they_are_needed(runtime: Any) -> None:
    array = runtime.empty((2,), np.float32)
    assert runtime.as_array(array, "x") is array
    for kind in (2, 13):  # the device's memory, and managed memory
        assert runtime.as_array(Foreign(kind, 0, array), "x") is array


@pytest.mark.parametrize("value", [np.ones(2), [1.0], Foreign(1, 0, None), Foreign(3, 0, None), None])
def test_arrays_on_the_host(runtime: Any, value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^x: expected an array on the GPU, got \w+\.\w+; cupy.asarray moves one there"
    ):
        runtime.as_array(value, "x")


def test_arrays_on_another_device(runtime: Any, cupy: FakeCupy) -> None:
    array = runtime.empty((2,), np.float32)
    cupy.current = 1
    for value in (array, Foreign(2, 0, array), Foreign(13, 1, array)):
        with pytest.raises(ValueError, match="x: expected an array on GPU 1, got one on GPU 0"):
            runtime.as_array(value, "x")


def test_arrays_that_do_not_let_go(runtime: Any) -> None:
    with pytest.raises(TypeError, match="x: it requires a gradient"):
        runtime.as_array(Foreign(2, 0, BufferError("it requires a gradient")), "x")
