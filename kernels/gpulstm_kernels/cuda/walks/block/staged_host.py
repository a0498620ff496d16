"""The host side of the block walk of cells with stages: all weights in one block's shared memory.

``staged.cu`` and ``staged_backward.cu`` have the kernels; :mod:`.host` calls these for such cells.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np

from ....backend import LayerShape
from ....language.cell import TracedCell
from ...buffers import Buffers
from ...cell_stages import stages_of
from ...device.kernel import Kernel
from ...device.runtime import Device, Runtime
from ..persistent import CHUNK, COLUMNS, Plan, cannot_persist, input_width, planned, values_of_a_unit
from .held import held
from .sizes import chunks_of, pitch, room

_OF_TILE = 16 * CHUNK  # bytes of 16 rows of a chunk
# Registers of a lane: beside what it holds from stage to stage, with exact products and by tensor cores; for a value of
# two sequences that it holds, with its part in what is computed from it; for tiles beyond those of the cells tried.
_BESIDE = {False: (95, 50), True: (110, 60)}
_ON_BLACKWELL = 6  # more: ptxas keeps more there
_OF_HELD = 3
_OF_TILE_ALONE = 12


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p, chunks = shape, chunks_of(shape)
    arguments = p.dtype, p.tf32, p.cell, p.training, p.resets, chunks
    found = {"forward": Kernel("walks/block/staged", "block_staged_forward", arguments)}
    if p.training:
        arguments_back = p.dtype, p.tf32, p.cell, p.resets, chunks
        found["backward"] = Kernel("walks/block/staged_backward", "block_staged_backward", arguments_back)
    return found


def plan(device: Device, shape: LayerShape, backward: bool) -> Plan | str:
    """How a device would walk, or in words why it cannot."""
    if shape.heads > 1:
        return "its blocks of cells with stages multiply h by a whole matrix, not by one a head"
    reason = cannot_persist(device, shape)
    if reason is not None:
        return reason
    threads, shared = _backward_block(shape) if backward else _forward_block(shape)
    elements = shape.directions * (shape.steps + 2) * shape.batch * shape.hidden
    stages = stages_of(shape.cell)
    if elements * max(values_of_a_unit(shape.cell), len(stages.weights), stages.saved_of_row) >= 2**31:
        return "its kernels count elements in 32 bits, and an array would have more"
    if shared > device.shared_per_block:
        what = "all weights, and what the cell's stages share,"
        return f"{what} take {shared} bytes of shared memory in a block, of {device.shared_per_block}"
    needed, most = _registers(device, shape, backward), room(shape, chunks_of(shape))
    if needed > most:
        return f"the cell's stages need about {needed} registers a thread, and a block of {threads} has {most} for each"
    return Plan(threads, (-(-shape.batch // COLUMNS), 1, shape.directions), shared)


def _forward_block(shape: LayerShape) -> tuple[int, int]:
    """Threads of a block, and bytes of its shared memory."""
    stages, chunks, warps = stages_of(shape.cell), chunks_of(shape), -(-shape.hidden // 8)
    runs = [len(list(run)) for _, run in groupby(stages.operands)]
    tiles = sum(-(-count // 2) for count in (len(shape.cell.gates_of_h), *runs))
    operands = (1 + stages.distinct) * COLUMNS * pitch(chunks)
    return 32 * warps, tiles * chunks * warps * _OF_TILE + operands + _sums(stages.forward.means, warps)


def _backward_block(shape: LayerShape) -> tuple[int, int]:
    """Likewise: two warps share 16 units, each with half of the chunks."""
    stages, chunks, warps = stages_of(shape.cell), chunks_of(shape), 2 * -(-shape.hidden // 16)
    products = len(stages.weights)
    of_gates, of_product = -(-len(shape.cell.gates_of_h) * chunks // 2), -(-chunks // 2)
    weights = (of_gates + products * of_product) * warps * _OF_TILE
    operands = COLUMNS * (pitch(2 * of_gates) + products * pitch(2 * of_product))
    shares = max(1, products) * 32 * warps * 8
    return 32 * warps, weights + operands + shares + _sums(stages.backward.means, warps)


def _sums(means: int, warps: int) -> int:
    return means * warps * COLUMNS * 4


def _registers(device: Device, shape: LayerShape, backward: bool) -> int:
    """About how many a thread needs, by ptxas 13.0; the compile tests hold it to that."""
    exact = shape.dtype == np.float32 and not shape.tf32
    cell, tiles = shape.cell, 1 if backward else -(-len(shape.cell.gates_of_h) // 2)
    assert isinstance(cell, TracedCell)
    beside = _BESIDE[backward][0 if exact else 1] + _ON_BLACKWELL * (device.capability >= 100)
    return beside + _OF_HELD * held(cell, backward) + _OF_TILE_ALONE * max(0, tiles - 4)


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved and rows."""
    p, b = shape, buffers
    found = planned(plan(runtime.device(), p, backward=False), "block")
    given = (b.params, b.inputs, b.resets, b.lengths)
    arrays = (b.gates, b.bias, b.weight_hh, b.own, *given, b.ys, b.states, b.saved, b.rows)
    sizes = (p.steps, p.batch, p.hidden, p.directions, input_width(b), int(b.bias is not None), int(p.ragged))
    runtime.launch(kernels(p)["forward"], found.grid, (found.threads, 1, 1), (*arrays, *sizes), found.shared)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates with all that lies in it, dproducts and operands, and carries dh and dstates."""
    p, b = shape, buffers
    found = planned(plan(runtime.device(), p, backward=True), "block")
    given = (b.params, b.inputs, b.resets, b.lengths)
    arrays = (b.dy, b.dh, b.dstates, b.saved, b.rows, b.states, b.ys, b.weight_hh, b.own, *given)
    written = (b.dgates, b.dproducts, b.operands)
    sizes = (p.steps, p.batch, p.hidden, p.directions, input_width(b), int(p.ragged))
    runtime.launch(kernels(p)["backward"], found.grid, (found.threads, 1, 1), (*arrays, *written, *sizes), found.shared)
