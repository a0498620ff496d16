"""The host side of the block walk: small hidden sizes, all of ``weight_hh`` in one block's registers, or of a head's.

Blocks share the batch, and heads where there are any, and never wait for each other. ``kernels.cu`` has the kernels.
Cells with stages are :mod:`.staged_host`'s.
"""

from __future__ import annotations

import numpy as np

from ....backend import LayerShape
from ...buffers import Buffers
from ...device.kernel import Kernel
from ...device.runtime import Device, Runtime
from ..persistent import (
    CHUNK,
    COLUMNS,
    Plan,
    cannot_persist,
    input_width,
    planned,
    reason_in,
    registers_of_cell,
    values_of_a_unit,
)
from . import staged_host
from .sizes import chunks_of, pitch, room

_SOURCE = "walks/block/kernels"


# Registers of a lane beside the slice, the sums and the cell's own: addresses, and what products and the cell compute
# with. With exact products, and by tensor cores.
_BESIDE = {False: (58, 36), True: (50, 34)}


def _largest(device: Device, shape: LayerShape, backward: bool) -> int:
    """The hidden size beyond which registers do not suffice, by ptxas 13.0; the compile tests hold it to that.

    What an LSTM has room for, or less where the cell needs more by estimate.
    """
    blackwell = backward and device.capability >= 100
    if shape.dtype.itemsize == 2:
        most = 96 if blackwell else 128
    else:
        most = (64 if blackwell else 96) if shape.tf32 else 80
    in_chunk = CHUNK // shape.dtype.itemsize
    fitting = (n for n in range(-(-most // in_chunk), 0, -1) if _registers(shape, backward, n) <= room(shape, n))
    return min(most, next(fitting, 0) * in_chunk)


def _registers(shape: LayerShape, backward: bool, chunks: int) -> int:
    """About how many a thread needs where a row of ``weight_hh`` is so many chunks."""
    gates = len(shape.cell.gates_of_h)
    tiles, deep = (1, -(-gates * chunks // 2)) if backward else (-(-gates // 2), chunks)
    exact = shape.dtype == np.float32 and not shape.tf32
    return 8 * tiles * deep + 4 * tiles + registers_of_cell(shape, backward) + _BESIDE[backward][0 if exact else 1]


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p, chunks = shape, chunks_of(shape)
    if p.cell.stages > 1:
        return staged_host.kernels(p)
    found = {
        "forward": Kernel(_SOURCE, "block_forward", (p.dtype, p.tf32, p.cell, p.training, p.resets, chunks, p.heads))
    }
    if p.training:
        found["backward"] = Kernel(_SOURCE, "block_backward", (p.dtype, p.tf32, p.cell, p.resets, chunks, p.heads))
    return found


def plan(device: Device, shape: LayerShape, backward: bool) -> Plan | str:
    """How a device would walk, or in words why it cannot."""
    if shape.cell.stages > 1:
        return staged_host.plan(device, shape, backward)
    reason = cannot_persist(device, shape)
    if reason is not None:
        return reason
    largest = _largest(device, shape, backward)
    units = shape.units_of_head
    if units > largest:
        what = f"hidden_size {largest}" if shape.heads == 1 else f"{largest} units of a head"
        what = f"one block's registers hold weight_hh up to {what} in {shape.dtype.name}"
        return f"{what} of the cell {shape.cell.name!r}"
    chunks, gates = chunks_of(shape), len(shape.cell.gates_of_h)
    if backward:
        threads = 64 * -(-units // 16)
        shared = 2 * COLUMNS * pitch(2 * -(-gates * chunks // 2)) + 8 * threads
    else:
        threads = 32 * -(-units // 8)
        shared = 2 * COLUMNS * pitch(chunks)
    elements = shape.directions * (shape.steps + 2) * shape.batch * shape.hidden
    if elements * values_of_a_unit(shape.cell) >= 2**31:
        return "its kernels count elements in 32 bits, and an array would have more"
    if shared > device.shared_per_block:
        return f"it needs {shared} bytes of shared memory in a block, of {device.shared_per_block}"
    return Plan(threads, (-(-shape.batch // COLUMNS), 1, shape.directions * shape.heads), shared)


def why_not(device: Device, shape: LayerShape, backward: bool) -> str | None:
    """In words, why a device cannot walk so; None where it can."""
    return reason_in(plan(device, shape, backward))


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved."""
    p, b = shape, buffers
    if p.cell.stages > 1:
        staged_host.forward(runtime, p, b)
        return
    found = planned(plan(runtime.device(), p, backward=False), "block")
    given = (b.params, b.inputs, b.resets, b.lengths)
    arrays = (b.gates, b.bias, b.weight_hh, *given, b.ys, b.states, b.saved)
    sizes = (p.steps, p.batch, p.hidden, p.directions, input_width(b), int(b.bias is not None), int(p.ragged))
    runtime.launch(kernels(p)["forward"], found.grid, (found.threads, 1, 1), (*arrays, *sizes), found.shared)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates with all that lies in it, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    if p.cell.stages > 1:
        staged_host.backward(runtime, p, b)
        return
    found = planned(plan(runtime.device(), p, backward=True), "block")
    given = (b.params, b.inputs, b.resets, b.lengths)
    arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.weight_hh, *given, b.dgates)
    sizes = (p.steps, p.batch, p.hidden, p.directions, input_width(b), int(p.ragged))
    runtime.launch(kernels(p)["backward"], found.grid, (found.threads, 1, 1), (*arrays, *sizes), found.shared)
