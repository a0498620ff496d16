"""The host side of the step walk: products by cuBLAS, one fused kernel a step, all steps in one CUDA graph.

Any size and type, lengths, projection: where no persistent walk fits, this one does. ``kernels.cu`` has the kernels. A
cell whose h enters no product needs none between its steps: one launch of those in ``scan.cu`` walks all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....backend import LayerShape
from ...buffers import Buffers
from ...device.kernel import Argument, Kernel
from ...device.runtime import Device, Runtime

THREADS = 128
SCAN_THREADS = 64
_VECTOR = 4  # units a thread takes where rows allow aligned vector access


_SCAN = "walks/step/scan"


def units(shape: LayerShape) -> int:
    """Neighbouring units that one thread takes."""
    return _VECTOR if shape.hidden % _VECTOR == 0 else 1


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p, vector = shape, units(shape)
    if not p.cell.gates_of_h:
        found = {"forward": Kernel(_SCAN, "scan_forward", (p.dtype, p.cell, p.training, p.resets))}
        return (
            found | {"backward": Kernel(_SCAN, "scan_backward", (p.dtype, p.cell, p.resets))} if p.training else found
        )
    found = {"forward": _kernel("step_forward", p.dtype, p.cell, p.training, vector, p.resets)}
    if p.training:
        found["backward"] = _kernel("step_backward", p.dtype, p.cell, vector, p.resets)
    if p.projected:
        found["project"] = _kernel("step_project", p.dtype, p.resets)
        found["unproject"] = _kernel("step_unproject", p.dtype, p.resets)
    if p.resets:
        found["begin"] = _kernel("step_begin", p.dtype)
        found["end"] = _kernel("step_end", p.dtype)
    if p.cell.h_gates:
        found["clear"] = Kernel("kernels/layer", "clear_columns", (p.accumulate,))
    return found


def _kernel(name: str, *arguments: Argument) -> Kernel:
    return Kernel("walks/step/kernels", name, arguments)


def why_not(device: Device, shape: LayerShape, backward: bool) -> str | None:
    """In words, why a device cannot walk so: it can, whatever the shape."""
    return None


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved and hidden."""
    p, b = shape, buffers
    if not p.cell.gates_of_h:
        arrays = (b.gates, b.bias, b.params, b.inputs, b.resets, b.lengths, b.ys, b.states, b.saved)
        _scan(runtime, p, kernels(p)["forward"], arrays, _width(b.inputs), int(b.bias is not None))
        return
    steps, batch, directions = p.steps, p.batch, p.directions
    kernel, grid = kernels(p), _grid(p, p.hidden, units(p))
    h = runtime.empty((directions, batch, p.outputs), p.dtype)
    product = runtime.empty((directions, batch, p.outputs), p.accumulate) if p.projected else None
    if p.resets:
        arguments: tuple[Any, ...] = (b.ys, b.resets, h, steps, batch, p.outputs, directions)
        runtime.launch(kernel["begin"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)
    else:
        for d in range(directions):
            runtime.copy(h[d], b.ys[steps + 1 if d else 0, :, d * p.outputs : (d + 1) * p.outputs])
    if p.cell.h_gates:  # what h's product adds to
        rows, first = directions * steps * batch, p.rows_of_x
        blocks = -(-rows * (p.rows - first) // THREADS)
        runtime.launch(kernel["clear"], (blocks, 1, 1), (THREADS, 1, 1), (b.gates, rows, first, p.rows))
    of_h, given = _of_h(p), (b.params, b.inputs, b.resets, _width(b.inputs))

    def enqueue() -> None:
        arguments: tuple[Any, ...]
        sizes = (steps, batch, p.hidden, p.outputs, directions)
        flags = (int(b.bias is not None), int(p.ragged), int(p.projected))
        for step, (gates, hidden) in enumerate(zip(_along(p, b.gates), _along(p, b.hidden), strict=True)):
            runtime.gemm(h, b.weight_hh, gates[:, :, of_h], transpose_b=True, accumulate=True, tf32=p.tf32)
            arrays = (b.gates, b.bias, b.lengths, h, b.ys, b.states, b.saved, b.hidden)
            runtime.launch(kernel["forward"], grid, (THREADS, 1, 1), (*arrays, step, *sizes, *flags, *given))
            if p.projected:
                runtime.gemm(hidden, b.weight_hr, product, transpose_b=True, tf32=p.tf32)
                arguments = (product, b.lengths, h, b.ys, step, steps, batch, p.outputs)
                arguments += (directions, int(p.ragged), b.resets)
                runtime.launch(kernel["project"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)

    used = (h, product, b.gates, b.bias, b.lengths, b.ys, b.states, b.saved, b.hidden, b.weight_hh, b.weight_hr)
    key = ("step forward", p, *(runtime.pointer(array) for array in (*used, *given[:3])), given[3])
    runtime.replay(key, enqueue)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates and dprojected, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    if not p.cell.gates_of_h:
        arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.params, b.inputs, b.resets, b.lengths, b.dgates)
        _scan(runtime, p, kernels(p)["backward"], arrays, _width(b.inputs))
        return
    steps, batch, directions = p.steps, p.batch, p.directions
    kernel, grid = kernels(p), _grid(p, p.hidden, units(p))
    dhidden = runtime.empty((directions, batch, p.hidden), p.accumulate) if p.projected else None
    of_h, given = _of_h(p), (b.params, b.inputs, b.resets, _width(b.inputs))

    def enqueue() -> None:
        sizes: tuple[int, ...]
        arguments: tuple[Any, ...]
        backwards = zip(_along(p, b.dgates, back=True), _along(p, b.dprojected, back=True), strict=True)
        for step, (dgates, dprojected) in enumerate(backwards):
            if p.projected:
                sizes = (steps, batch, p.outputs, directions)
                arguments = (b.dy, b.dh, b.lengths, b.dprojected, step, *sizes, int(p.ragged), b.resets)
                runtime.launch(kernel["unproject"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)
                runtime.gemm(dprojected, b.weight_hr, dhidden, tf32=p.tf32)
            arrays = (b.dy, b.dh, dhidden, b.dstates, b.saved, b.states, b.ys, b.hidden, b.lengths, b.dgates)
            sizes = (steps, batch, p.hidden, p.outputs, directions)
            arguments = (*arrays, step, *sizes, int(p.ragged), int(p.projected), *given)
            runtime.launch(kernel["backward"], grid, (THREADS, 1, 1), arguments)
            runtime.gemm(dgates[:, :, of_h], b.weight_hh, b.dh, accumulate=True, tf32=p.tf32)
        if p.resets:
            arguments = (b.dh, b.resets, steps, batch, p.outputs)
            runtime.launch(kernel["end"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)

    used = (b.dy, b.dh, dhidden, b.dstates, b.saved, b.states, b.ys, b.hidden, b.lengths, b.dgates, b.dprojected)
    weights = (b.weight_hh, b.weight_hr)
    key = ("step backward", p, *(runtime.pointer(array) for array in (*used, *weights, *given[:3])), given[3])
    runtime.replay(key, enqueue)


def _scan(runtime: Runtime, shape: LayerShape, kernel: Kernel, arrays: tuple[Any, ...], *numbers: int) -> None:
    p = shape
    grid = (-(-p.batch * p.hidden // SCAN_THREADS), 1, p.directions)
    arguments = (*arrays, p.steps, p.batch, p.hidden, p.directions, *numbers, int(p.ragged))
    runtime.launch(kernel, grid, (SCAN_THREADS, 1, 1), arguments)


def _of_h(shape: LayerShape) -> slice:
    """Those columns of gates and of their gradients that h's product gives."""
    return slice(len(shape.cell.x_gates) * shape.hidden, shape.rows)


def _width(inputs: Any) -> int:
    """How many values a row has of each input."""
    return 0 if inputs is None else inputs.shape[-1]


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
