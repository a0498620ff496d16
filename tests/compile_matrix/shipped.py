"""Every kernel that the library launches, by asking the code that launches it; and all of them compiled."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import offline
import problems
from offline import Built, Job

from gpulstm_kernels.backend import LayerShape
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda import device as device_layer
from gpulstm_kernels.cuda.cell_stages import stages_of
from gpulstm_kernels.cuda.device.kernel import Argument, Kernel
from gpulstm_kernels.cuda.device.runtime import Device
from gpulstm_kernels.cuda.device.source import expression, source_text
from gpulstm_kernels.cuda.walks.block import host as block_host
from gpulstm_kernels.cuda.walks.grid import host as grid_host
from gpulstm_kernels.cuda.walks.step import host as step_host
from gpulstm_kernels.cuda.walks.step import staged_host

FOLDER = Path(device_layer.__file__).parents[1]
CELLS = ("lstm", "rnn")
# dtype, and whether products are TF32
KINDS = [("float32", False), ("float32", True), ("float16", False), (ml_dtypes.bfloat16, False), ("float64", False)]
MULTIPROCESSORS = 192  # more than any GPU has that these architectures are made into
LARGEST = 8 * MULTIPROCESSORS  # hidden size: eight units a block is what the grid walk gives each multiprocessor
PERSISTENT = {"block": block_host, "grid": grid_host}
REGISTERS = 65536  # a multiprocessor

_ANY = tuple(np.dtype(kind) for kind in ("float32", "float64", "float16", ml_dtypes.bfloat16))
_EITHER = (False, True)
# The kernels beside the walks, by file: all that each argument of their templates can be.
ELEMENTWISE: dict[str, dict[str, tuple[tuple[Argument, ...], ...]]] = {
    "kernels/arrays": {
        "clear_padding": (_ANY,),
        "draw_mask": (),
        "draw_noise": (_ANY,),
        "drop": (_ANY,),
        "from_bools": (_ANY,),
        "repeat": (_ANY,),
        "add": (_ANY,),
    },
    "kernels/ctc": dict.fromkeys(("ctc_norms", "ctc_forward", "ctc_backward", "ctc_gradient"), (_ANY,)),
    "kernels/layer": {
        "to_accumulate": (_ANY,),
        "from_accumulate": (_ANY,),
        "add_biases": (_ANY,),
        "sum_rows": (_ANY,),
        "sum_columns": (_ANY,),
        "h_before": (_ANY,),
        "clear_columns": (_ANY[:2],),
    },
    "kernels/network": {
        "take_rows": (_ANY,),
        "scatter_rows": (_ANY,),
        "sum_by_id": (_ANY,),
        "add_bias": (_ANY,),
        "cross_entropy": (_ANY,),
        "subtract": (_ANY,),
        "mse_gradient": (_ANY,),
        "huber": (_ANY,),
        "quantile": (_ANY,),
        "partial_sums": (_ANY, _EITHER),
        "total": (_EITHER,),
        "clip": (_ANY,),
    },
    "kernels/optimizer": {"update": (_ANY[:2], ("Sgd", "RmsProp", "Adam"))},
}

_DEFINITION = re.compile(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")


class Launch(NamedTuple):
    """Threads and dynamic shared memory of a block, and what a persistent walk multiplies: a dtype or "tf32"."""

    threads: int
    shared: int
    kind: str | None


Wanted = dict[int, dict[Kernel, Launch]]  # by compute capability
Matrix = dict[int, dict[Kernel, tuple[Launch, Built]]]


def device(capability: int) -> Device:
    """The largest imaginable of a compute capability."""
    threads = {75: 1024, 86: 1536, 89: 1536, 120: 1536}.get(capability, 2048)
    shared = {75: 64, 80: 163, 86: 99, 89: 99, 120: 99}.get(capability, 227) * 1024
    own = 0 if capability < 80 else 1024
    return Device(f"sm_{capability}", capability, MULTIPROCESSORS, shared, shared + own, REGISTERS, threads)


def kernels(capability: int, thorough: bool) -> dict[Kernel, Launch]:
    """All kernels that may be launched on a compute capability.

    Without ``thorough``, of the grid walk's the smallest slice of weights and the two largest: its blocks are of one
    size, so that registers as a rule grow with the slice. (The block walk's have more threads for more weights.)
    """
    found = dict(_elementwise())
    found.update(_steps())
    for walk, cell, kind, training in itertools.product(PERSISTENT, CELLS, KINDS, (False, True)):
        for backward in (False, True) if training else (False,):
            sizes = list(_persistent(walk, cell, *kind, training, backward, device(capability)).items())
            found.update(sizes if thorough or walk == "block" else sizes[:1] + sizes[-2:])
    for (dtype, tf32), backward in itertools.product(KINDS, (False, True)):
        p = shape_of("gru_reset_before", dtype, tf32, True, LARGEST)
        found.update(largest("block", p, backward, device(capability)))
    return found


def shape_of(
    cell: str | Cell, dtype: object, tf32: bool, training: bool, hidden: int, projected: bool = False
) -> LayerShape:
    outputs = hidden - 1 if projected else None
    return problems.layer_shape(cell, dtype, hidden=hidden, outputs=outputs, training=training, tf32=tf32)


def _persistent(
    walk: str, cell: str, dtype: object, tf32: bool, training: bool, backward: bool, on: Device
) -> dict[Kernel, Launch]:
    """A walk's kernels of one kind and pass for all hidden sizes, smallest first."""
    found = {}
    for hidden in range(8, LARGEST + 1, 8):
        p = shape_of(cell, dtype, tf32, training, hidden)
        plan = PERSISTENT[walk].plan(on, p, backward)
        if not isinstance(plan, str):
            kernel = PERSISTENT[walk].kernels(p)["backward" if backward else "forward"]
            found[kernel] = Launch(plan.threads, plan.shared, "tf32" if tf32 else p.dtype.name)
    return found


def largest(walk: str, shape: LayerShape, backward: bool, on: Device) -> Iterator[tuple[Kernel, Launch]]:
    """A persistent walk's kernel of a pass for the largest hidden size up to that of ``shape``, if it takes any."""
    for hidden in range(shape.hidden, 0, -8):
        p = shape._replace(hidden=hidden, outputs=hidden)
        plan = PERSISTENT[walk].plan(on, p, backward)
        if not isinstance(plan, str):
            kernel = PERSISTENT[walk].kernels(p)["backward" if backward else "forward"]
            yield kernel, Launch(plan.threads, plan.shared, "tf32" if p.tf32 else p.dtype.name)
            return


def _steps() -> Iterator[tuple[Kernel, Launch]]:
    """Of sequences that begin anew, and of h in no product, one cell each: the others are in test_derived_cells.py."""
    for cell, (dtype, tf32), training, hidden in itertools.product(CELLS, KINDS, (False, True), (5, 8)):
        yield from step_kernels(shape_of(cell, dtype, tf32, training, hidden, projected=True))
    for dtype in ("float32", "float64"):
        yield from step_kernels(shape_of("lstm", dtype, False, True, 8, projected=True)._replace(resets=True))
        yield from step_kernels(shape_of("mingru", dtype, False, True, 8))
    yield from step_kernels(shape_of("gru_reset_before", "float32", False, True, 8))


def step_kernels(shape: LayerShape) -> Iterator[tuple[Kernel, Launch]]:
    for kernel in step_host.kernels(shape).values():
        threads = step_host.SCAN_THREADS if "scan" in kernel.name else step_host.THREADS
        yield kernel, Launch(_threads_of_stages(kernel) if "staged" in kernel.name else threads, 0, None)


def _threads_of_stages(kernel: Kernel) -> int:
    """The most that a block of a row has, or those of a block of units."""
    stages, first = stages_of(kernel.cell), next(part for part in kernel.arguments if type(part) is int)
    runs = stages.forward.runs if kernel.name == "staged_forward" else stages.backward.runs
    (run,) = (run for run in runs if run.first == first)
    return staged_host.ROW_THREADS if run.by_row else staged_host.THREADS


def _elementwise() -> Iterator[tuple[Kernel, Launch]]:
    for source, templates in ELEMENTWISE.items():
        for name, choices in templates.items():
            for arguments in itertools.product(*choices):
                yield Kernel(source, name, arguments), Launch(256, 0, None)


def defined() -> set[tuple[str, str]]:
    """Every ``__global__`` function: its file and name."""
    return {
        (path.relative_to(FOLDER).with_suffix("").as_posix(), name)
        for path in FOLDER.rglob("*.cu")
        for name in _DEFINITION.findall(path.read_text(encoding="utf-8"))
    }


def compiled(wanted: Wanted) -> Matrix:
    """All of it, each file once a cell and architecture, by as many processes as there are processors."""
    jobs: dict[Job, list[Kernel]] = {}
    for capability, kernels in wanted.items():
        groups: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            groups.setdefault(source_text(kernel), []).append(kernel)
        for source, group in groups.items():
            jobs[Job(source, tuple(expression(kernel) for kernel in group), capability)] = group
    ordered = sorted(jobs, key=lambda job: -len(job.expressions) * ("grid_" in job.expressions[0] or 0.5))
    built: Matrix = {capability: {} for capability in wanted}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as processes:
        for job, results in zip(ordered, processes.map(offline.build, ordered), strict=True):
            for kernel in jobs[job]:
                built[job.capability][kernel] = wanted[job.capability][kernel], results[expression(kernel)]
    return built


def resident(capability: int, launch: Launch, built: Built) -> int:
    """Blocks that a multiprocessor can hold at a time: registers are given to a warp 256 at a time."""
    on, warps = device(capability), -(-launch.threads // 32)
    of_warp = -(-built.registers * 32 // 256) * 256
    by_registers = REGISTERS // of_warp // 4 * 4 // warps  # four schedulers, each with a quarter of them
    own = 1024 if capability >= 80 else 0
    by_shared = on.shared_per_multiprocessor // max(1, launch.shared + built.shared + own)
    return min(on.threads_per_multiprocessor // launch.threads, by_registers, by_shared)


def check_room(matrix: Matrix, capability: int, cell: Cell, walks: Iterable[str]) -> None:
    """A cell has the kernels of ``walks``, forward and back; none spills, and of each a block can be resident.

    Prints registers, bytes spilled, blocks a multiprocessor, cycles stalled and threads of each.
    """
    found, failed = set(), []
    print(f"\nsm_{capability}: registers, bytes spilled, blocks a multiprocessor, cycles stalled, threads")
    for kernel, (launch, built) in matrix[capability].items():
        if kernel.cell != cell:
            continue
        found.add(kernel.name)
        blocks = resident(capability, launch, built)
        figures = f"{built.registers:4} {built.spills:4} {blocks:3} {built.stall:6} {launch.threads:5}"
        print(line := f"{figures}   {expression(kernel)}")
        if built.spills or blocks < 1:
            failed.append(line)
    assert found == {f"{walk}_{way}" for walk in walks for way in ("forward", "backward")}
    assert not failed, "\n".join(failed)
