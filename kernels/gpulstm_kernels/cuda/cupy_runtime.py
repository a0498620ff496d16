"""The runtime on a GPU: CuPy's arrays, streams, memory and graphs, and NVRTC through its RawModule.

A runtime answers for CuPy's current device and works on its current stream; what it keeps is kept a device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import blas, compile
from .runtime import Attributes, Device, Graph, Kernel, Runtime, Shape3, arguments

_GRAPHS = 64  # kept for replay
_FREE_SHARED = 48 * 1024  # bytes of dynamic shared memory that need no asking


def why_not() -> str | None:
    """Why kernels cannot run here through CuPy; None where they can."""
    try:
        import cupy
        from cupy_backends.cuda.libs import nvrtc
    except ImportError as error:
        return f"CuPy could not be imported ({error}); install gpulstm[cuda13] or gpulstm[cuda12]"
    api = cupy.cuda.runtime
    try:
        driver, devices = api.driverGetVersion(), api.getDeviceCount()
    except api.CUDARuntimeError as error:
        needed = api.runtimeGetVersion()
        if 0 < (driver := _version(api.driverGetVersion)) < needed:
            return f"the driver speaks CUDA {_dotted(driver)}, but CuPy was made for {_dotted(needed)}: {error}"
        return f"CuPy finds no CUDA device, or no driver for it ({error})"
    if not driver or not devices:
        return "CuPy finds no CUDA device, or no driver for it"
    try:
        nvrtc.getVersion()
    except Exception as error:  # whatever its loader raises for a missing library
        return f"NVRTC, the compiler for kernels, could not be loaded ({error}); install gpulstm[cuda13]"
    if not include_folders():
        return "CUDA's headers (cuda_fp16.h) were not found; install gpulstm[cuda13] or gpulstm[cuda12]"
    try:
        blas.find()
    except OSError as error:
        return str(error)
    return None


def _version(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except Exception:  # no driver at all
        return 0


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


@functools.cache
def include_folders() -> tuple[str, ...]:
    """Where CUDA's headers are: NVIDIA's wheels, or the toolkit that CuPy knows."""
    import cupy

    roots = []
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        roots += [Path(root) / "cu13", Path(root) / "cuda_runtime"]
    toolkit = cupy.cuda.get_cuda_path()
    if toolkit:
        roots.append(Path(toolkit))
    return tuple(str(root / "include") for root in roots if (root / "include" / "cuda_fp16.h").is_file())[:1]


class CuPyGraph(Graph):
    """A CUDA graph, and the memory pool that its buffers came from."""

    def __init__(self, graph: Any, pool: Any, result: Any) -> None:
        self._graph, self._pool, self.result = graph, pool, result

    def launch(self) -> None:
        self._graph.launch()


class CuPyRuntime(Runtime):
    """See :class:`~gpulstm_kernels.cuda.runtime.Runtime`."""

    def __init__(self) -> None:
        import cupy
        from cupy_backends.cuda.api import driver

        self._cupy, self._driver = cupy, driver
        self._library = blas.find()
        self._own = threading.local()  # cuBLAS handles, a device
        self._workspaces: dict[tuple[int, int], Any] = {}
        self._kernels: dict[tuple[int, Kernel], Any] = {}
        self._capturing: dict[int, Any] = {}  # streams to capture on, a device
        self._graphs: OrderedDict[tuple[Any, ...], CuPyGraph | None] = OrderedDict()
        self._lock = threading.RLock()

    def device(self) -> Device:
        return _device(self._here())

    def owns(self, value: Any) -> bool:
        return isinstance(value, self._cupy.ndarray)

    def as_array(self, value: Any, name: str) -> Any:
        here = self._here()
        if not self.owns(value):
            kind, there = value.__dlpack_device__() if hasattr(value, "__dlpack_device__") else (1, 0)
            if int(kind) not in (2, 13):  # kDLCUDA, kDLCUDAManaged
                raise TypeError(
                    f"{name}: expected an array on the GPU, got {type(value).__name__} here; cupy.asarray moves it"
                )
            if int(kind) == 2 and there != here:
                raise ValueError(f"{name}: expected an array on GPU {here}, got one on GPU {there}")
            value = self._cupy.from_dlpack(value)
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
        return self._cupy.array(array)

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
        if shared > _FREE_SHARED and compiled.max_dynamic_shared_size_bytes < shared:
            compiled.max_dynamic_shared_size_bytes = shared
        values = arguments(args, self.pointer)
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        where = (compiled.kernel.ptr, *grid, *block, shared, self._stream(), ctypes.addressof(addresses))
        if cooperative:
            blocks, threads = grid[0] * grid[1] * grid[2], block[0] * block[1] * block[2]
            resident = self.occupancy(kernel, threads, shared) * self.device().multiprocessors
            if blocks > resident:
                raise RuntimeError(f"cooperative: {blocks} blocks, but {resident} can be resident at a time")
            self._driver.launchCooperativeKernel(*where)
        else:
            self._driver.launchKernel(*where, 0)

    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> int:
        compiled = self._compiled(kernel)
        if shared > _FREE_SHARED and compiled.max_dynamic_shared_size_bytes < shared:
            compiled.max_dynamic_shared_size_bytes = shared
        count: int = self._driver.occupancyMaxActiveBlocksPerMultiprocessor(compiled.kernel.ptr, threads, shared)
        return count

    def attributes(self, kernel: Kernel) -> Attributes:
        compiled = self._compiled(kernel)
        return Attributes(compiled.num_regs, compiled.local_size_bytes, compiled.shared_size_bytes)

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
        matrices = (blas.Matrix(self.pointer(m), m.shape, m.strides, m.dtype) for m in (a, b, out))
        self._handle(self._stream()).gemm(
            *matrices, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate, tf32=tf32
        )

    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        if self.is_capturing():
            enqueue()
            return
        key = (self._here(), *key)
        with self._lock:
            known = key in self._graphs
            graph = self._graphs.get(key)
            if known and graph is None:
                graph = self.capture(enqueue)
            self._graphs[key] = graph
            self._graphs.move_to_end(key)
            while len(self._graphs) > _GRAPHS:
                self._graphs.popitem(last=False)
        if graph is None:
            enqueue()
        else:
            graph.launch()

    def capture(self, enqueue: Callable[[], Any]) -> CuPyGraph:
        cuda = self._cupy.cuda
        with self._lock:  # of this process, one capture a device at a time
            here = self._here()
            stream = self._capturing.get(here)
            if stream is None:
                stream = self._capturing[here] = cuda.Stream(non_blocking=True)
            self._handle(stream.ptr)  # its workspace is not the graph's
            pool = cuda.MemoryPool()
            with stream, cuda.using_allocator(pool.malloc):
                stream.begin_capture()
                try:
                    result = enqueue()
                except BaseException:
                    with contextlib.suppress(cuda.runtime.CUDARuntimeError):  # the first exception says it better
                        stream.end_capture()
                    raise
                return CuPyGraph(stream.end_capture(), pool, result)

    def is_capturing(self) -> bool:
        capturing: bool = self._cupy.cuda.get_current_stream().is_capturing()
        return capturing

    def synchronize(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    def _here(self) -> int:
        device: int = self._cupy.cuda.runtime.getDevice()
        return device

    def _stream(self) -> int:
        address: int = self._cupy.cuda.get_current_stream().ptr
        return address

    def _compiled(self, kernel: Kernel) -> Any:
        key = self._here(), kernel
        found = self._kernels.get(key)
        if found is None:
            with self._lock:
                module = self._cupy.RawModule(
                    code=compile.source(kernel),
                    options=("-std=c++17", *(f"-I{folder}" for folder in include_folders())),
                    name_expressions=(kernel.expression,),
                )
                found = self._kernels[key] = module.get_function(kernel.expression)
        return found

    def _handle(self, stream: int) -> blas.Handle:
        """This thread's handle of the current device, at work on ``stream``."""
        here = self._here()
        handles = self._own.__dict__.setdefault("handles", {})
        if here not in handles:
            handles[here] = blas.Handle(self._library)
        workspace = self._workspaces.get((here, stream))
        if workspace is None:
            workspace = self._workspaces[here, stream] = self._cupy.empty(blas.WORKSPACE, np.uint8)
        handle: blas.Handle = handles[here]
        handle.use(stream, workspace.data.ptr, blas.WORKSPACE)
        return handle


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
