"""The host side of the grid walk: ``weight_hh`` spread over the registers of many blocks that wait for each other.

``kernels.cu`` has the kernels, and says how blocks share the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....backend import LayerShape
from ...buffers import Buffers
from ...device.kernel import Kernel
from ...device.runtime import Device, Runtime
from ..persistent import (
    CHUNK,
    COLUMNS,
    REGISTERS,
    Plan,
    cannot_persist,
    input_width,
    planned,
    reason_in,
    registers_of_cell,
)

_SOURCE = "walks/grid/kernels"
UNITS = 8  # a block
WARPS = 8  # a block, at most
_CACHED = 32 * 2**20  # bytes that blocks may exchange a step: what stays in the second-level cache of a large GPU


@dataclass(frozen=True)
class GridPlan(Plan):
    """A plan with the division of work behind it.

    Attributes:
        warps: of a block.
        share: forward: chunks of k a warp; backward: tiles of 16 units a warp.
        tiles: of eight sequences, a block.
        exchanged: elements that go from block to block, both copies.
    """

    warps: int
    share: int
    tiles: int
    exchanged: int


def _division(shape: LayerShape, backward: bool) -> tuple[int, int]:
    """Warps of a block, and each one's share of the weights: chunks of k forward, tiles of 16 units backward."""
    units = shape.units_of_head
    whole = -(-units // 16) if backward else -(-units * shape.dtype.itemsize // CHUNK)
    warps = min(WARPS, whole)
    return warps, -(-whole // warps)


# Registers of a lane beside the slice, the sums and the cell's own: addresses, and what products and the cell compute
# with. With exact products, and by tensor cores.
_BESIDE = {False: (118, 84), True: (69, 60)}


def _most(device: Device, shape: LayerShape, backward: bool) -> int:
    """The largest share of the weights that leaves registers enough, by ptxas 13.0; compile tests hold it to that.

    What an LSTM has room for, or less where the cell needs more by estimate.
    """
    exact = shape.dtype == np.float32 and not shape.tf32
    if backward and device.capability >= 100:
        most = 4 if shape.dtype == np.float32 else 7
    else:
        most = 7 if exact and not backward else 8
    return next((share for share in range(most, 0, -1) if _registers(shape, backward, share) <= REGISTERS), 0)


def _registers(shape: LayerShape, backward: bool, share: int) -> int:
    """About how many a thread needs with such a share of the weights."""
    gates, exact = len(shape.cell.gates_of_h), shape.dtype == np.float32 and not shape.tf32
    rows = -(-gates * UNITS * shape.dtype.itemsize // CHUNK)  # chunks of the block's gate rows
    tiles, deep = (share, rows) if backward else (-(-gates // 2), share)
    cell, own = shape.cell, registers_of_cell(shape, backward)
    if not backward:  # addresses of what is read or written at each step
        own += 2 * len(cell.states) + len(cell.x_gates) + 8 * len(cell.inputs)
    return 8 * tiles * deep + 4 * tiles + own + _BESIDE[backward][0 if exact else 1]


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p = shape
    warps, share = _division(p, backward=False)
    found = {
        "forward": Kernel(
            _SOURCE, "grid_forward", (p.dtype, p.tf32, p.cell, p.training, p.resets, warps, share, p.heads)
        )
    }
    if p.training:
        warps, share = _division(p, backward=True)
        found["backward"] = Kernel(_SOURCE, "grid_backward", (p.dtype, p.tf32, p.cell, p.resets, warps, share, p.heads))
    return found


def plan(device: Device, shape: LayerShape, backward: bool) -> GridPlan | str:
    """How a device would walk, or in words why it cannot.

    One block a multiprocessor is counted on, which is what registers allow where the walk is worth it.
    """
    if shape.cell.stages > 1:
        return "it has no stages within a step, which the cell's products and means cut"
    reason = cannot_persist(device, shape)
    if reason is not None:
        return reason
    gates, size = len(shape.cell.gates_of_h), shape.dtype.itemsize
    warps, share = _division(shape, backward)
    m16, chunks = (share, -(-gates * UNITS * size // CHUNK)) if backward else (-(-gates // 2), share)
    if share > _most(device, shape, backward):
        what = f"hidden_size {shape.hidden}" if shape.heads == 1 else f"{shape.units_of_head} units of a head"
        return f"weight_hh of {what} does not fit the registers of blocks of {UNITS} units"
    blocks, whole = -(-shape.units_of_head // UNITS), -(-shape.batch // COLUMNS)
    recurrences = shape.directions * shape.heads  # each with weights of its own
    teams = device.multiprocessors // blocks // recurrences
    if teams == 0:
        needed = blocks * recurrences
        return f"{needed} blocks must be resident at a time, and {device.multiprocessors} multiprocessors hold fewer"
    tiles = -(-whole // min(teams, whole))
    groups = -(-whole // tiles)
    if tiles > warps:
        return f"a batch of {shape.batch} is more than {teams} teams of blocks with {warps} warps can take"
    if backward:
        pitch = (chunks | 1) * CHUNK
        shared = tiles * COLUMNS * pitch + tiles * warps * 64 * 4
        exchanged = 2 * recurrences * groups * blocks * blocks * tiles * COLUMNS * UNITS
    else:
        shared = tiles * warps * m16 * 4 * 32 * 4
        exchanged = 2 * recurrences * groups * tiles * COLUMNS * warps * share * CHUNK // size
    if shared > device.shared_per_block:
        return f"it needs {shared} bytes of shared memory in a block, of {device.shared_per_block}"
    if backward and exchanged * 4 > _CACHED:
        return f"blocks would exchange {exchanged * 4 // 2**20} MiB, more than stay in cache"
    return GridPlan(32 * warps, (blocks, groups, recurrences), shared, warps, share, tiles, exchanged)


def why_not(device: Device, shape: LayerShape, backward: bool) -> str | None:
    """In words, why a device cannot walk so; None where it can."""
    return reason_in(plan(device, shape, backward))


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved."""
    p, b = shape, buffers
    found = planned(plan(runtime.device(), p, backward=False), "grid")
    exchange = runtime.zeros((found.exchanged,), p.dtype)
    counters = runtime.zeros((found.grid[1] * found.grid[2],), np.uint32)
    given = (b.params, b.inputs, b.resets, b.lengths)
    arrays = (b.gates, b.bias, b.weight_hh, *given, b.ys, b.states, b.saved, exchange, counters)
    sizes = (p.steps, p.batch, p.hidden, p.directions, input_width(b), int(b.bias is not None), int(p.ragged))
    block = (found.threads, 1, 1)
    arguments = (*arrays, *sizes, found.tiles)
    runtime.launch(kernels(p)["forward"], found.grid, block, arguments, found.shared, cooperative=True)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates with all that lies in it, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    found = planned(plan(runtime.device(), p, backward=True), "grid")
    exchange = runtime.empty((found.exchanged,), np.float32)
    counters = runtime.zeros((found.grid[1] * found.grid[2],), np.uint32)
    given = (b.params, b.inputs, b.resets, b.lengths)
    arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.weight_hh, *given, b.dgates, exchange, counters)
    sizes = (p.steps, p.batch, p.hidden, p.directions, input_width(b), int(p.ragged), found.tiles)
    block = (found.threads, 1, 1)
    runtime.launch(kernels(p)["backward"], found.grid, block, (*arrays, *sizes), found.shared, cooperative=True)
