"""The costs that a design rests on, measured on the GPU at hand; ``probes.cu`` has the kernels.

Each probe takes what times calls and returns figures in microseconds; one that computes something checks it first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.process import current
from gpulstm_kernels.cuda.device.source import expression, source_text

from .timing import Elapsed

_SOURCE = str(Path(__file__).with_suffix(""))
_MANY, _TURNS = 1000, 7
_NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_PORTABLE = 8  # blocks a cluster


def _each(elapsed: Elapsed, call: Callable[[], Any], times: int) -> float:
    """Microseconds of one of the ``times`` things that a call does; the first call warms up."""
    call()
    return median(elapsed(call, 1) for _ in range(_TURNS)) / times * 1e6


def _empty(count: int) -> None:
    for _ in range(count):
        current().launch(Kernel(_SOURCE, "empty"), (1, 1, 1), (32, 1, 1), ())


def launches(elapsed: Elapsed) -> dict[str, Any]:
    """Empty kernels one after another."""
    return {"launch": _each(elapsed, lambda: _empty(_MANY), _MANY)}


def graph(elapsed: Elapsed) -> dict[str, Any]:
    """Empty kernels as the nodes of a graph, and a graph of one."""
    _empty(1)  # compiles: not while a stream is captured
    many, one = (current().capture(functools.partial(_empty, nodes)) for nodes in (_MANY, 1))
    return {"node": _each(elapsed, many.launch, _MANY), "graph": _each(elapsed, one.launch, 1)}


def grid_barrier(elapsed: Elapsed, count: int = _MANY) -> dict[str, Any]:
    """A barrier among blocks, one a multiprocessor, for a few numbers of blocks."""
    runtime = current()
    kernel = Kernel(_SOURCE, "barriers")
    most = runtime.device().multiprocessors
    figures = {}
    for blocks in sorted({min(32, most), min(64, most), most}):
        seen = runtime.zeros((blocks,), np.uint32)

        def call(blocks: int = blocks, seen: Any = seen) -> None:
            counter, marks = runtime.zeros((1,), np.uint32), runtime.zeros((blocks,), np.uint32)
            runtime.launch(kernel, (blocks, 1, 1), (128, 1, 1), (counter, marks, seen, count), cooperative=True)

        figures[f"{blocks} blocks"] = _each(elapsed, call, count)
        if runtime.to_host(seen).any():
            raise AssertionError(f"{blocks} blocks: one passed a barrier before another had reached it")
    return figures


def _clustered(name: str, size: int) -> Any:
    """A kernel whose clusters have ``size`` blocks, through CuPy's RawModule."""
    import cupy
    from cupy_backends.cuda.api import driver

    from gpulstm_kernels.cuda.device.cupy_runtime import include_folders

    kernel = Kernel(_SOURCE, name, (size,))
    options = ("-std=c++17", *(f"-I{folder}" for folder in include_folders()))
    full_name = expression(kernel)
    module = cupy.RawModule(code=source_text(kernel), options=options, name_expressions=(full_name,))
    function = module.get_function(full_name)
    if size > _PORTABLE:
        driver.funcSetAttribute(function.kernel.ptr, _NON_PORTABLE_CLUSTER, 1)
    return function


def _of_clusters(size: int) -> Callable[[Elapsed], dict[str, Any]]:
    def probe(elapsed: Elapsed) -> dict[str, Any]:
        import cupy

        capability = current().device().capability
        if capability < 90:
            raise RuntimeError(f"clusters came with compute capability 9.0; this is {capability / 10}")
        grid, block = (size,), (128,)
        barrier, around, follow = (_clustered(name, size) for name in ("cluster_barriers", "ring", "chase"))
        sums, end = cupy.zeros(size, np.uint32), cupy.zeros(size, np.uint32)
        figures = {
            "barrier": _each(elapsed, lambda: barrier(grid, block, (np.int32(_MANY),)), _MANY),
            "write and barrier": _each(elapsed, lambda: around(grid, block, (sums, np.int32(_MANY))), _MANY),
            "dependent load": _each(elapsed, lambda: follow(grid, block, (end, np.int32(_MANY))), _MANY),
        }
        arrived = [(rank - 1) % size * _MANY + _MANY * (_MANY - 1) // 2 for rank in range(size)]
        if sums.tolist() != arrived:
            raise AssertionError(f"distributed shared memory: {sums.tolist()} arrived, expected {arrived}")
        return figures

    return probe


def memory(elapsed: Elapsed) -> dict[str, Any]:
    """A copy within the device's memory: GB/s, read and written."""
    runtime, size = current(), 2**30
    source, target = (runtime.empty((size,), np.uint8) for _ in range(2))
    microseconds = _each(elapsed, lambda: runtime.copy(target, source), 1)
    return {"GB/s": 2 * size / microseconds / 1e3}


PROBES: dict[str, Callable[[Elapsed], dict[str, Any]]] = {
    "launch overhead": launches,
    "graph replay": graph,
    "grid barrier": grid_barrier,
    "cluster of 2": _of_clusters(2),
    "cluster of 8": _of_clusters(8),
    "cluster of 16": _of_clusters(16),
    "memory copy": memory,
}
