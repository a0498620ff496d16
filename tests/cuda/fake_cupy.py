"""The part of CuPy that cupy_runtime.py touches, recording what is asked of it: no device, no memory, no time."""

from __future__ import annotations

import contextlib
import ctypes
import math
import struct
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpulstm_kernels.cuda.device import blas, cupy_runtime

STATIC = 2048  # bytes of static shared memory of every kernel
HANDLES = 1000


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class FakeArray:
    """An array of CuPy: layout and address only."""

    def __init__(self, cupy: FakeCupy, layout: np.ndarray, pointer: int, device: int, owner: str) -> None:
        self.cupy, self.layout, self.owner = cupy, layout, owner
        self.shape, self.dtype, self.strides = layout.shape, layout.dtype, layout.strides
        self.nbytes, self.flags = layout.nbytes, layout.flags
        self.device = types.SimpleNamespace(id=device)
        self.data = self
        self.ptr = pointer

    def swapaxes(self, first: int, second: int) -> FakeArray:
        return FakeArray(self.cupy, self.layout.swapaxes(first, second), self.ptr, self.device.id, self.owner)

    def view(self, dtype: str) -> FakeArray:
        return FakeArray(self.cupy, self.layout.view(dtype), self.ptr, self.device.id, self.owner)

    def memset_async(self, value: int, size: int) -> None:
        self.cupy.enqueue("memset", self.ptr, value, size)

    def copy_from_device_async(self, source: FakeArray, size: int) -> None:
        self.cupy.enqueue("copy", self.ptr, source.ptr, size)


class FakeStream:
    """A stream; what is enqueued while it is being captured goes to a graph."""

    def __init__(self, cupy: FakeCupy, pointer: int, non_blocking: bool = False) -> None:
        self.cupy, self.ptr, self.non_blocking = cupy, pointer, non_blocking
        self.recording: list[tuple[Any, ...]] | None = None
        self.waited = 0

    def __enter__(self) -> None:
        self.cupy.streams.append(self)

    def __exit__(self, *_: object) -> None:
        assert self.cupy.streams.pop() is self

    def is_capturing(self) -> bool:
        return self.recording is not None

    def begin_capture(self) -> None:
        assert self.ptr != 0, "the null stream cannot be captured"
        self.recording = []

    def end_capture(self) -> FakeGraph:
        recorded, self.recording = self.recording, None
        assert recorded is not None
        return FakeGraph(self.cupy, recorded)

    def synchronize(self) -> None:
        self.waited += 1


class FakeGraph:
    """A CUDA graph: launched, it enqueues what was recorded."""

    def __init__(self, cupy: FakeCupy, recorded: list[tuple[Any, ...]]) -> None:
        self.cupy, self.recorded = cupy, recorded

    def launch(self) -> None:
        self.cupy.enqueue("graph", tuple(self.recorded))


class FakeKernel:
    """A kernel on the device that was current when it was compiled."""

    num_regs, local_size_bytes, shared_size_bytes = 40, 0, STATIC

    def __init__(self, pointer: int) -> None:
        self.kernel = types.SimpleNamespace(ptr=pointer)
        self.granted: list[int] = []

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.granted[-1] if self.granted else 48 * 1024 - STATIC

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self.granted.append(size)


class FakeCublas:
    """The library; a product is enqueued with the workspace that was set."""

    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy = cupy
        self.made = 0
        self.used: dict[int, list[int]] = {}

    def cublasCreate_v2(self, handle: Any) -> int:
        self.made += 1
        handle._obj.value = self.made
        return 0

    def cublasSetMathMode(self, handle: Any, mode: Any) -> int:
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self.used[handle.value] = [stream.value or 0]
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, workspace: Any, size: Any) -> int:
        self.used[handle.value].append(workspace.value)
        return 0

    def cublasGemmStridedBatchedEx(self, handle: Any, *arguments: Any) -> int:
        stream, workspace = self.used[handle.value]
        assert stream == self.cupy.stream.ptr
        self.cupy.enqueue("gemm", handle.value, workspace)
        return 0


class FakeCupy(types.ModuleType):
    """The module, with two devices of compute capability 9.0 that have four multiprocessors each."""

    ndarray = FakeArray

    def __init__(self) -> None:
        super().__init__("cupy")
        self.current = 0
        self.resident = 2  # blocks a multiprocessor
        self.enqueued: list[tuple[Any, ...]] = []
        self.modules: list[dict[str, Any]] = []
        self.kernels: list[FakeKernel] = []
        self.contexts: list[tuple[str, int]] = []  # thread and device
        self.streams = [FakeStream(self, 0)]
        self.allocators: list[str] = ["default"]
        self.made = 0
        runtime = types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDevice=lambda: self.current,
            getDeviceCount=lambda: 2,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13020,
            memGetInfo=lambda: self.contexts.append((threading.current_thread().name, self.current)),
            getDeviceProperties=self._properties,
        )
        driver = types.SimpleNamespace(
            launchKernel=lambda *where: self._launch("launch", where[:-1]),
            launchCooperativeKernel=lambda *where: self._launch("cooperative", where),
            occupancyMaxActiveBlocksPerMultiprocessor=lambda kernel, threads, shared: self.resident,
        )
        self.cuda = types.SimpleNamespace(
            runtime=runtime,
            driver=driver,
            nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
            get_cuda_path=lambda: None,
            get_current_stream=lambda: self.stream,
            Stream=lambda non_blocking: FakeStream(self, self._address(), non_blocking),
            MemoryPool=lambda: types.SimpleNamespace(malloc=f"pool {self._address()}"),
            using_allocator=self._using_allocator,
        )
        self.parameters = ""  # the types of a kernel's parameters: p pointer, i int32, f float32

    @property
    def stream(self) -> FakeStream:
        return self.streams[-1]

    def enqueue(self, *what: Any) -> None:
        (self.enqueued if self.stream.recording is None else self.stream.recording).append(what)

    def empty(self, shape: Any, dtype: Any) -> FakeArray:
        layout = np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape if isinstance(shape, tuple) else (shape,))
        whole = np.ndarray(layout.shape, layout.dtype, buffer=np.zeros(max(1, layout.nbytes), np.uint8))
        return FakeArray(self, whole, self._address(), self.current, self.allocators[-1])

    def array(self, value: np.ndarray, order: str = "K") -> FakeArray:
        return FakeArray(self, np.array(value, order=order), self._address(), self.current, self.allocators[-1])

    def copyto(self, target: FakeArray, source: FakeArray) -> None:
        self.enqueue("copyto", target.dtype.str, target.strides, source.strides)

    def from_dlpack(self, value: Any) -> FakeArray:
        return value.__dlpack__()

    def RawModule(self, **given: Any) -> Any:
        self.modules.append(given)

        def get_function(name: str) -> FakeKernel:
            assert name in given["name_expressions"]
            self.kernels.append(FakeKernel(HANDLES + len(self.kernels)))
            return self.kernels[-1]

        return types.SimpleNamespace(get_function=get_function)

    def _launch(self, kind: str, where: tuple[Any, ...]) -> None:
        *dimensions, shared, stream, addresses = where
        assert stream == self.stream.ptr
        values: list[Any] = []
        for i, letter in enumerate(self.parameters):
            address = ctypes.c_void_p.from_address(addresses + i * ctypes.sizeof(ctypes.c_void_p)).value
            size = {"p": 8, "i": 4, "f": 4}[letter]
            values.append(*struct.unpack("P" if letter == "p" else letter, ctypes.string_at(address, size)))
        assert math.prod(dimensions[1:]) > 0
        self.enqueue(kind, *dimensions, shared, values)

    def _address(self) -> int:
        self.made += 1
        return self.made * 4096

    @contextlib.contextmanager
    def _using_allocator(self, allocator: str) -> Iterator[None]:
        self.allocators.append(allocator)
        yield
        self.allocators.pop()

    def _properties(self, device: int) -> dict[str, Any]:
        return {
            "name": b"fake %d" % device,
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 4,
            "sharedMemPerBlockOptin": 227 * 1024,
            "sharedMemPerMultiprocessor": 228 * 1024,
            "regsPerMultiprocessor": 65536,
            "maxThreadsPerMultiProcessor": 2048,
        }


@contextlib.contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    """In the real one's place, with its cuBLAS; what was found out about the real one is forgotten."""
    fake = FakeCupy()
    library = FakeCublas(fake)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(blas, "find", lambda major: library)
    caches = (cupy_runtime.include_folders, cupy_runtime._device)
    for cached in caches:
        cached.cache_clear()
    yield fake
    for cached in caches:
        cached.cache_clear()
