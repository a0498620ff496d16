"""The runtime that tests put in CuPy's place: device memory that only kernels can read, and kernels on the CPU.

It cannot see a missing fence (memory here is sequentially consistent), bank conflicts, registers, or speed; nor that
threads wait at one barrier or shuffle from different places in the code, as long as their number is right.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulstm_kernels.cuda.device import blas
from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.runtime import Attributes, Device, Graph, Runtime, Shape3, arguments
from gpulstm_kernels.cuda.device.source import expression, source_text

from . import build

H200 = Device("emulated H200", 90, 132, 227 * 1024, 228 * 1024, 65536, 2048)
_BLOCK_OVERHEAD = 1024  # bytes of shared memory that CUDA itself takes of each block
_GRAPHS = 64
_TURN = threading.Lock()  # the emulator runs one launch at a time
_LETTERS = {ctypes.c_void_p: "p", ctypes.c_int32: "i", ctypes.c_float: "f"}


class DeviceArray:
    """An array in device memory: sliced and reshaped as NumPy's, read and written by kernels and copies alone."""

    __array_ufunc__ = None

    def __init__(self, memory: np.ndarray, owner: EmulatedRuntime) -> None:
        self.memory, self.owner = memory, owner
        self.shape, self.dtype, self.strides = memory.shape, memory.dtype, memory.strides
        self.ndim, self.size, self.nbytes, self.flags = memory.ndim, memory.size, memory.nbytes, memory.flags

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed: this array is on a device")

    def __len__(self) -> int:
        return len(self.memory)

    def __getitem__(self, index: Any) -> DeviceArray:
        parts = index if isinstance(index, tuple) else (index,)
        view = self.memory[parts if any(part is Ellipsis for part in parts) else (*parts, ...)]  # ...: never a scalar
        if not np.shares_memory(view, self.memory) and view.size:
            raise TypeError(f"index: expected integers and slices, got {index!r}")
        return DeviceArray(view, self.owner)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same memory in another shape."""
        view = self.memory.reshape(*shape)
        if view.size and not np.shares_memory(view, self.memory):
            raise ValueError("reshape: expected a view, which a strided array does not have")
        return DeviceArray(view, self.owner)

    def swapaxes(self, first: int, second: int) -> DeviceArray:
        """The same memory with two axes exchanged."""
        return DeviceArray(self.memory.swapaxes(first, second), self.owner)

    def __float__(self) -> float:
        return float(self.owner.to_host(self))


class EmulatedGraph(Graph):
    """Launches, products and copies, run again in their order."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.memory: list[np.ndarray] = []
        self.result = None

    def launch(self) -> None:
        for memory in self.memory:
            _poison(memory)
        for run in self.work:
            run()


class EmulatedRuntime(Runtime):
    """See :class:`gpulstm_kernels.cuda.device.runtime.Runtime`.

    Args:
        device: what it says it is.
        memory: bytes that it has.
        seed: of the order in which threads take their turns; each launch draws on. 0: in order of thread index.
        sanitizer: ``"address"`` or ``"thread"``, in a process that has the sanitizer's library loaded.
    """

    def __init__(self, device: Device = H200, memory: float = 141e9, seed: int = 0, sanitizer: str = "") -> None:
        self._device, self._memory, self.seed, self._sanitizer = device, memory, seed, sanitizer
        self._handle, self._workspace = blas.Handle(build.cublas()), np.empty(1024, np.uint8)
        self._used = 0
        self._kernels: dict[Kernel, tuple[int, str]] = {}
        self._graphs: OrderedDict[tuple[Any, ...], EmulatedGraph | None] = OrderedDict()
        self._recording: EmulatedGraph | None = None
        self.launches = 0
        self.replays = 0

    def device(self) -> Device:
        return self._device

    def owns(self, value: Any) -> bool:
        return isinstance(value, DeviceArray)

    def as_array(self, value: Any, name: str) -> DeviceArray:
        if not isinstance(value, DeviceArray):
            raise TypeError(f"{name}: expected an array on the GPU, got {type(value).__name__}")
        return value

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        dtype = np.dtype(dtype)
        asked = math.prod(shape) * dtype.itemsize
        if self._used + asked > self._memory:
            raise MemoryError(f"out of device memory: {asked} bytes were asked for")
        memory: np.ndarray = np.empty(shape, dtype)
        _poison(memory)
        self._used += asked
        weakref.finalize(memory, self._free, asked)
        if self._recording is not None:
            self._recording.memory.append(memory)
        return DeviceArray(memory, self)

    def _free(self, asked: int) -> None:
        self._used -= asked

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        result = self.empty(shape, dtype)
        memory = result.memory
        self._enqueue(lambda: memory.fill(0))
        return result

    def copy(self, dst: DeviceArray, src: DeviceArray) -> None:
        if dst.shape != src.shape or dst.dtype != src.dtype:
            raise ValueError(f"src: expected {dst.dtype} of shape {dst.shape}, got {src.dtype} of shape {src.shape}")
        to, source = dst.memory, src.memory
        self._enqueue(lambda: np.copyto(to, source))

    def to_device(self, array: np.ndarray) -> DeviceArray:
        self._not_while_capturing()
        if type(array) is not np.ndarray:
            raise TypeError(f"array: expected a NumPy array, got {type(array).__name__}")
        result = self.empty(array.shape, array.dtype)
        result.memory[...] = array
        return result

    def to_host(self, array: DeviceArray) -> np.ndarray:
        self._not_while_capturing()
        return array.memory.copy()

    def pointer(self, array: DeviceArray | None) -> int:
        return 0 if array is None else array.memory.ctypes.data

    def launch(
        self,
        kernel: Kernel,
        grid: Shape3,
        block: Shape3,
        args: tuple[Any, ...],
        shared: int = 0,
        cooperative: bool = False,
        cluster: int = 1,
    ) -> None:
        """As :meth:`Runtime.launch`; and with clusters of ``cluster`` blocks along x, which no walk uses."""
        entry, signature = self._kernel(kernel)
        values = arguments(args, self.pointer)
        given = "".join(_LETTERS[type(value)] for value in values)
        if given != signature:
            raise TypeError(f"args: {expression(kernel)} takes {signature}, got {given}")
        if shared > self._device.shared_per_block:
            raise ValueError(f"shared: {shared} bytes are more than a block can have")
        blocks = math.prod(grid)
        resident = self.occupancy(kernel, math.prod(block), shared) * self._device.multiprocessors
        if cooperative and blocks > resident:
            raise RuntimeError(f"cooperative: {blocks} blocks, but {resident} can be resident at a time")
        run = build.machine(self._sanitizer).emulator_launch

        def launch() -> None:
            addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            dimensions = [(ctypes.c_uint * 3)(*part) for part in (grid, block)]
            with _TURN:
                self.launches += 1
                seed = self.seed and self.seed + self.launches
                options = ctypes.c_size_t(shared), int(cooperative), cluster, seed
                error = run(ctypes.c_void_p(entry), addresses, *dimensions, *options)
            if error:
                raise RuntimeError(f"{expression(kernel)}: {error.decode()}")

        self._enqueue(launch)

    def _kernel(self, kernel: Kernel) -> tuple[int, str]:
        if kernel not in self._kernels:
            name = expression(kernel)
            self._kernels[kernel] = build.load(source_text(kernel), [name], self._sanitizer)[name]
        return self._kernels[kernel]

    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> int:
        own = self._device
        by_memory = own.shared_per_multiprocessor // (shared + _BLOCK_OVERHEAD)
        return min(own.threads_per_multiprocessor // threads, by_memory)

    def attributes(self, kernel: Kernel) -> Attributes:
        return Attributes(0, 0, 0)

    def gemm(
        self,
        a: DeviceArray,
        b: DeviceArray,
        out: DeviceArray,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
        tf32: bool = False,
    ) -> None:
        matrices = [blas.Matrix(self.pointer(m), m.shape, m.strides, m.dtype) for m in (a, b, out)]
        handle, workspace = self._handle, self._workspace

        def multiply() -> None:
            handle.use(1, workspace.ctypes.data, workspace.nbytes)
            handle.gemm(*matrices, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate, tf32=tf32)

        self._enqueue(multiply)

    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        if self._recording is not None or key not in self._graphs:
            enqueue()
            if self._recording is None:
                self._graphs[key] = None
        else:
            graph = self._graphs[key] or self._captured(enqueue)
            self._graphs[key] = graph
            self.replays += 1
            graph.launch()
        if self._recording is None:
            self._graphs.move_to_end(key)
            if len(self._graphs) > _GRAPHS:
                self._graphs.popitem(last=False)

    def capture(self, enqueue: Callable[[], Any]) -> EmulatedGraph:
        return self._captured(enqueue)

    def _captured(self, enqueue: Callable[[], Any]) -> EmulatedGraph:
        graph = self._recording = EmulatedGraph()
        try:
            graph.result = enqueue()
        finally:
            self._recording = None
        return graph

    def is_capturing(self) -> bool:
        return self._recording is not None

    def synchronize(self) -> None:
        self._not_while_capturing()

    def _not_while_capturing(self) -> None:
        if self._recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    def _enqueue(self, run: Callable[[], None]) -> None:
        if self._recording is None:
            run()
        else:
            self._recording.work.append(run)


def _poison(memory: np.ndarray) -> None:
    memory.reshape(-1).view(np.uint8).fill(0xFF)  # NaN in any floating-point type
