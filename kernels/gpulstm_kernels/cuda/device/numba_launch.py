"""The runtime of the Numba kernels: memory and products of another runtime, launches of the twins.

The host code of the walks is the CUDA C++ kernels' own: it names a kernel, and what is launched here is the Numba
kernel of the same name, template arguments, argument list and launch shape.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.core.errors import NumbaPerformanceWarning
from numba.cuda import config

from .numba_kernel import Twin, template
from .runtime import Kernel, Runtime

# what holds the twins of a .cu file
_MODULES = {
    "walks/step/kernels": "..walks.step.numba_twin",
    "walks/block/kernels": "..walks.block.numba_twin",
    "kernels/layer": "..kernels.layer_numba_twin",
}


class NumbaRuntime:
    """A :class:`~gpulstm_kernels.cuda.device.runtime.Runtime` that launches Numba kernels.

    Args:
        base: the runtime that has the arrays, the stream and the matrix products: all that is not a launch goes there.
    """

    def __init__(self, base: Runtime) -> None:
        self._base = base

    @property
    def walks(self) -> tuple[str, ...]:
        """The walks that may be chosen: the block walk only if ``GPULSTM_WALK`` asks for it.

        What selection knows of walks' speed holds for C++, and this block walk reads weights again at every step.
        """
        return ("step", "block") if os.environ.get("GPULSTM_WALK") == "block" else ("step",)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        """As the other runtime's, whose own graph of the same key launches other kernels."""
        self._base.replay(("numba", *key), enqueue)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: tuple[Any, ...],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Enqueue the twin of ``kernel`` on the current stream."""
        if cooperative:
            raise RuntimeError("cooperative: the Numba kernels have no barrier between blocks")
        if any(_is_array(value) and not value.flags.c_contiguous for value in args):
            raise ValueError("args: kernels take C-contiguous arrays")
        if config.ENABLE_CUDASIM:
            compiled(kernel, 0)[grid, block, 0, shared](*map(_flat, args))
        else:
            made = compiled(kernel, self._base.device().capability)
            _configured(made, grid, block, shared, _current_stream())(*map(self._address, args))

    def _address(self, value: Any) -> Any:
        return self._base.pointer(value) if value is None or _is_array(value) else value


def twin(kernel: Kernel) -> Twin:
    """The Numba kernel of the same name and template arguments."""
    name, arguments = template(kernel.expression, kernel.cell)
    factory = getattr(importlib.import_module(_MODULES[kernel.file], __package__), name)
    made: Twin = factory(*arguments)
    return made


@functools.lru_cache(maxsize=512)
def compiled(kernel: Kernel, capability: int) -> Any:
    """Numba's dispatcher of a twin, with the one signature that it has, for the current device's ``capability``."""
    function, arguments = twin(kernel)
    return cuda.jit(arguments)(function)


@functools.lru_cache(maxsize=1024)
def _configured(made: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int, stream: int) -> Any:
    with warnings.catch_warnings():  # small layers have small grids, and Numba warns of each
        warnings.simplefilter("ignore", NumbaPerformanceWarning)
        return made[grid, block, cuda.external_stream(stream) if stream else 0, shared]


def _current_stream() -> int:
    """The address of the stream that CuPy works on: all is in the order that the caller sees."""
    import cupy

    address: int = cupy.cuda.get_current_stream().ptr
    return address


def _is_array(value: Any) -> bool:
    return value is not None and not isinstance(value, (int, float))


def _flat(value: Any) -> Any:
    """An argument as the simulator takes it: an array with one axis, so that an index past its end raises."""
    return value.reshape(-1) if _is_array(value) else value
