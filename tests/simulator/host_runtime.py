"""A runtime whose device memory is NumPy arrays and whose products are NumPy's, for kernels in Numba's simulator.

What was never written is NaN. A slice of one buffer is launched as it is, so an index past its end raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.runtime import Device, Runtime


class HostRuntime(Runtime):
    """Everything but launches."""

    walks = ("step",)

    def device(self) -> Device:
        return Device("Numba's simulator", 80, 1, 48 * 1024, 48 * 1024, 65536, 1024)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.full(shape, np.nan if np.dtype(dtype).kind not in "iu" else -1, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def copy(self, dst: Any, src: Any) -> None:
        assert dst.shape == src.shape
        assert dst.dtype == src.dtype
        dst[...] = src

    def to_device(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def to_host(self, array: Any) -> np.ndarray:
        return np.array(array)

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def as_array(self, value: Any, name: str) -> Any:
        return value

    def pointer(self, array: Any) -> int:
        return 0 if array is None else array.ctypes.data

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: tuple[Any, ...],
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        raise AssertionError(f"{kernel} was launched past Numba")

    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> int:
        return 1

    def attributes(self, kernel: Kernel) -> Any:
        raise AssertionError("the simulator has no registers")

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
        wide = np.float64 if a.dtype == np.float64 else np.float32
        a, b = a.astype(wide), b.astype(wide)
        product = (a.swapaxes(-1, -2) if transpose_a else a) @ (b.swapaxes(-1, -2) if transpose_b else b)
        out[...] = (out.astype(wide) + product if accumulate else product).astype(out.dtype)

    def replay(self, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        enqueue()

    def capture(self, enqueue: Callable[[], Any]) -> Any:
        raise AssertionError("the simulator has no graphs")

    def is_capturing(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass
