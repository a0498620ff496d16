"""The kernels of the step walk of cells with stages; ``staged.cu`` has the equations, shapes and the launch shape.

Where means are taken, a block takes a row, else a thread a unit.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from ....language.cell import TracedCell
from ...cell_stages import stages_of
from ...device import numba_stages
from ...device.numba_kernel import BYTE, INT, POINTER, Twin, element


@cuda.jit(device=True)
def _location(hidden, by_row):
    """Which sequence and which first unit this thread takes, and how far it is to the next one."""
    if by_row:
        return cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    flat = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    return flat // hidden, flat % hidden, hidden


@cuda.jit(device=True)
def _begins(resets, t, direction, steps, batch, b):
    """Whether sequence ``b`` begins anew between step ``t`` and the one before it in the walk of its direction."""
    return t + direction < steps and resets[(t + direction) * batch + b] != 0


@cuda.jit(device=True)
def _ends(resets, t, direction, steps, batch, b):
    """Whether it does so between step ``t`` and the one after it."""
    time = t + 1 - direction
    return time > 0 and time < steps and resets[time * batch + b] != 0


def staged_forward(dtype: np.dtype, cell: TracedCell, stage: int, training: bool, anew: bool) -> Twin:
    """The stages of a step from ``stage`` to the next products; ``anew``: sequences may begin anew."""
    T, A = element(dtype)
    stages, gates_count, states_count, saved_count = (
        stages_of(cell),
        len(cell.preactivations),
        len(cell.states),
        cell.saved,
    )
    of, params_count = stages.forward, len(cell.params)
    rows_count, products_count, operands_count = stages.saved_of_row, len(stages.weights), stages.distinct
    slots_count, means_count, last = of.slots, of.means, stage == of.runs[-1].first
    run = numba_stages.forward_run(cell, T, A, stage, training)
    by_row, location = numba_stages.by_row(cell, stage, backward=False), _location
    begin, end = _begins, _ends

    def kernel(
        gates,
        bias,
        lengths,
        h,
        ys,
        states,
        saved,
        rows,
        slots,
        means,
        products,
        operands,
        params,
        inputs,
        resets,
        step,
        steps,
        batch,
        hidden,
        directions,
        has_bias,
        ragged,
        input_width,
    ):
        direction = cuda.blockIdx.z
        b, first, stride = location(hidden, by_row)
        if b >= batch:
            return
        t = steps - 1 - step if direction else step
        row, here = (direction * steps + t) * batch + b, direction * batch + b
        count = steps + 1 if training else 1
        at_from = ((direction * count + (t + direction if training else 0)) * batch + b) * hidden
        at_to = ((direction * count + (t + 1 - direction if training else 0)) * batch + b) * hidden
        of_state = directions * count * batch * hidden
        at_y = (((t + 1) * batch + b) * directions + direction) * hidden
        if ragged != 0 and t >= lengths[b]:
            if last:
                for unit in range(first, hidden, stride):
                    ys[at_y + unit] = h[here * hidden + unit]
                    for k in range(states_count):
                        states[at_to + k * of_state + unit] = states[at_from + k * of_state + unit]
            return
        begins = anew and begin(resets, t, direction, steps, batch, b)
        ends = anew and end(resets, t, direction, steps, batch, b)
        run(  # of so many arguments Numba wants none to be a choice
            gates,
            bias,
            h,
            ys,
            states,
            saved,
            rows,
            slots,
            means,
            products,
            operands,
            params,
            inputs,
            row * gates_count * hidden,
            direction * gates_count * hidden,
            here * hidden,
            at_y,
            at_from,
            at_to,
            row * saved_count * hidden,
            row * rows_count,
            here * slots_count * hidden,
            here * means_count,
            here * products_count * hidden,
            here * operands_count * hidden,
            direction * params_count * hidden,
            (t * batch + b) * input_width,
            of_state,
            steps * batch * input_width,
            hidden,
            input_width,
            has_bias != 0,
            begins,
            ends,
            first,
            stride,
        )

    arrays = (A, A, INT, T, T, A, T, A, A, A, A, T, T, T, BYTE)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 8))


def staged_backward(dtype: np.dtype, cell: TracedCell, stage: int, anew: bool) -> Twin:
    """Those of its gradient: writes dgates, dproducts and operands, and carries dh and dstates on."""
    T, A = element(dtype)
    stages, saved_count, params_count = stages_of(cell), cell.saved, len(cell.params)
    of, own = stages.backward, len(cell.preactivations) + params_count + len(cell.differentiable)
    rows_count, products_count, operands_count = stages.saved_of_row, len(stages.weights), stages.distinct
    slots_count, means_count, is_first = of.slots, of.means, stage == 0
    run = numba_stages.backward_run(cell, T, A, stage)
    by_row, location = numba_stages.by_row(cell, stage, backward=True), _location
    begin, end = _begins, _ends

    def kernel(
        dy,
        dh,
        dstates,
        saved,
        rows,
        states,
        ys,
        slots,
        means,
        products,
        lengths,
        dgates,
        dproducts,
        operands,
        params,
        inputs,
        resets,
        step,
        steps,
        batch,
        hidden,
        directions,
        ragged,
        input_width,
    ):
        direction = cuda.blockIdx.z
        b, first, stride = location(hidden, by_row)
        if b >= batch:
            return
        t = step if direction else steps - 1 - step
        row, here = (direction * steps + t) * batch + b, direction * batch + b
        at_gates, at_dproducts = row * own * hidden, row * products_count * hidden
        at_operands = row * operands_count * hidden
        if ragged != 0 and t >= lengths[b]:
            if is_first:
                for unit in range(first, hidden, stride):
                    for k in range(own):
                        dgates[at_gates + k * hidden + unit] = T(A(0))
                    for k in range(products_count):
                        dproducts[at_dproducts + k * hidden + unit] = T(A(0))
                    for k in range(operands_count):
                        operands[at_operands + k * hidden + unit] = T(A(0))
            return
        slots_of, column = direction * (steps + 1), (b * directions + direction) * hidden
        width = batch * directions * hidden
        begins = anew and begin(resets, t, direction, steps, batch, b)
        ends = anew and end(resets, t, direction, steps, batch, b)
        run(
            dy,
            dh,
            dstates,
            saved,
            rows,
            states,
            ys,
            slots,
            means,
            products,
            dgates,
            dproducts,
            operands,
            params,
            inputs,
            t * width + column,
            here * hidden,
            row * saved_count * hidden,
            row * rows_count,
            ((slots_of + t + 1 - direction) * batch + b) * hidden,
            ((slots_of + t + direction) * batch + b) * hidden,
            (t + 1) * width + column,
            (t + 2 * direction) * width + column,
            here * slots_count * hidden,
            here * means_count,
            here * products_count * hidden,
            at_gates,
            at_dproducts,
            at_operands,
            direction * params_count * hidden,
            (t * batch + b) * input_width,
            directions * (steps + 1) * batch * hidden,
            directions * batch * hidden,
            steps * batch * input_width,
            hidden,
            input_width,
            begins,
            ends,
            first,
            stride,
        )

    arrays = (T, A, A, T, A, A, T, A, A, A, INT, T, T, T, T, T, BYTE)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 7))
