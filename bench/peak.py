"""What the machine can do at best: ``python -m bench.peak sgemm LIBRARY THREADS`` or ``... read THREADS``.

The rate of a large float32 matrix product by each library at hand, and the rate at which all threads read a
working set again and again: a small one from the caches, as an LSTM's weights are, the largest from memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from typing import Any

import numpy as np

from .pool import environment
from .registry import Case
from .worker import limit_cores

READ_SIZES = tuple(2**exponent for exponent in range(18, 29))  # 256 KiB to 256 MiB
GEMM_SIZES = (512, 1024, 2048)


def measure(threads: int) -> dict[str, Any]:
    """``{"sgemm": {library: GF/s}, "read": [[bytes, GB/s], ...]}``, each in a process of its own."""

    def in_process(*arguments: str) -> Any:
        command = [sys.executable, "-m", "bench.peak", *arguments, str(threads)]
        done = subprocess.run(command, env=environment(threads), stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    libraries = [library for library, package in PACKAGES.items() if util.find_spec(package)]
    return {
        "sgemm": {library: in_process("sgemm", library) for library in libraries},
        "read": in_process("read"),
    }


def gemm_rate(peaks: dict[str, Any]) -> float:
    """The best GF/s of all libraries."""
    return max(peaks["sgemm"].values())


def read_rate(peaks: dict[str, Any], size: int) -> float:
    """GB/s for a working set of ``size`` bytes: that of the next larger set measured."""
    return next((rate for measured, rate in peaks["read"] if measured >= size), peaks["read"][-1][1])


def bound(peaks: dict[str, Any], case: Case, mode: str) -> tuple[float, str]:
    """Seconds that the machine needs at least for ``case``, and what binds: "sgemm" or "read"."""
    compute = case.flops(mode) / (gemm_rate(peaks) * 1e9)
    read = case.read_bytes(mode) / (read_rate(peaks, case.resident_bytes) * 1e9)
    return max((compute, "sgemm"), (read, "read"))


def torch_gemm(matrix: np.ndarray, threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    a = torch.from_numpy(matrix)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def numpy_gemm(matrix: np.ndarray, threads: int) -> Callable[[], Any]:
    out = np.empty_like(matrix)
    return lambda: np.matmul(matrix, matrix, out=out)


def onednn_gemm(matrix: np.ndarray, threads: int) -> Callable[[], Any]:
    """oneDNN's, which torch's LSTM uses: on some processors twice as fast as torch's ``mm``."""
    import torch
    from torch.utils import mkldnn

    torch.set_num_threads(threads)
    linear = mkldnn.to_mkldnn(torch.nn.Linear(len(matrix), len(matrix), bias=False))
    a = torch.from_numpy(matrix).to_mkldnn()

    def call() -> Any:
        with torch.inference_mode():
            return linear(a)

    return call


GEMMS = {"torch": torch_gemm, "onednn": onednn_gemm, "numpy": numpy_gemm}
PACKAGES = {"torch": "torch", "onednn": "torch", "numpy": "numpy"}


def sgemm(library: str, threads: int) -> float:
    """GF/s, the best over sizes."""
    random = np.random.default_rng(0)
    return max(
        2e-9 * size**3 / fastest(GEMMS[library](random.standard_normal((size, size), np.float32), threads))
        for size in GEMM_SIZES
    )


def read(threads: int) -> list[tuple[int, float]]:
    """(bytes, GB/s) for each of READ_SIZES, split evenly over threads."""
    import numba

    @numba.njit("int64(int64[::1], int64)", nogil=True)
    def total(values: np.ndarray, repeats: int) -> int:
        result = 0
        for _ in range(repeats):
            for k in range(values.size):  # by index: only so does the loop vectorise
                result ^= values[k]
            result += 1  # no pass follows from the one before
        return result

    def rate(size: int) -> float:
        parts = np.array_split(np.ones(size // 8, np.int64), threads)
        repeats = max(1, 2**28 // size)
        seconds = fastest(lambda: list(pool.map(total, parts, [repeats] * threads)), budget=0.15)
        return size * repeats / seconds / 1e9

    with ThreadPoolExecutor(threads) as pool:
        return [(size, rate(size)) for size in READ_SIZES]


def fastest(action: Callable[[], Any], budget: float = 0.4) -> float:
    """Seconds of the best run within ``budget``: a peak is a peak, not a median."""
    action()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < budget:
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    what, *rest = sys.argv[1:]
    threads = int(rest[-1])
    limit_cores(threads)
    print(json.dumps(sgemm(rest[0], threads) if what == "sgemm" else read(threads)))


if __name__ == "__main__":
    main()
