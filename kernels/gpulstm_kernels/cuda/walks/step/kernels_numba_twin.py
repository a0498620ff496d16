"""The kernels of the step walk; ``kernels.cu`` has the equations, shapes and the launch shape, the same here.

One thread takes ``units`` neighbouring units of one sequence; block (128, 1, 1), grid (⌈B·⌈H/units⌉ / 128⌉, 1, D).
In training the cell's saved values (value by value) and the states of every step are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from ....cells import Cell
from ...device import numba_cell
from ...device.numba_kernel import INT, POINTER, Twin, element


@cuda.jit(device=True)
def _location(features, units):
    """Which sequence and which first unit this thread takes, of ``features`` in groups of ``units``."""
    groups = (features + units - 1) // units
    flat = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    return flat // groups, flat % groups * units


def step_forward(dtype: np.dtype, cell: Cell, training: bool, units: int) -> Twin:
    """h_t, states_t, saved_t = cell(gates_t + bias, states_{t-1})."""
    T, A = element(dtype)
    count, states_count = len(cell.gates), len(cell.states)
    compute, location = numba_cell.forward(cell, A), _location
    load_gates, add_bias = numba_cell.loader(count, A), numba_cell.adder(count)
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    store_saved = numba_cell.storer(cell.saved, T)

    def kernel(
        gates,
        bias,
        lengths,
        h,
        ys,
        states,
        saved,
        hidden,
        step,
        steps,
        batch,
        hidden_size,
        outputs,
        directions,
        has_bias,
        ragged,
        projected,
    ):
        direction = cuda.blockIdx.z
        b, first = location(hidden_size, units)
        if b >= batch:
            return
        t = steps - 1 - step if direction else step
        row, here = (direction * steps + t) * batch + b, direction * batch + b
        slots = steps + 1 if training else 1
        before = (direction * slots + (t + direction if training else 0)) * batch + b
        after = (direction * slots + (t + 1 - direction if training else 0)) * batch + b
        stride = directions * slots * batch * hidden_size  # from one state to the next
        ended = ragged != 0 and t >= lengths[b]
        for unit in range(first, first + units):
            output = (((t + 1) * batch + b) * directions + direction) * outputs + unit
            current = load_states(states, before * hidden_size + unit, stride)
            if ended:
                store_states(current, states, after * hidden_size + unit, stride)
                if projected:  # the gradient of weight_hr multiplies these rows by zeros, and a NaN would survive that
                    hidden[(row if training else here) * hidden_size + unit] = T(A(0))
                else:
                    ys[output] = h[here * outputs + unit]
                continue
            gate = load_gates(gates, row * count * hidden_size + unit, hidden_size)
            if has_bias:
                gate = add_bias(gate, bias, direction * count * hidden_size + unit, hidden_size)
            value, new, save = compute(gate, current)
            store_states(new, states, after * hidden_size + unit, stride)
            if training:
                store_saved(save, saved, row * cell_saved * hidden_size + unit, hidden_size)
            if projected:
                hidden[(row if training else here) * hidden_size + unit] = T(A(value))
            else:
                h[here * outputs + unit] = T(A(value))
                ys[output] = T(A(value))

    cell_saved = cell.saved
    ints = (INT,) * 9
    arrays = (A, A, INT, T, T, A, T, T)
    return Twin(kernel, (*map(POINTER, arrays), *ints))


def step_project(dtype: np.dtype) -> Twin:
    """With a projection: product = hidden·W_hrᵀ (D, B, P) becomes h unless the sequence has ended; h goes to ys."""
    T, A = element(dtype)
    location = _location

    def kernel(product, lengths, h, ys, step, steps, batch, outputs, directions, ragged):
        direction = cuda.blockIdx.z
        b, unit = location(outputs, 1)
        if b >= batch:
            return
        t = steps - 1 - step if direction else step
        here = (direction * batch + b) * outputs + unit
        if ragged == 0 or t < lengths[b]:
            h[here] = T(product[here])
        ys[(((t + 1) * batch + b) * directions + direction) * outputs + unit] = h[here]

    return Twin(kernel, (*map(POINTER, (A, INT, T, T)), *(INT,) * 6))


def step_unproject(dtype: np.dtype) -> Twin:
    """With a projection, backward: the whole gradient of h_t to dprojected; dh becomes zero unless the
    sequence has ended."""
    T, A = element(dtype)
    location = _location

    def kernel(dy, dh, lengths, dprojected, step, steps, batch, outputs, directions, ragged):
        direction = cuda.blockIdx.z
        b, unit = location(outputs, 1)
        if b >= batch:
            return
        t = step if direction else steps - 1 - step
        here = (direction * batch + b) * outputs + unit
        to = ((direction * steps + t) * batch + b) * outputs + unit
        if ragged != 0 and t >= lengths[b]:
            dprojected[to] = T(A(0))
        else:
            dprojected[to] = T(A(dh[here] + A(dy[((t * batch + b) * directions + direction) * outputs + unit])))
            dh[here] = A(0)

    return Twin(kernel, (*map(POINTER, (T, A, INT, T)), *(INT,) * 6))


def step_backward(dtype: np.dtype, cell: Cell, units: int) -> Twin:
    """dgates_t and dstates_{t-1} from the gradient of h_t and dstates_t; the host's product adds dgates·W_hh to dh."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.gates), len(cell.states), cell.saved
    compute, location = numba_cell.backward(cell, A), _location
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    load_saved, store_gates = numba_cell.loader(saved_count, A), numba_cell.storer(count, T)

    def kernel(
        dy,
        dh,
        dhidden,
        dstates,
        saved,
        states,
        ys,
        hidden,
        lengths,
        dgates,
        step,
        steps,
        batch,
        hidden_size,
        outputs,
        directions,
        ragged,
        projected,
    ):
        direction = cuda.blockIdx.z
        b, first = location(hidden_size, units)
        if b >= batch:
            return
        t = step if direction else steps - 1 - step
        row, here = (direction * steps + t) * batch + b, direction * batch + b
        ended = ragged != 0 and t >= lengths[b]
        slots = direction * (steps + 1)
        before = (slots + t + direction) * batch + b
        after = (slots + t + 1 - direction) * batch + b
        stride = directions * batch * hidden_size  # from one state's gradient to the next
        for unit in range(first, first + units):
            to = row * count * hidden_size + unit
            if ended:
                for j in range(count):
                    dgates[to + j * hidden_size] = T(A(0))
                continue
            if projected:
                total = dhidden[here * hidden_size + unit]
                value = A(hidden[row * hidden_size + unit])
            else:
                total = dh[here * outputs + unit] + A(dy[((t * batch + b) * directions + direction) * outputs + unit])
                value = A(ys[(((t + 1) * batch + b) * directions + direction) * outputs + unit])
                dh[here * outputs + unit] = A(0)
            dgate, dprevious = compute(
                total,
                load_states(dstates, here * hidden_size + unit, stride),
                value,
                load_saved(saved, row * saved_count * hidden_size + unit, hidden_size),
                load_states(states, after * hidden_size + unit, stride * (steps + 1)),
                load_states(states, before * hidden_size + unit, stride * (steps + 1)),
            )
            store_gates(dgate, dgates, to, hidden_size)
            store_states(dprevious, dstates, here * hidden_size + unit, stride)

    arrays = (T, A, A, A, T, A, T, T, INT, T)
    ints: tuple[Any, ...] = (INT,) * 8
    return Twin(kernel, (*map(POINTER, arrays), *ints))
