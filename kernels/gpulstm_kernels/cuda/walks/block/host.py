"""The host side of the block walk: small hidden sizes, all of ``weight_hh`` in one block's registers.

Blocks share the batch and never wait for each other. ``persistent_block.cu`` has the kernels.
"""

from __future__ import annotations

from ...buffers import Buffers, Plan, Problem, cannot_persist
from ...device.runtime import Device, Kernel, Runtime
from ...device.source import struct_name, type_name

COLUMNS = 8  # sequences a block
CHUNK = 64  # bytes of a row that a slice is cut into; see tile.cuh


def _largest(device: Device, problem: Problem, backward: bool) -> int:
    """The hidden size beyond which registers do not suffice, by ptxas 13.0; the compile tests hold it to that."""
    blackwell = backward and device.capability >= 100
    if problem.dtype.itemsize == 2:
        return 96 if blackwell else 128
    return (64 if blackwell else 96) if problem.tf32 else 80


def _chunks(problem: Problem) -> int:
    return -(-problem.hidden * problem.dtype.itemsize // CHUNK)


def _pitch(chunks: int) -> int:
    return (chunks | 1) * CHUNK


def kernels(problem: Problem) -> dict[str, Kernel]:
    """The kernels of a problem, by what they do."""
    element, cell, chunks = type_name(problem.dtype), struct_name(problem.cell), _chunks(problem)
    tf32, keep = ("true" if flag else "false" for flag in (problem.tf32, problem.keep))
    names = {"forward": f"block_forward<{element}, {tf32}, {cell}, {keep}, {chunks}>"}
    if problem.keep:
        names["backward"] = f"block_backward<{element}, {tf32}, {cell}, {chunks}>"
    return {role: Kernel("walks/block/kernels", name, problem.cell) for role, name in names.items()}


def plan(device: Device, problem: Problem, backward: bool) -> Plan | str:
    """How a device would walk, or in words why it cannot."""
    reason = cannot_persist(device, problem)
    if reason is not None:
        return reason
    largest = _largest(device, problem, backward)
    if problem.hidden > largest:
        return f"one block's registers hold weight_hh up to hidden_size {largest} in {problem.dtype.name}"
    chunks, gates = _chunks(problem), len(problem.cell.gates)
    if backward:
        threads = 64 * -(-problem.hidden // 16)
        shared = 2 * COLUMNS * _pitch(2 * -(-gates * chunks // 2)) + 8 * threads
    else:
        threads = 32 * -(-problem.hidden // 8)
        shared = 2 * COLUMNS * _pitch(chunks)
    elements = problem.directions * (problem.steps + 2) * problem.batch * problem.hidden
    if elements * max(gates, problem.cell.saved, len(problem.cell.states)) >= 2**31:
        return "its kernels count elements in 32 bits, and an array would have more"
    if shared > device.shared_per_block:
        return f"it needs {shared} bytes of shared memory in a block, of {device.shared_per_block}"
    return Plan(threads, (-(-problem.batch // COLUMNS), 1, problem.directions), shared)


def _planned(runtime: Runtime, problem: Problem, backward: bool) -> Plan:
    found = plan(runtime.device(), problem, backward)
    if isinstance(found, str):
        raise ValueError(f"walk: 'block' cannot walk this: {found}")
    return found


def forward(runtime: Runtime, problem: Problem, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and with ``keep`` saved."""
    p, b = problem, buffers
    shape = _planned(runtime, p, backward=False)
    arrays = (b.gates, b.bias, b.weight_hh, b.lengths, b.ys, b.states, b.saved)
    sizes = (p.steps, p.batch, p.hidden, p.directions, int(b.bias is not None), int(p.ragged))
    runtime.launch(kernels(p)["forward"], shape.grid, (shape.threads, 1, 1), (*arrays, *sizes), shape.shared)


def backward(runtime: Runtime, problem: Problem, buffers: Buffers) -> None:
    """Walk back: fills dgates, and carries dh and dstates to the first step."""
    p, b = problem, buffers
    shape = _planned(runtime, p, backward=True)
    arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.weight_hh, b.lengths, b.dgates)
    sizes = (p.steps, p.batch, p.hidden, p.directions, int(p.ragged))
    runtime.launch(kernels(p)["backward"], shape.grid, (shape.threads, 1, 1), (*arrays, *sizes), shape.shared)
