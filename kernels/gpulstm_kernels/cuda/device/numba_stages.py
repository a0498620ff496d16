"""The stages of a cell's step on a device as Python that Numba compiles: one function for those that a launch takes.

Its arguments are the arrays of the kernel that calls it and where in each of them the row lies, ``at_...``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numba import cuda

from ...cells import activations
from ...language.cell import TracedCell
from ...language.code import FUNCTIONS
from ...language.device_stages import DeviceStep, backward_step, forward_step
from ...language.stage_code import Language
from ..cell_stages import stages_of
from . import numba_cell  # noqa: F401 - what Numba makes of activations

ROW_THREADS = 256  # of a block, at most
_AT_ONCE = 8  # means, whose sums lie in shared memory together

# What loads and stores a value, of number $: in both passes, in a step, in its gradient.
_LOADS = {
    "param": "A(params[at_params + $ * hidden + unit])",
    "input": "A(inputs[at_inputs + $ * of_input + (unit if input_width > 1 else 0)])",
    "mean": "means[at_means + $]",
    "product": "products[at_products + $ * hidden + unit]",
    "slot": "slots[at_slots + $ * hidden + unit]",
}
_STORES = {
    "slot": "slots[at_slots + $ * hidden + unit] = {}",
    "operand": "operands[at_operands + $ * hidden + unit] = T({})",
}
_FORWARD_LOADS = _LOADS | {
    "gate": "gate(gates, bias, at_gates + $ * hidden + unit, at_bias + $ * hidden + unit, has_bias)",
    "old": "(A(0) if begins else states[at_from + $ * of_state + unit])",
    "before": "A(h[at_h + unit])",
}
_FORWARD_STORES = _STORES | {
    "state": "states[at_to + $ * of_state + unit] = {}",
    "h": "set_h(h, ys, at_h + unit, at_y + unit, {}, ends)",
    "saved": "saved[at_saved + $ * hidden + unit] = T({})",
    "saved_of_row": "set_of_row(rows, at_rows + $, {}, unit)",
}
_BACKWARD_LOADS = _LOADS | {
    "saved": "A(saved[at_saved + $ * hidden + unit])",
    "saved_of_row": "rows[at_rows + $]",
    "h": "A(ys[at_y + unit])",
    "before": "(A(0) if begins else A(ys[at_earlier + unit]))",
    "state": "states[at_state + $ * of_state + unit]",
    "old": "(A(0) if begins else states[at_previous + $ * of_state + unit])",
    "dh": "((A(0) if ends else dh[at_h + unit]) + A(dy[at_dy + unit]))",
    "dstate": "dstates[at_h + $ * of_dstate + unit]",
}
_BACKWARD_STORES = _STORES | {
    "gradient": "dgates[at_gates + $ * hidden + unit] = T({})",
    "dproduct": "dproducts[at_dproducts + $ * hidden + unit] = T({})",
    "dstate": "set_dstate(dstates, at_h + $ * of_dstate + unit, {}, begins)",
    "dbefore": "dh[at_h + unit] = {}",
}
FORWARD = (
    "gates, bias, h, ys, states, saved, rows, slots, means, products, operands, params, inputs, "
    "at_gates, at_bias, at_h, at_y, at_from, at_to, at_saved, at_rows, at_slots, at_means, at_products, at_operands, "
    "at_params, at_inputs, of_state, of_input, hidden, input_width, has_bias, begins, ends, first, stride"
)
BACKWARD = (
    "dy, dh, dstates, saved, rows, states, ys, slots, means, products, dgates, dproducts, operands, params, inputs, "
    "at_dy, at_h, at_saved, at_rows, at_state, at_previous, at_y, at_earlier, at_slots, at_means, at_products, "
    "at_gates, at_dproducts, at_operands, at_params, at_inputs, of_state, of_dstate, of_input, hidden, input_width, "
    "begins, ends, first, stride"
)


def _access(texts: Mapping[str, str]) -> Callable[..., str]:
    return lambda kind, number=0: texts[kind].replace("$", str(number))


def _number(value: float) -> str:
    return f"A({value!r})"


_NUMBA = Language(_number, _number, lambda name, text: f"{name} = {text}")


def forward_run(cell: TracedCell, T: Any, A: Any, stage: int, training: bool) -> Any:
    """A device function of :data:`FORWARD` for the stages of a step from ``stage`` to the next products."""
    step = forward_step(cell, _access(_FORWARD_LOADS), _access(_FORWARD_STORES), _NUMBA, training)
    return _function(cell, step, FORWARD, T, A, stage)


def backward_run(cell: TracedCell, T: Any, A: Any, stage: int) -> Any:
    """A device function of :data:`BACKWARD` for those of its gradient."""
    step = backward_step(cell, _access(_BACKWARD_LOADS), _access(_BACKWARD_STORES), _NUMBA)
    return _function(cell, step, BACKWARD, T, A, stage)


def _function(cell: TracedCell, step: DeviceStep, arguments: str, T: Any, A: Any, first: int) -> Any:
    lines = [f"def run({arguments}):"]
    last = next(k for k in range(first, len(step.products)) if step.products[k] or k + 1 == len(step.products))
    if any(step.means[first : last + 1]):
        lines += [f"    partial = cuda.shared.array({_AT_ONCE * ROW_THREADS}, A)", "    thread = cuda.threadIdx.x"]
    for stage in range(first, last + 1):
        of_row, of_unit, summed = step.step.lines(stage)
        lines += [f"    sum{j} = A(0)" for j in range(len(summed))]
        body = [*of_row, *of_unit, *(f"sum{j} += {text}" for j, text in enumerate(summed))]
        if body:
            lines += ["    for unit in range(first, hidden, stride):", *(f"        {line}" for line in body)]
        mean = sum(step.means[:stage])
        for start in range(0, len(summed), _AT_ONCE):
            together = range(start, min(start + _AT_ONCE, len(summed)))
            lines += [f"    partial[{j - start} * {ROW_THREADS} + thread] = sum{j}" for j in together]
            lines.append(f"    take_means(partial, means, at_means + {mean + start}, {len(together)}, hidden)")
    if len(lines) == 1:
        lines.append("    pass")
    names = _names(T, A)
    exec(compile("\n".join([*lines, ""]), f"<stages of {cell.maths} from {first}>", "exec"), names)
    return cuda.jit(device=True)(names["run"])


def _names(T: Any, A: Any) -> dict[str, Any]:
    """What the lines call."""

    @cuda.jit(device=True)
    def gate(gates, bias, place, of_bias, has_bias):
        return gates[place] + bias[of_bias] if has_bias else gates[place]

    @cuda.jit(device=True)
    def set_h(h, ys, place, of_y, value, ends):
        h[place] = T(A(0)) if ends else T(value)
        ys[of_y] = T(value)

    @cuda.jit(device=True)
    def set_of_row(rows, place, value, unit):
        if unit == 0:
            rows[place] = value

    @cuda.jit(device=True)
    def set_dstate(dstates, place, value, begins):
        dstates[place] = A(0) if begins else value

    @cuda.jit(device=True)
    def take_means(partial, means, place, count, hidden):
        thread, left = cuda.threadIdx.x, cuda.blockDim.x
        cuda.syncthreads()
        while left > 1:
            half = (left + 1) // 2
            if thread + half < left:
                for k in range(count):
                    partial[k * ROW_THREADS + thread] += partial[k * ROW_THREADS + thread + half]
            cuda.syncthreads()
            left = half
        if thread < count:
            means[place + thread] = partial[thread * ROW_THREADS] / A(hidden)
        cuda.syncthreads()

    helpers = gate, set_h, set_of_row, set_dstate, take_means
    names: dict[str, Any] = {name: getattr(activations, name) for name in FUNCTIONS}
    return names | {helper.__name__: helper for helper in helpers} | {"A": A, "T": T, "cuda": cuda}


def by_row(cell: TracedCell, stage: int, backward: bool) -> bool:
    """Whether a block takes a row in the launch that begins with ``stage``."""
    of = stages_of(cell).backward if backward else stages_of(cell).forward
    return next(run.by_row for run in of.runs if run.first == stage)
