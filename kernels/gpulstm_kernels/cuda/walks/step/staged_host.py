"""The host side of the step walk of cells with stages: a launch for the stages between two products, all in one graph.

``staged.cu`` has the kernels. Products with one operand are one product; the gradients of their operands are one each.
Heads divide ``weight_hh`` alone: h and the kernels are as with one head, and h's product is a batch of the heads' for
each gate. The cell's own weights are whole.
"""

from __future__ import annotations

from typing import Any

from ....backend import LayerShape
from ... import heads
from ...buffers import Buffers
from ...cell_stages import Pass, Run, stages_of
from ...device.kernel import Kernel
from ...device.runtime import Runtime, Shape3
from .along import along, of_h, width

_SOURCE = "walks/step/staged"
THREADS = 128
ROW_THREADS = 256
_WARP = 32


def launch_shape(shape: LayerShape, run: Run) -> tuple[Shape3, Shape3]:
    """Blocks and threads: a block a row where means are taken, else a thread a unit."""
    if run.by_row:
        return (shape.batch, 1, shape.directions), (min(ROW_THREADS, -(-shape.hidden // _WARP) * _WARP), 1, 1)
    return (-(-shape.batch * shape.hidden // THREADS), 1, shape.directions), (THREADS, 1, 1)


def kernels(shape: LayerShape) -> dict[str, Kernel]:
    """The kernels of a shape, by what they do: those of stages with the number of the first."""
    p, stages = shape, stages_of(shape.cell)
    found = {}
    for run in stages.forward.runs:
        arguments = (p.dtype, p.cell, run.first, p.training, p.resets)
        found[f"forward {run.first}"] = Kernel(_SOURCE, "staged_forward", arguments)
    for run in stages.backward.runs if p.training else ():
        found[f"backward {run.first}"] = Kernel(_SOURCE, "staged_backward", (p.dtype, p.cell, run.first, p.resets))
    if p.resets:
        found["begin"] = Kernel("walks/step/kernels", "step_begin", (p.dtype, 1))
        found["end"] = Kernel("walks/step/kernels", "step_end", (p.dtype, 1))
    if p.cell.h_gates:
        found["clear"] = Kernel("kernels/layer", "clear_columns", (p.accumulate,))
    return found


def forward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk forward: fills ys, states, and in training saved and rows."""
    p, b = shape, buffers
    steps, batch, directions, hidden = p.steps, p.batch, p.directions, p.hidden
    kernel, stages = kernels(p), stages_of(p.cell)
    h = runtime.empty((directions, batch, hidden), p.dtype)
    slots, means, products = _scratch(runtime, p, stages.forward)
    operands = runtime.empty((directions, batch, stages.distinct * hidden), p.dtype)
    every = (-(-batch * hidden // THREADS), 1, directions)
    if p.resets:
        begun = (b.ys, b.resets, h, steps, batch, hidden, directions)
        runtime.launch(kernel["begin"], every, (THREADS, 1, 1), begun)
    else:
        for d in range(directions):
            runtime.copy(h[d], b.ys[steps + 1 if d else 0, :, d * hidden : (d + 1) * hidden])
    if p.cell.h_gates:  # what h's product adds to
        rows, first = directions * steps * batch, p.rows_of_x
        blocks = -(-rows * (p.rows - first) // THREADS)
        runtime.launch(kernel["clear"], (blocks, 1, 1), (THREADS, 1, 1), (b.gates, rows, first, p.rows))

    scratch, given = (slots, means, products, operands), (b.params, b.inputs, b.resets)
    arrays = (b.gates, b.bias, b.lengths, h, b.ys, b.states, b.saved, b.rows, *scratch, *given)
    sizes = (steps, batch, hidden, directions, int(b.bias is not None), int(p.ragged), width(b.inputs))

    def enqueue() -> None:
        for step, gates in enumerate(along(p, b.gates)):
            if p.cell.gates_of_h:
                _add_product(runtime, p, h, b.weight_hh, gates[:, :, of_h(p)])
            for run in stages.forward.runs:
                grid, block = launch_shape(p, run)
                runtime.launch(kernel[f"forward {run.first}"], grid, block, (*arrays, step, *sizes))
                for operand, here in _groups(run.products, stages.operands, hidden):
                    of = operands[:, :, operand * hidden : (operand + 1) * hidden]
                    runtime.gemm(of, b.own[:, here], products[:, :, here], transpose_b=True, tf32=p.tf32)

    key = ("staged forward", p, *(runtime.pointer(array) for array in (*arrays, b.weight_hh, b.own)), sizes[-1])
    runtime.replay(key, enqueue)


def backward(runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
    """Walk back: fills dgates, dproducts and operands, and carries dh and dstates to the first step."""
    p, b = shape, buffers
    steps, batch, directions, hidden = p.steps, p.batch, p.directions, p.hidden
    kernel, stages = kernels(p), stages_of(p.cell)
    slots, means, products = _scratch(runtime, p, stages.backward)
    forth, scratch = (b.saved, b.rows, b.states, b.ys), (slots, means, products)
    made, given = (b.dgates, b.dproducts, b.operands), (b.params, b.inputs, b.resets)
    arrays = (b.dy, b.dh, b.dstates, *forth, *scratch, b.lengths, *made, *given)
    sizes = (steps, batch, hidden, directions, int(p.ragged), width(b.inputs))

    def enqueue() -> None:
        of_steps = zip(along(p, b.dgates, back=True), along(p, b.dproducts, back=True), strict=True)
        for step, (dgates, dproducts) in enumerate(of_steps):
            for run in stages.backward.runs:
                grid, block = launch_shape(p, run)
                runtime.launch(kernel[f"backward {run.first}"], grid, block, (*arrays, step, *sizes))
                for k in run.products:
                    here = slice(k * hidden, (k + 1) * hidden)
                    runtime.gemm(dproducts[:, :, here], b.own[:, here], products[:, :, here], tf32=p.tf32)
            if p.cell.gates_of_h:
                _add_gradient(runtime, p, dgates[:, :, of_h(p)], b.weight_hh, b.dh)
        if p.resets:
            blocks = (-(-batch * hidden // THREADS), 1, directions)
            runtime.launch(kernel["end"], blocks, (THREADS, 1, 1), (b.dh, b.resets, steps, batch, hidden))

    key = ("staged backward", p, *(runtime.pointer(array) for array in (*arrays, b.weight_hh, b.own)), sizes[-1])
    runtime.replay(key, enqueue)


def _add_product(runtime: Runtime, shape: LayerShape, h: Any, weight_hh: Any, gates: Any) -> None:
    if shape.heads > 1:
        heads.add_product(runtime, shape, h, weight_hh, gates)
    else:
        runtime.gemm(h, weight_hh, gates, transpose_b=True, accumulate=True, tf32=shape.tf32)


def _add_gradient(runtime: Runtime, shape: LayerShape, dgates: Any, weight_hh: Any, dh: Any) -> None:
    if shape.heads > 1:
        heads.add_gradient(runtime, shape, dgates, weight_hh, dh)
    else:
        runtime.gemm(dgates, weight_hh, dh, accumulate=True, tf32=shape.tf32)


def _scratch(runtime: Runtime, shape: LayerShape, of: Pass) -> tuple[Any, Any, Any]:
    """Slots, means and products of a step."""
    each, products = (shape.directions, shape.batch), len(stages_of(shape.cell).weights)
    counts = of.slots * shape.hidden, of.means, products * shape.hidden
    slots, means, made = (runtime.empty((*each, count), shape.accumulate) for count in counts)
    return slots, means, made


def _groups(products: tuple[int, ...], operands: tuple[int, ...], hidden: int) -> list[tuple[int, slice]]:
    """Of some products each operand once, and the columns of its products, which lie one after another."""
    of_operand: dict[int, list[int]] = {}
    for k in products:
        of_operand.setdefault(operands[k], []).append(k)
    return [(operand, slice(ks[0] * hidden, (ks[-1] + 1) * hidden)) for operand, ks in of_operand.items()]
