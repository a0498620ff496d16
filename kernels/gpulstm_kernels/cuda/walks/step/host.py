"""The host side of the step walk: products by cuBLAS, one fused kernel a step, all steps in one CUDA graph.

Any size and type, lengths, projection: where no persistent walk fits, this one does. ``kernels.cu`` has the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....backend import LayerShape
from ...buffers import Buffers
from ...device.kernel import Argument, Kernel
from ...device.runtime import Device, Runtime

THREADS = 128
_VECTOR = 4  # units a thread takes where rows allow aligned vector access


def units(shape: LayerShape) -> int:
    """Neighbouring units that one thread takes."""
    return _VECTOR if shape.hidden % _VECTOR == 0 else 1


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p, vector = shape, units(shape)
    found = {"forward": _kernel("step_forward", p.dtype, p.cell, p.training, vector)}
    if p.training:
        found["backward"] = _kernel("step_backward", p.dtype, p.cell, vector)
    if p.projected:
        found["project"] = _kernel("step_project", p.dtype)
        found["unproject"] = _kernel("step_unproject", p.dtype)
    return found


def _kernel(name: str, *arguments: Argument) -> Kernel:
    return Kernel("walks/step/kernels", name, arguments)


def why_not(device: Device, shape: LayerShape, backward: bool) -> str | None:
    """In words, why a device cannot walk so: it can, whatever the shape."""
    return None


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved and hidden."""
    p, b = shape, buffers
    steps, batch, directions = p.steps, p.batch, p.directions
    kernel, grid = kernels(p), _grid(p, p.hidden, units(p))
    h = runtime.empty((directions, batch, p.outputs), p.dtype)
    product = runtime.empty((directions, batch, p.outputs), p.accumulate) if p.projected else None
    for d in range(directions):
        runtime.copy(h[d], b.ys[steps + 1 if d else 0, :, d * p.outputs : (d + 1) * p.outputs])

    def enqueue() -> None:
        arguments: tuple[Any, ...]
        sizes = (steps, batch, p.hidden, p.outputs, directions)
        flags = (int(b.bias is not None), int(p.ragged), int(p.projected))
        for step, (gates, hidden) in enumerate(zip(_along(p, b.gates), _along(p, b.hidden), strict=True)):
            runtime.gemm(h, b.weight_hh, gates, transpose_b=True, accumulate=True, tf32=p.tf32)
            arguments = (b.gates, b.bias, b.lengths, h, b.ys, b.states, b.saved, b.hidden, step, *sizes, *flags)
            runtime.launch(kernel["forward"], grid, (THREADS, 1, 1), arguments)
            if p.projected:
                runtime.gemm(hidden, b.weight_hr, product, transpose_b=True, tf32=p.tf32)
                arguments = (product, b.lengths, h, b.ys, step, steps, batch, p.outputs, directions, int(p.ragged))
                runtime.launch(kernel["project"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)

    used = (h, product, b.gates, b.bias, b.lengths, b.ys, b.states, b.saved, b.hidden, b.weight_hh, b.weight_hr)
    runtime.replay(("step forward", p, *(runtime.pointer(array) for array in used)), enqueue)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates and dprojected, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    steps, batch, directions = p.steps, p.batch, p.directions
    kernel, grid = kernels(p), _grid(p, p.hidden, units(p))
    dhidden = runtime.empty((directions, batch, p.hidden), p.accumulate) if p.projected else None

    def enqueue() -> None:
        sizes: tuple[int, ...]
        arguments: tuple[Any, ...]
        backwards = zip(_along(p, b.dgates, back=True), _along(p, b.dprojected, back=True), strict=True)
        for step, (dgates, dprojected) in enumerate(backwards):
            if p.projected:
                sizes = (steps, batch, p.outputs, directions)
                arguments = (b.dy, b.dh, b.lengths, b.dprojected, step, *sizes, int(p.ragged))
                runtime.launch(kernel["unproject"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)
                runtime.gemm(dprojected, b.weight_hr, dhidden, tf32=p.tf32)
            arrays = (b.dy, b.dh, dhidden, b.dstates, b.saved, b.states, b.ys, b.hidden, b.lengths, b.dgates)
            sizes = (steps, batch, p.hidden, p.outputs, directions)
            arguments = (*arrays, step, *sizes, int(p.ragged), int(p.projected))
            runtime.launch(kernel["backward"], grid, (THREADS, 1, 1), arguments)
            runtime.gemm(dgates, b.weight_hh, b.dh, accumulate=True, tf32=p.tf32)

    used = (b.dy, b.dh, dhidden, b.dstates, b.saved, b.states, b.ys, b.hidden, b.lengths, b.dgates, b.dprojected)
    key = ("step backward", p, *(runtime.pointer(array) for array in (*used, b.weight_hh, b.weight_hr)))
    runtime.replay(key, enqueue)


def _grid(shape: LayerShape, features: int, units: int) -> tuple[int, int, int]:
    return (-(-shape.batch * -(-features // units) // THREADS), 1, shape.directions)


def _along(shape: LayerShape, array: Any, back: bool = False) -> Iterator[Any]:
    """For each step of the walk, the (D, B, ·) of ``array`` (D, T, B, ·) that it works on; None for none.

    The reverse direction is at the other end of time, so both together are a slice with a stride over the rows
    (d, t); an array of one step only serves them all.
    """
    steps, directions = shape.steps, shape.directions
    if array is None:
        yield from [None] * steps
        return
    slots = array.shape[1]
    rows = array.reshape(directions * slots, *array.shape[2:])
    for step in range(steps):
        if slots == 1:
            yield rows
            continue
        first = steps - 1 - step if back else step
        if directions == 1:
            yield rows[first : first + 1]
        else:
            last = 2 * steps - 1 - first  # of the same step, in the reverse direction
            yield rows[first : last + 1 : last - first]
