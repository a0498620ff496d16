"""The host side of the step walk: products by cuBLAS, one fused kernel a step, all steps in one CUDA graph.

Any size and type, lengths, projection: where no persistent walk fits, this one does. ``kernels.cu`` has the kernels. A
step has one product, a batch of all directions' and heads'. A cell whose h enters none walks all steps in one launch of
the kernels in ``scan.cu``. Cells with stages are :mod:`.staged_host`'s.
"""

from __future__ import annotations

from typing import Any

from ....backend import LayerShape
from ... import heads
from ...buffers import Buffers
from ...device.kernel import Argument, Kernel
from ...device.runtime import Device, Runtime
from . import staged_host
from .along import along, of_h, width

THREADS = 128
SCAN_THREADS = 64
_VECTOR = 4  # units a thread takes where rows allow aligned vector access


_SCAN = "walks/step/scan"


def units(shape: LayerShape) -> int:
    """Neighbouring units that one thread takes."""
    return _VECTOR if shape.units_of_head % _VECTOR == 0 else 1


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do."""
    p, vector = shape, units(shape)
    if p.cell.stages > 1:
        return staged_host.kernels(p)
    if not p.cell.gates_of_h:
        found = {"forward": Kernel(_SCAN, "scan_forward", (p.dtype, p.cell, p.training, p.resets))}
        return (
            found | {"backward": Kernel(_SCAN, "scan_backward", (p.dtype, p.cell, p.resets))} if p.training else found
        )
    found = {"forward": _kernel("step_forward", p.dtype, p.cell, p.training, vector, p.resets, p.heads)}
    if p.training:
        found["backward"] = _kernel("step_backward", p.dtype, p.cell, vector, p.resets, p.heads)
    if p.projected:
        found["project"] = _kernel("step_project", p.dtype, p.resets)
        found["unproject"] = _kernel("step_unproject", p.dtype, p.resets)
    if p.resets:
        found["begin"] = _kernel("step_begin", p.dtype, p.heads)
        found["end"] = _kernel("step_end", p.dtype, p.heads)
    if p.cell.h_gates and p.heads == 1:
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
    if p.cell.stages > 1:
        staged_host.forward(runtime, p, b)
        return
    if not p.cell.gates_of_h:
        arrays = (b.gates, b.bias, b.params, b.inputs, b.resets, b.lengths, b.ys, b.states, b.saved)
        _scan(runtime, p, kernels(p)["forward"], arrays, width(b.inputs), int(b.bias is not None))
        return
    steps, batch, directions = p.steps, p.batch, p.directions
    kernel, grid = kernels(p), _grid(p, p.hidden, units(p))
    h = runtime.empty((directions * p.heads, batch, p.outputs // p.heads), p.dtype)
    product = runtime.empty((directions, batch, p.outputs), p.accumulate) if p.projected else None
    of_heads, weight_hh = _of_heads(runtime, p, p.accumulate), _matrices(p, b.weight_hh)
    if p.resets:
        arguments: tuple[Any, ...] = (b.ys, b.resets, h, steps, batch, p.outputs, directions)
        runtime.launch(kernel["begin"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)
    else:
        for d in range(directions):
            initial = b.ys[steps + 1 if d else 0, :, d * p.outputs : (d + 1) * p.outputs]
            runtime.copy(h[d * p.heads : (d + 1) * p.heads], heads.by_head(initial, p.heads))
    if "clear" in kernel:  # what h's product adds to
        rows, first = directions * steps * batch, p.rows_of_x
        blocks = -(-rows * (p.rows - first) // THREADS)
        runtime.launch(kernel["clear"], (blocks, 1, 1), (THREADS, 1, 1), (b.gates, rows, first, p.rows))
    of_own, given = of_h(p), (b.params, b.inputs, b.resets, width(b.inputs))

    def enqueue() -> None:
        arguments: tuple[Any, ...]
        sizes = (steps, batch, p.hidden, p.outputs, directions)
        flags = (int(b.bias is not None), int(p.ragged), int(p.projected))
        for step, (gates, hidden) in enumerate(zip(along(p, b.gates), along(p, b.hidden), strict=True)):
            into, adds = (gates[:, :, of_own], True) if of_heads is None else (of_heads, False)
            runtime.gemm(h, weight_hh, into, transpose_b=True, accumulate=adds, tf32=p.tf32)
            arrays = (b.gates, b.bias, b.lengths, h, b.ys, b.states, b.saved, b.hidden)
            arguments = (*arrays, step, *sizes, *flags, *given, of_heads)
            runtime.launch(kernel["forward"], grid, (THREADS, 1, 1), arguments)
            if p.projected:
                runtime.gemm(hidden, b.weight_hr, product, transpose_b=True, tf32=p.tf32)
                arguments = (product, b.lengths, h, b.ys, step, steps, batch, p.outputs)
                arguments += (directions, int(p.ragged), b.resets)
                runtime.launch(kernel["project"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)

    used = (h, product, b.gates, b.bias, b.lengths, b.ys, b.states, b.saved, b.hidden)
    products = (of_heads, b.weight_hh, b.weight_hr)
    key = ("step forward", p, *(runtime.pointer(array) for array in (*used, *products, *given[:3])), given[3])
    runtime.replay(key, enqueue)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates and dprojected, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    if p.cell.stages > 1:
        staged_host.backward(runtime, p, b)
        return
    if not p.cell.gates_of_h:
        arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.params, b.inputs, b.resets, b.lengths, b.dgates)
        _scan(runtime, p, kernels(p)["backward"], arrays, width(b.inputs))
        return
    steps, batch, directions = p.steps, p.batch, p.directions
    kernel, grid = kernels(p), _grid(p, p.hidden, units(p))
    dhidden = runtime.empty((directions, batch, p.hidden), p.accumulate) if p.projected else None
    of_own, given = of_h(p), (b.params, b.inputs, b.resets, width(b.inputs))
    of_heads, weight_hh, dh = _of_heads(runtime, p, p.dtype), _matrices(p, b.weight_hh), b.dh
    if p.heads > 1:
        dh = runtime.empty((directions * p.heads, batch, p.units_of_head), p.accumulate)
        heads.copy_by_head(runtime, p, dh, b.dh)

    def enqueue() -> None:
        sizes: tuple[int, ...]
        arguments: tuple[Any, ...]
        backwards = zip(along(p, b.dgates, back=True), along(p, b.dprojected, back=True), strict=True)
        for step, (dgates, dprojected) in enumerate(backwards):
            if p.projected:
                sizes = (steps, batch, p.outputs, directions)
                arguments = (b.dy, dh, b.lengths, b.dprojected, step, *sizes, int(p.ragged), b.resets)
                runtime.launch(kernel["unproject"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)
                runtime.gemm(dprojected, b.weight_hr, dhidden, tf32=p.tf32)
            arrays = (b.dy, dh, dhidden, b.dstates, b.saved, b.states, b.ys, b.hidden, b.lengths, b.dgates)
            sizes = (steps, batch, p.hidden, p.outputs, directions)
            arguments = (*arrays, step, *sizes, int(p.ragged), int(p.projected), *given, of_heads)
            runtime.launch(kernel["backward"], grid, (THREADS, 1, 1), arguments)
            factor = dgates[:, :, of_own] if of_heads is None else of_heads
            runtime.gemm(factor, weight_hh, dh, accumulate=True, tf32=p.tf32)
        if p.resets:
            arguments = (dh, b.resets, steps, batch, p.outputs)
            runtime.launch(kernel["end"], _grid(p, p.outputs, 1), (THREADS, 1, 1), arguments)

    used = (b.dy, dh, dhidden, b.dstates, b.saved, b.states, b.ys, b.hidden, b.lengths, b.dgates, b.dprojected)
    products = (of_heads, b.weight_hh, b.weight_hr)
    key = ("step backward", p, *(runtime.pointer(array) for array in (*used, *products, *given[:3])), given[3])
    runtime.replay(key, enqueue)
    if p.heads > 1:
        heads.copy_by_head(runtime, p, dh, b.dh, back=True)


def _scan(runtime: Runtime, shape: LayerShape, kernel: Kernel, arrays: tuple[Any, ...], *numbers: int) -> None:
    p = shape
    grid = (-(-p.batch * p.hidden // SCAN_THREADS), 1, p.directions)
    arguments = (*arrays, p.steps, p.batch, p.hidden, p.directions, *numbers, int(p.ragged))
    runtime.launch(kernel, grid, (SCAN_THREADS, 1, 1), arguments)


def _of_heads(runtime: Runtime, shape: LayerShape, dtype: Any) -> Any:
    """What a step's product of h gives, or that of its gradient takes, head by head (D·N, B, Gh·H/N); None of one head:
    it lies among all the gates then."""
    p = shape
    return runtime.empty((p.directions * p.heads, p.batch, p.rows_of_h // p.heads), dtype) if p.heads > 1 else None


def _matrices(shape: LayerShape, weight_hh: Any) -> Any:
    """The view (D·N, Gh·H/N, P/N) of ``weight_hh``."""
    p = shape
    return weight_hh.reshape(p.directions * p.heads, p.rows_of_h // p.heads, p.outputs // p.heads)


def _grid(shape: LayerShape, features: int, units: int) -> tuple[int, int, int]:
    return (-(-shape.batch * -(-features // units) // THREADS), 1, shape.directions)
