"""All that Python asks of a CUDA device, as one small interface.

Layers, walks and training are written against :class:`Runtime`. On a GPU it is CuPy's (:mod:`.cupy_runtime`), or
Numba's over it (:mod:`.numba_runtime`); tests put one that runs the same kernels on the CPU in its place
(:func:`.process.use`), so that every line of Python is tested without a GPU. Everything is enqueued on the caller's
current stream; nothing waits for the device but :meth:`Runtime.to_host` and :meth:`Runtime.synchronize`.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...cells import Cell
from .kernel import Kernel

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class Device:
    """What decides how a layer is walked on a device.

    Attributes:
        name: as its maker calls it.
        capability: compute capability, major · 10 + minor.
        multiprocessors: how many.
        shared_per_block: bytes of shared memory that a block can opt in to.
        shared_per_multiprocessor: bytes, of which each resident block also costs 1 KiB.
        registers_per_multiprocessor: of 32 bits.
        threads_per_multiprocessor: that can be resident.
    """

    name: str
    capability: int
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    registers_per_multiprocessor: int
    threads_per_multiprocessor: int


class Attributes(NamedTuple):
    """What a compiled kernel takes: registers a thread, bytes spilled a thread, bytes of static shared memory."""

    registers: int
    spills: int
    shared: int


class Graph(ABC):
    """Enqueued work, captured once to be launched many times, with the memory that it uses."""

    result: Any
    """What the captured function returned; arrays in it are written anew by each launch."""

    @abstractmethod
    def launch(self) -> None:
        """Enqueue all of it on the current stream."""


class Runtime(ABC):
    """Arrays, products and launches on the current device.

    Arrays are of the runtime's own type, with ``shape``, ``dtype``, ``strides``, ``flags``, slicing and ``reshape`` as
    NumPy's. Running out of memory raises MemoryError with the bytes asked for; what was there before still works.
    """

    walks: tuple[str, ...] = ("step", "block", "grid")
    """The walks that it has kernels for."""

    def walks_of(self, cell: Cell) -> tuple[str, ...]:
        """Those that it has kernels of ``cell`` for."""
        return self.walks

    @abstractmethod
    def device(self) -> Device:
        """The current device."""

    @abstractmethod
    def owns(self, value: Any) -> bool:
        """Whether ``value`` is an array of this runtime."""

    @abstractmethod
    def as_array(self, value: Any, name: str) -> Any:
        """``value`` as an array on the current device without a copy: one already, or DLPack from that device.

        Raises:
            TypeError: it lies on the host, or is no array; the message calls it ``name``.
            ValueError: it lies on another device.
        """

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An uninitialised C-contiguous array."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """As :meth:`empty`, full of zeros."""

    @abstractmethod
    def copy(self, dst: Any, src: Any) -> None:
        """Copy ``src`` into ``dst``, of one shape and dtype; both may be strided."""

    @abstractmethod
    def to_device(self, array: np.ndarray) -> Any:
        """A copy on the device."""

    @abstractmethod
    def to_host(self, array: Any) -> np.ndarray:
        """A copy on the host; waits for the current stream."""

    @abstractmethod
    def pointer(self, array: Any) -> int:
        """The address of an array's first element; 0 for None."""

    @abstractmethod
    def launch(
        self,
        kernel: Kernel,
        grid: Shape3,
        block: Shape3,
        args: tuple[Any, ...],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Enqueue a kernel.

        Args:
            kernel: which; compiled at its first launch, then cached by source and architecture.
            grid: blocks along x, y, z.
            block: threads along x, y, z.
            args: an array (its address is passed), None (a null pointer), an int (int32) or a float (float32) each.
            shared: bytes of dynamic shared memory.
            cooperative: whether its blocks wait for each other.

        Raises:
            RuntimeError: a cooperative launch of more blocks than can be resident, which would never end.
        """

    @abstractmethod
    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> int:
        """Blocks of ``threads`` threads and ``shared`` dynamic bytes that fit one multiprocessor at a time."""

    @abstractmethod
    def attributes(self, kernel: Kernel) -> Attributes:
        """What the compiled kernel takes."""

    @abstractmethod
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
        """``out = op(a) @ op(b)``, or ``out += ...`` with ``accumulate``; op transposes the last two axes or nothing.

        Two axes, or three of which the first is a batch; the last axis is contiguous, the others may be strided. a
        and b are of one dtype, out of that or, for half types, float32. Sums of half types are float32; ``tf32`` lets
        float32 factors be rounded to 10 bits of mantissa.
        """

    @abstractmethod
    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        """Run ``enqueue``, the second time with a key into a CUDA graph, which later calls with it launch.

        ``enqueue`` only launches and multiplies, it allocates nothing; ``key`` holds every address and size it uses.
        While the caller captures the stream, ``enqueue`` is just run.
        """

    @abstractmethod
    def capture(self, enqueue: Callable[[], Any]) -> Graph:
        """Record what ``enqueue`` enqueues, without running it.

        It may allocate: memory that it takes belongs to the graph. It may not wait for the device.
        """

    @abstractmethod
    def is_capturing(self) -> bool:
        """Whether the current stream is being captured."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the current stream."""


def arguments(args: tuple[Any, ...], pointer: Callable[[Any], int]) -> list[Any]:
    """The arguments of a launch as C values, whose addresses the driver takes: see :meth:`Runtime.launch`.

    Raises:
        ValueError: an array that is not C-contiguous, since kernels index arrays as one block; an int over 32 bits,
            such as the size of an array that is too large for them.
    """
    values: list[Any] = []
    for value in args:
        if isinstance(value, int):
            if not -(2**31) <= value < 2**31:
                raise ValueError(f"args: expected sizes below 2**31, which is how far kernels count, got {value}")
            values.append(ctypes.c_int32(value))
        elif isinstance(value, float):
            values.append(ctypes.c_float(value))
        elif value is None or value.flags.c_contiguous:
            values.append(ctypes.c_void_p(pointer(value)))
        else:
            raise ValueError(f"args: expected C-contiguous arrays, got strides {value.strides} of shape {value.shape}")
    return values
