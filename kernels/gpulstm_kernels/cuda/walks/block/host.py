"""The host side of the block walk: small hidden sizes, all of ``weight_hh`` in one block's registers.

Blocks share the batch and never wait for each other. ``kernels.cu`` has the kernels.
"""

from __future__ import annotations

from ....backend import LayerShape
from ...buffers import Buffers
from ...device.kernel import Kernel
from ...device.runtime import Device, Runtime
from ..persistent import CHUNK, COLUMNS, Plan, cannot_persist, planned, reason_in

_SOURCE = "walks/block/kernels"


def _largest(device: Device, shape: LayerShape, backward: bool) -> int:
    """The hidden size beyond which registers do not suffice, by ptxas 13.0; the compile tests hold it to that."""
    blackwell = backward and device.capability >= 100
    if shape.dtype.itemsize == 2:
        return 96 if blackwell else 128
    return (64 if blackwell else 96) if shape.tf32 else 80


def _chunks(shape: LayerShape) -> int:
    return -(-shape.hidden * shape.dtype.itemsize // CHUNK)


def _pitch(chunks: int) -> int:
    return (chunks | 1) * CHUNK


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p, chunks = shape, _chunks(shape)
    found = {"forward": Kernel(_SOURCE, "block_forward", (p.dtype, p.tf32, p.cell, p.training, chunks))}
    if p.training:
        found["backward"] = Kernel(_SOURCE, "block_backward", (p.dtype, p.tf32, p.cell, chunks))
    return found


def plan(device: Device, shape: LayerShape, backward: bool) -> Plan | str:
    """How a device would walk, or in words why it cannot."""
    reason = cannot_persist(device, shape)
    if reason is not None:
        return reason
    largest = _largest(device, shape, backward)
    if shape.hidden > largest:
        return f"one block's registers hold weight_hh up to hidden_size {largest} in {shape.dtype.name}"
    chunks, gates = _chunks(shape), len(shape.cell.gates)
    if backward:
        threads = 64 * -(-shape.hidden // 16)
        shared = 2 * COLUMNS * _pitch(2 * -(-gates * chunks // 2)) + 8 * threads
    else:
        threads = 32 * -(-shape.hidden // 8)
        shared = 2 * COLUMNS * _pitch(chunks)
    elements = shape.directions * (shape.steps + 2) * shape.batch * shape.hidden
    if elements * max(gates, shape.cell.saved, len(shape.cell.states)) >= 2**31:
        return "its kernels count elements in 32 bits, and an array would have more"
    if shared > device.shared_per_block:
        return f"it needs {shared} bytes of shared memory in a block, of {device.shared_per_block}"
    return Plan(threads, (-(-shape.batch // COLUMNS), 1, shape.directions), shared)


def why_not(device: Device, shape: LayerShape, backward: bool) -> str | None:
    """In words, why a device cannot walk so; None where it can."""
    return reason_in(plan(device, shape, backward))


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved."""
    p, b = shape, buffers
    found = planned(plan(runtime.device(), p, backward=False), "block")
    arrays = (b.gates, b.bias, b.weight_hh, b.lengths, b.ys, b.states, b.saved)
    sizes = (p.steps, p.batch, p.hidden, p.directions, int(b.bias is not None), int(p.ragged))
    runtime.launch(kernels(p)["forward"], found.grid, (found.threads, 1, 1), (*arrays, *sizes), found.shared)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    found = planned(plan(runtime.device(), p, backward=True), "block")
    arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.weight_hh, b.lengths, b.dgates)
    sizes = (p.steps, p.batch, p.hidden, p.directions, int(p.ragged))
    runtime.launch(kernels(p)["backward"], found.grid, (found.threads, 1, 1), (*arrays, *sizes), found.shared)
