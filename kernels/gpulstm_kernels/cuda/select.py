"""Which walk computes a layer on a device, and why.

In this order: what the caller or the environment variable ``GPULSTM_WALK`` asks for; the fastest of those that were
measured on such a device nearest to this size (:mod:`.measured`); the fastest by a rough model. Only walks that fit
the device are chosen; the step walk always does. Forward and backward are chosen for each by itself: all walks work on
the same arrays.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

from ..backend import LayerShape
from ..cells import Cell
from . import measured
from .cell_stages import stages_of
from .device.runtime import Device
from .walks import WALKS, block_host, grid_host
from .walks.persistent import Plan, planned

_FAR = math.log(4)  # measurements count up to this distance: sizes four times as large, or as small

# Estimates: published costs on Hopper (a node of a CUDA graph, a barrier of the grid), scaled by multiprocessors; the
# rest is what these kernels' instructions allow at 1.7 GHz. None of it was measured with these kernels.
_START = {"step": 3.0, "block": 4.0, "grid": 6.0}  # microseconds a launch: a graph, weights to registers, cooperation
_STEP = {"step": 2.8, "block": 0.35, "grid": 1.4}  # microseconds a step whatever its size: nodes, barriers, the cell
_BACKWARD = {"step": 1.2, "block": 1.3, "grid": 1.5}  # times as long as forward
_MULTIPLY = {"tf32": 0.3e6, "float16": 0.6e6, "bfloat16": 0.6e6, "float32": 0.13e6}  # a microsecond, persistent walks
_GEMM = {"tf32": 0.75e6, "float16": 1.5e6, "bfloat16": 1.5e6, "float32": 0.2e6, "float64": 0.1e6}  # cuBLAS
_BYTES = 32e3  # bytes a microsecond and multiprocessor, memory
_REGISTERS = 128  # a thread of the persistent walks
_PLANS: dict[str, Callable[[Device, LayerShape, bool], Plan | str]] = {"block": block_host.plan, "grid": grid_host.plan}


class Choice(NamedTuple):
    """The name of a walk, and in words why that one."""

    walk: str
    reason: str


def choose(
    device: Device, shape: LayerShape, backward: bool, walks: tuple[str, ...], override: str | None = None
) -> Choice:
    """The walk for one layer's forward or backward pass.

    Args:
        device: that it runs on.
        shape: of the call.
        backward: which of the two passes.
        walks: what the runtime has kernels for.
        override: the walk to take, before what ``GPULSTM_WALK`` says.

    Raises:
        ValueError: the walk asked for is unknown, or cannot walk this shape on the device; the message says why.
    """
    environment = os.environ.get
    return _choose(
        device, shape, backward, walks, override, environment("GPULSTM_WALK"), environment("GPULSTM_MEASURED")
    )


@functools.lru_cache(maxsize=1024)
def _choose(
    device: Device,
    shape: LayerShape,
    backward: bool,
    walks: tuple[str, ...],
    override: str | None,
    environment: str | None,
    table: str | None,
) -> Choice:
    asked = override or environment
    if asked and asked not in walks:
        raise ValueError(f"walk: unknown walk {asked!r}; known walks: {', '.join(walks)}")
    reasons = {walk: WALKS[walk].why_not(device, shape, backward) for walk in walks}
    if asked:
        if reasons[asked] is not None:
            raise ValueError(f"walk: {asked!r} cannot walk this: {reasons[asked]}")
        return Choice(asked, "asked for by walk=" if override else "asked for by GPULSTM_WALK")
    fitting = tuple(walk for walk, reason in reasons.items() if reason is None)
    if len(fitting) == 1:
        others = "".join(f"; {walk}: {reason}" for walk, reason in reasons.items() if reason is not None)
        return Choice(fitting[0], f"which takes any size and type{others}")
    return _measured(device, shape, backward, fitting, table) or _modelled(device, shape, backward, fitting)


def _kind(shape: LayerShape) -> str:
    return "tf32" if shape.tf32 else shape.dtype.name


def _measured(
    device: Device, shape: LayerShape, backward: bool, fitting: tuple[str, ...], table: str | None
) -> Choice | None:
    """The fastest at the nearest size that was measured, of the walks that fit; None where none is near.

    Nothing was measured with heads.
    """
    if shape.heads > 1:
        return None
    kind = (_kind(shape), shape.cell.name, shape.directions, backward)
    sizes: dict[tuple[int, int], dict[str, float]] = {}
    for entry in measured.entries(device.name, table):
        if (entry.dtype, entry.cell, entry.directions, entry.backward) == kind and entry.walk in fitting:
            sizes.setdefault((entry.hidden, entry.batch), {})[entry.walk] = entry.us

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / shape.hidden)) + abs(math.log(size[1] / shape.batch))

    if not sizes or distance(nearest := min(sizes, key=distance)) > _FAR:
        return None
    return _fastest(sizes[nearest], f"measured on {device.name} at hidden_size {nearest[0]}, batch {nearest[1]}")


def _modelled(device: Device, shape: LayerShape, backward: bool, fitting: tuple[str, ...]) -> Choice:
    times = {}
    for walk in fitting:
        if walk == "step":
            step = _steps(device, shape)
        else:
            step = _persistent(device, shape, planned(_PLANS[walk](device, shape, backward), walk))
        step += _STEP[walk] * _parts(shape.cell, walk)
        times[walk] = _START[walk] / max(1, shape.steps) + step * (_BACKWARD[walk] if backward else 1)
    return _fastest(times, "estimated")


def _fastest(times: dict[str, float], how: str) -> Choice:
    chosen = min(times, key=times.__getitem__)
    others = "".join(f"; {walk} {time:.2g}" for walk, time in times.items() if walk != chosen)
    return Choice(chosen, f"{how}: {times[chosen]:.2g} us a step{others}")


def _parts(cell: Cell, walk: str) -> int:
    """How many launches, or barriers, cut a step: of a cell with stages one for each part that has to wait."""
    return max(1, len(stages_of(cell).forward.runs)) if walk == "step" else cell.stages


def _products(cell: Cell, heads: int = 1) -> float:
    """How many matrices of H x H a step multiplies; heads leave a part of those of ``weight_hh``."""
    return len(cell.gates_of_h) / heads + len(stages_of(cell).weights)


def _steps(device: Device, shape: LayerShape) -> float:
    """Microseconds a step of products and memory in the step walk."""
    p, many = shape, device.multiprocessors
    weights = p.directions * _products(p.cell, p.heads) * p.hidden * p.outputs
    gates = p.directions * p.batch * len(p.cell.preactivations) * p.hidden
    moved = weights * p.dtype.itemsize + 3 * gates * p.accumulate.itemsize  # the product adds to them, the cell reads
    return weights * p.batch / (many * _GEMM[_kind(p)]) + moved / (many * _BYTES)


def _persistent(device: Device, shape: LayerShape, plan: Plan) -> float:
    """Microseconds a step of products in a walk whose blocks hold the weights.

    Blocks beyond those that can be resident start once others have ended; blocks on one multiprocessor share its
    arithmetic.
    """
    p, blocks = shape, math.prod(plan.grid)
    columns = -(-p.batch // 8) * 8
    products = p.directions * columns * _products(p.cell) * p.hidden * p.units_of_head / blocks
    resident = max(
        1,
        min(
            device.threads_per_multiprocessor // plan.threads,
            device.shared_per_multiprocessor // (plan.shared + 1024),
            device.registers_per_multiprocessor // (plan.threads * _REGISTERS),
        ),
    )
    busy = min(resident, -(-blocks // device.multiprocessors))
    waves = -(-blocks // (device.multiprocessors * busy))
    return waves * busy * products / _MULTIPLY[_kind(p)] + (waves - 1) * _STEP["block"]
