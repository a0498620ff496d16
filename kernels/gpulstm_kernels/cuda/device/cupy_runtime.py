"""The runtime on a GPU: CuPy's arrays, streams, memory and graphs, and NVRTC through its RawModule.

A runtime answers for CuPy's current device and works on its current stream; what it keeps, it keeps for each device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import blas
from .kernel import Kernel
from .runtime import Attributes, Device, Graph, Runtime, Shape3, arguments
from .source import expression, source_text

logger = logging.getLogger("gpulstm")
_GRAPHS = 64  # kept for replay
_WORKSPACES = 16  # kept for cuBLAS, one a stream
_INSTALL = "install gpulstm[cuda13] or gpulstm[cuda12]"


def why_not() -> str | None:
    """Why kernels cannot run here through CuPy; None where they can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy could not be imported ({error}); {_INSTALL}"
    api = cupy.cuda.runtime
    try:
        devices = api.getDeviceCount()
    except api.CUDARuntimeError as error:
        driver, needed = _driver_version(api), api.runtimeGetVersion()
        if 0 < driver // 1000 < needed // 1000:  # within a major version any driver will do
            return f"the driver speaks CUDA {_dotted(driver)}, but CuPy was made for {_dotted(needed)}: {error}"
        return f"CuPy finds no CUDA device, or no driver for it ({error})"
    if not devices:
        return "CuPy finds no CUDA device, or no driver for it"
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # whatever its loader raises for a missing library
        return f"NVRTC, the compiler for kernels, could not be loaded ({error}); {_INSTALL}"
    if not include_folders():
        return f"CUDA's headers (cuda_fp16.h) were not found; {_INSTALL}"
    try:
        blas.find(_major())
    except OSError as error:
        return str(error)
    return None


def _driver_version(api: Any) -> int:
    try:
        version: int = api.driverGetVersion()
    except api.CUDARuntimeError:
        return 0
    return version


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _major() -> int:
    """The CUDA version that CuPy was made for."""
    import cupy

    version: int = cupy.cuda.runtime.runtimeGetVersion()
    return version // 1000


@functools.cache
def include_folders() -> tuple[str, ...]:
    """Where CUDA's headers are, of the version that CuPy was made for: NVIDIA's packages, or the toolkit it knows."""
    import cupy

    roots = []
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        roots.append(Path(root) / (f"cu{_major()}" if _major() > 12 else "cuda_runtime"))
    toolkit = cupy.cuda.get_cuda_path()
    if toolkit:
        roots.append(Path(toolkit))
    return tuple(str(root / "include") for root in roots if (root / "include" / "cuda_fp16.h").is_file())[:1]


@dataclass
class _Compiled:
    """A kernel on one device: its handle, and how much dynamic shared memory it may be launched with as yet."""

    kernel: Any
    handle: int
    static: int
    dynamic: int


class CuPyGraph(Graph):
    """A CUDA graph, the workspace of its products, and the memory pool that its buffers came from."""

    def __init__(self, graph: Any, workspace: Any, pool: Any, result: Any) -> None:
        self._graph, self._workspace, self._pool, self.result = graph, workspace, pool, result
        self._lock = threading.Lock()  # launches of one graph from several threads may not overlap

    def launch(self) -> None:
        with self._lock:
            self._graph.launch()


class CuPyRuntime(Runtime):
    """See :class:`~gpulstm_kernels.cuda.device.runtime.Runtime`."""

    def __init__(self) -> None:
        import cupy

        self._cupy, self._driver = cupy, cupy.cuda.driver
        self._library = blas.find(_major())
        self._thread = threading.local()
        self._lock = threading.RLock()  # of all that follows; never taken while waiting for another
        self._handles: dict[int, blas.Handle] = {}  # by device
        self._workspaces: OrderedDict[tuple[int, int], Any] = OrderedDict()  # by device and stream
        self._kernels: dict[tuple[int, Kernel], _Compiled] = {}
        self._streams: dict[int, Any] = {}  # to capture on, by device
        self._graphs: OrderedDict[tuple[Any, ...], CuPyGraph | None] = OrderedDict()

    def device(self) -> Device:
        return _device(self._here())

    def owns(self, value: Any) -> bool:
        return isinstance(value, self._cupy.ndarray)

    def as_array(self, value: Any, name: str) -> Any:
        here = self._here()
        if not self.owns(value):
            kind, _ = value.__dlpack_device__() if hasattr(value, "__dlpack_device__") else (1, 0)
            if int(kind) not in (2, 13):  # kDLCUDA, kDLCUDAManaged
                got = f"{type(value).__module__}.{type(value).__qualname__}"
                raise TypeError(f"{name}: expected an array on the GPU, got {got}; cupy.asarray moves one there")
            try:
                value = self._cupy.from_dlpack(value)
            except BufferError as error:  # such as a tensor that a gradient is recorded of
                raise TypeError(f"{name}: {error}") from error
        if value.device.id != here:
            raise ValueError(f"{name}: expected an array on GPU {here}, got one on GPU {value.device.id}")
        return value

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        result = self._cupy.empty(shape, dtype)
        result.data.memset_async(0, result.nbytes)
        return result

    def copy(self, dst: Any, src: Any) -> None:
        if dst.shape != src.shape or dst.dtype != src.dtype:
            raise ValueError(f"src: expected {dst.dtype} of shape {dst.shape}, got {src.dtype} of shape {src.shape}")
        if dst.flags.c_contiguous and src.flags.c_contiguous:
            dst.data.copy_from_device_async(src.data, dst.nbytes)
        else:
            bits = f"u{dst.dtype.itemsize}"  # a copy need not know what it copies
            self._cupy.copyto(dst.view(bits), src.view(bits))

    def to_device(self, array: np.ndarray) -> Any:
        return self._cupy.array(array, order="C")

    def to_host(self, array: Any) -> np.ndarray:
        host: np.ndarray = self._cupy.asnumpy(array)
        return host

    def pointer(self, array: Any) -> int:
        return 0 if array is None else array.data.ptr

    def launch(
        self,
        kernel: Kernel,
        grid: Shape3,
        block: Shape3,
        args: tuple[Any, ...],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        compiled = self._compiled(kernel)
        if not self._grant(compiled, shared):
            most = self.device().shared_per_block - compiled.static
            raise ValueError(f"shared: {shared} bytes are more than the {most} that a block can have")
        values = arguments(args, self.pointer)
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        where = (compiled.handle, *grid, *block, shared, self._stream(), ctypes.addressof(addresses))
        if cooperative:
            blocks, threads = math.prod(grid), math.prod(block)
            resident = self.occupancy(kernel, threads, shared) * self.device().multiprocessors
            if blocks > resident:
                raise RuntimeError(f"cooperative: {blocks} blocks, but {resident} can be resident at a time")
            self._driver.launchCooperativeKernel(*where)
        else:
            self._driver.launchKernel(*where, 0)

    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> int:
        compiled = self._compiled(kernel)
        if not self._grant(compiled, shared):
            return 0
        count: int = self._driver.occupancyMaxActiveBlocksPerMultiprocessor(compiled.handle, threads, shared)
        return count

    def attributes(self, kernel: Kernel) -> Attributes:
        compiled = self._compiled(kernel)
        return Attributes(compiled.kernel.num_regs, compiled.kernel.local_size_bytes, compiled.static)

    def gemm(
        self,
        a: Any,
        b: Any,
        out: Any,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
        tf32: bool = False,
    ) -> None:
        matrices = [blas.Matrix(self.pointer(m), m.shape, m.strides, m.dtype) for m in (a, b, out)]
        with self._lock:
            here, stream = self._here(), self._stream()
            if here not in self._handles:
                self._handles[here] = blas.Handle(self._library)
            handle, workspace = self._handles[here], self._workspace(here, stream)
            handle.use(stream, self.pointer(workspace), workspace.nbytes)
            handle.gemm(*matrices, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate, tf32=tf32)

    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        if self.is_capturing():
            enqueue()
            return
        here, stream = self._here(), self._stream()
        key = (here, stream, *key)  # the stream's workspace is part of the graph
        with self._lock:
            known = key in self._graphs
            graph = self._graphs.get(key)
            if known and graph is None:
                graph = self._captured(enqueue, self._workspace(here, stream), None)
            self._graphs[key] = graph
            self._graphs.move_to_end(key)
            while len(self._graphs) > _GRAPHS:
                self._graphs.popitem(last=False)
        if graph is None:
            enqueue()
        else:
            graph.launch()

    def capture(self, enqueue: Callable[[], Any]) -> CuPyGraph:
        pool = self._cupy.cuda.MemoryPool()
        with self._cupy.cuda.using_allocator(pool.malloc):
            # it may be launched on any stream, beside others: it shares no workspace
            return self._captured(enqueue, self._new_workspace(), pool)

    def _captured(self, enqueue: Callable[[], Any], workspace: Any, pool: Any) -> CuPyGraph:
        with self._lock:  # of this process, one capture at a time
            here = self._here()
            if here not in self._streams:  # the caller's may be the null stream, which cannot be captured
                self._streams[here] = self._cupy.cuda.Stream(non_blocking=True)
            stream = self._streams[here]
            self._workspaces[here, stream.ptr] = workspace
            try:
                with stream:
                    stream.begin_capture()
                    try:
                        result = enqueue()
                    except BaseException:
                        with contextlib.suppress(RuntimeError):  # the first exception says it better
                            stream.end_capture()
                        raise
                    return CuPyGraph(stream.end_capture(), workspace, pool, result)
            finally:
                self._workspaces.pop((here, stream.ptr), None)

    def is_capturing(self) -> bool:
        capturing: bool = self._cupy.cuda.get_current_stream().is_capturing()
        return capturing

    def synchronize(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    def _here(self) -> int:
        """The current device, whose context is made this thread's: the driver's calls need one."""
        runtime = self._cupy.cuda.runtime
        device: int = runtime.getDevice()
        ready: set[int] = self._thread.__dict__.setdefault("ready", set())
        if device not in ready:
            runtime.memGetInfo()
            ready.add(device)
        return device

    def _stream(self) -> int:
        address: int = self._cupy.cuda.get_current_stream().ptr
        return address

    def _compiled(self, kernel: Kernel) -> _Compiled:
        key = self._here(), kernel
        found = self._kernels.get(key)
        if found is None:
            with self._lock:
                try:
                    raw = self._made(kernel)
                except OSError as error:  # of the folder where CuPy keeps what it compiled: full, or not to be written
                    logger.warning(
                        f"CuPy's kernel cache cannot be used, kernels are compiled in every process: {error}"
                    )
                    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
                    raw = self._made(kernel)
                found = _Compiled(raw, raw.kernel.ptr, raw.shared_size_bytes, raw.max_dynamic_shared_size_bytes)
                self._kernels[key] = found
        return found

    def _made(self, kernel: Kernel) -> Any:
        name = expression(kernel)
        module = self._cupy.RawModule(
            code=source_text(kernel),
            options=("-std=c++17", *(f"-I{folder}" for folder in include_folders())),
            name_expressions=(name,),
        )
        return module.get_function(name)

    def _grant(self, compiled: _Compiled, shared: int) -> bool:
        """Let a kernel be launched with ``shared`` dynamic bytes; False where a block cannot have them."""
        if compiled.static + shared > self.device().shared_per_block:
            return False
        with self._lock:
            if shared > compiled.dynamic:  # at first what is left of 48 KiB
                compiled.kernel.max_dynamic_shared_size_bytes = compiled.dynamic = shared
        return True

    def _workspace(self, device: int, stream: int) -> Any:
        """What cuBLAS works with on a stream."""
        key = device, stream
        if key not in self._workspaces:
            self._workspaces[key] = self._new_workspace()
        self._workspaces.move_to_end(key)
        while len(self._workspaces) > _WORKSPACES:
            self._workspaces.popitem(last=False)
        return self._workspaces[key]

    def _new_workspace(self) -> Any:
        return self._cupy.empty(blas.workspace_size(self.device().capability), np.uint8)


@functools.cache
def _device(number: int) -> Device:
    import cupy

    has = cupy.cuda.runtime.getDeviceProperties(number)
    return Device(
        has["name"].decode(),
        has["major"] * 10 + has["minor"],
        has["multiProcessorCount"],
        has["sharedMemPerBlockOptin"],
        has["sharedMemPerMultiprocessor"],
        has["regsPerMultiprocessor"],
        has["maxThreadsPerMultiProcessor"],
    )
