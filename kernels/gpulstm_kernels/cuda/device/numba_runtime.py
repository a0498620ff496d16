"""The runtime of the Numba kernels: memory and products of another runtime, launches of the twins.

The host code of the walks is the CUDA C++ kernels' own: it names a kernel, and what is launched here is the Numba
kernel of the same name, template arguments, argument list and launch shape: its twin. The twins of ``X.cu`` are in
``X_numba_twin.py`` beside it. Importing this module does not import Numba.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cells import Cell
from ...interpreter import is_subinterpreter
from .kernel import Kernel
from .runtime import Attributes, Device, Graph, Runtime, Shape3

if TYPE_CHECKING:
    from .numba_kernel import Twin

_PACKAGE = __package__.rpartition(".")[0]  # that sources of kernels are named from
_quiet = threading.Lock()


def why_not(arrays: Callable[[], str | None]) -> str | None:
    """Why the Numba kernels cannot run here; None where they can. ``arrays``: why there is no runtime below them."""
    if is_subinterpreter():
        return "Numba knows the main interpreter only, and this is a subinterpreter"
    try:
        from numba import cuda
        from numba.cuda import types  # noqa: F401 (the CUDA target inside Numba itself, older, has no such module)
    except ImportError as error:
        return f"numba.cuda could not be imported ({error}); install gpulstm[cuda13] or gpulstm[cuda12]"
    reason = arrays()
    if reason is not None:
        return f"its arrays and products are CuPy's: {reason}"
    if not cuda.is_available():
        return "numba-cuda finds no CUDA driver or no toolkit that it can use"
    return None


class NumbaRuntime(Runtime):
    """See :class:`~gpulstm_kernels.cuda.device.runtime.Runtime`; launches Numba kernels.

    Args:
        base: the runtime that has the arrays, the stream and the matrix products: all that is not a launch goes there.
    """

    def __init__(self, base: Runtime) -> None:
        from numba.cuda import config

        self._base = base
        self._simulated = bool(config.ENABLE_CUDASIM)

    @property
    def walks(self) -> tuple[str, ...]:  # type: ignore[override] # it depends on the environment
        """The walks that may be chosen: the block walk only if ``GPULSTM_WALK`` asks for it.

        What selection knows of walks' speed holds for C++, and this block walk reads weights again at every step.
        """
        return ("step", "block") if os.environ.get("GPULSTM_WALK") == "block" else ("step",)

    def walks_of(self, cell: Cell) -> tuple[str, ...]:
        """The step walk alone where the cell has stages: the other's twin has none."""
        return ("step",) if cell.stages > 1 else self.walks

    def device(self) -> Device:
        return self._base.device()

    def owns(self, value: Any) -> bool:
        return self._base.owns(value)

    def as_array(self, value: Any, name: str) -> Any:
        return self._base.as_array(value, name)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._base.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._base.zeros(shape, dtype)

    def copy(self, dst: Any, src: Any) -> None:
        self._base.copy(dst, src)

    def to_device(self, array: np.ndarray) -> Any:
        return self._base.to_device(array)

    def to_host(self, array: Any) -> np.ndarray:
        return self._base.to_host(array)

    def pointer(self, array: Any) -> int:
        return self._base.pointer(array)

    def launch(
        self,
        kernel: Kernel,
        grid: Shape3,
        block: Shape3,
        args: tuple[Any, ...],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        if cooperative:
            raise RuntimeError("cooperative: the Numba kernels have no barrier between blocks")
        if any(_is_array(value) and not value.flags.c_contiguous for value in args):
            raise ValueError("args: kernels take C-contiguous arrays")
        if self._simulated:
            _compiled(kernel, 0)[grid, block, 0, shared](*map(_flat, args))
        else:
            dispatcher = _compiled(kernel, self._base.device().capability)
            _configured(dispatcher, grid, block, shared, _current_stream())(*map(self._address, args))

    def _address(self, value: Any) -> Any:
        return self._base.pointer(value) if value is None or _is_array(value) else value

    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> int:
        """Not known: the base could answer for the C++ kernel of the same name alone, which takes other registers."""
        raise NotImplementedError("occupancy: no walk asks it of the Numba kernels")

    def attributes(self, kernel: Kernel) -> Attributes:
        """Not known, as :meth:`occupancy`."""
        raise NotImplementedError("attributes: no walk asks them of the Numba kernels")

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
        self._base.gemm(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate, tf32=tf32)

    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        self._base.replay(("numba", *key), enqueue)  # the base's graph of the same key launches other kernels

    def capture(self, enqueue: Callable[[], Any]) -> Graph:
        return self._base.capture(enqueue)

    def is_capturing(self) -> bool:
        return self._base.is_capturing()

    def synchronize(self) -> None:
        self._base.synchronize()


def twin(kernel: Kernel) -> Twin:
    """The Numba kernel of the same name and template arguments."""
    module = importlib.import_module(f"{_PACKAGE}.{kernel.source.replace('/', '.')}_numba_twin")
    made: Twin = getattr(module, kernel.name)(*kernel.arguments)
    return made


@functools.lru_cache(maxsize=512)
def _compiled(kernel: Kernel, capability: int) -> Any:
    """Numba's dispatcher of a twin, with the one signature that it has, for the current device's ``capability``."""
    from numba import cuda

    function, arguments = twin(kernel)
    return cuda.jit(arguments)(function)


@functools.lru_cache(maxsize=1024)
def _configured(dispatcher: Any, grid: Shape3, block: Shape3, shared: int, stream: int) -> Any:
    """A dispatcher with its launch shape, without Numba's warning of small grids: small layers have no others."""
    from numba import cuda

    queue = cuda.external_stream(stream) if stream else 0
    # warnings.catch_warnings is not safe among threads. This switch is the process's, too: kernels of others that are
    # configured meanwhile in another thread are not warned of either.
    with _quiet:
        before, cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS, 0
        try:
            return dispatcher[grid, block, queue, shared]
        finally:
            cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = before


def _current_stream() -> int:
    """The address of the stream that CuPy works on, so that all is in the order that the caller sees."""
    import cupy

    address: int = cupy.cuda.get_current_stream().ptr
    return address


def _is_array(value: Any) -> bool:
    return value is not None and not isinstance(value, (int, float))


def _flat(value: Any) -> Any:
    """An argument as the simulator takes it: an array with one axis, so that an index past its end raises."""
    return value.reshape(-1) if _is_array(value) else value
