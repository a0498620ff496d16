"""The kernels of the step walk where h enters no product; ``scan.cu`` has the launch shape, the same here.

One thread takes a unit of a sequence through all of time: block (64, 1, 1), grid (⌈B·H / 64⌉, 1, D).
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from ....cells import Cell
from ...device import numba_cell
from ...device.numba_kernel import BYTE, INT, POINTER, Twin, element


@cuda.jit(device=True)
def _begins(resets, t, direction, steps, batch, b):
    """Whether sequence ``b`` begins anew between step ``t`` and the one before it in the walk of its direction."""
    return t + direction < steps and resets[(t + direction) * batch + b] != 0


def scan_forward(dtype: np.dtype, cell: Cell, training: bool, anew: bool) -> Twin:
    """h_t, states_t, saved_t = cell(gates_t + bias, states_{t-1}, given); ``anew``: sequences may begin anew."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.preactivations), len(cell.states), cell.saved
    compute, begins = numba_cell.forward_given(cell, A), _begins
    load_given, no_states = numba_cell.given_loader(cell, A), numba_cell.zeros(states_count, A)
    load_gates, add_bias = numba_cell.loader(count, A), numba_cell.adder(count)
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    store_saved = numba_cell.storer(saved_count, T)

    def kernel(
        gates,
        bias,
        params,
        inputs,
        resets,
        lengths,
        ys,
        states,
        saved,
        steps,
        batch,
        hidden,
        directions,
        input_width,
        has_bias,
        ragged,
    ):
        direction, flat = cuda.blockIdx.z, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        b, unit = flat // hidden, flat % hidden
        if b >= batch:
            return
        length = lengths[b] if ragged != 0 else steps
        slots = steps + 1 if training else 1
        stride = directions * slots * batch * hidden  # from one state to the next
        width, column = directions * hidden, (b * directions + direction) * hidden + unit
        slot = direction * slots + (steps if training and direction else 0)
        current = load_states(states, (slot * batch + b) * hidden + unit, stride)
        h = ys[(steps + 1 if direction else 0) * batch * width + column]
        for step in range(steps):
            t = steps - 1 - step if direction else step
            if anew and begins(resets, t, direction, steps, batch, b):
                h, current = T(A(0)), no_states()
            if t < length:
                row = (direction * steps + t) * batch + b
                gate = load_gates(gates, row * count * hidden + unit, hidden)
                if has_bias:
                    gate = add_bias(gate, bias, direction * count * hidden + unit, hidden)
                own = load_given(
                    A(h), params, inputs, direction, t * batch + b, steps * batch, unit, hidden, input_width
                )
                value, current, save = compute(gate, current, own)
                h = T(A(value))
                if training:
                    store_saved(save, saved, row * saved_count * hidden + unit, hidden)
            ys[(t + 1) * batch * width + column] = h
            if training:
                slot = direction * slots + t + 1 - direction
                store_states(current, states, (slot * batch + b) * hidden + unit, stride)
        if not training:
            store_states(current, states, (direction * batch + b) * hidden + unit, stride)

    arrays = (A, A, T, T, BYTE, INT, T, A, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 7))


def scan_backward(dtype: np.dtype, cell: Cell, anew: bool) -> Twin:
    """All rows of dgates; dh and dstates become the gradients of the initial state."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.preactivations), len(cell.states), cell.saved
    reads_h, own = cell.reads_h, len(cell.params) + len(cell.differentiable)
    compute, begins = numba_cell.backward_given(cell, A), _begins
    load_given, no_states = numba_cell.given_loader(cell, A), numba_cell.zeros(states_count, A)
    first_of = numba_cell.first_or_zero(reads_h, A)
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    load_saved, store_gates = numba_cell.loader(saved_count, A), numba_cell.storer(count, T)
    store_own = numba_cell.storer(own, T, int(reads_h))

    def kernel(
        dy,
        dh,
        dstates,
        saved,
        states,
        ys,
        params,
        inputs,
        resets,
        lengths,
        dgates,
        steps,
        batch,
        hidden,
        directions,
        input_width,
        ragged,
    ):
        direction, flat = cuda.blockIdx.z, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        b, unit = flat // hidden, flat % hidden
        if b >= batch:
            return
        length = lengths[b] if ragged != 0 else steps
        here = (direction * batch + b) * hidden + unit
        stride = directions * batch * hidden  # from one state's gradient to the next
        width, column = directions * hidden, (b * directions + direction) * hidden + unit
        later, dcurrent = dh[here], load_states(dstates, here, stride)
        for step in range(steps):
            t = step if direction else steps - 1 - step
            row, slots = (direction * steps + t) * batch + b, direction * (steps + 1)
            to = row * (count + own) * hidden + unit
            if t >= length:
                for j in range(count + own):
                    dgates[to + j * hidden] = T(A(0))
                continue
            new = anew and begins(resets, t, direction, steps, batch, b)
            earlier = A(0) if new else A(ys[(t + 2 * direction) * batch * width + column])
            before, after = (slots + t + direction) * batch + b, (slots + t + 1 - direction) * batch + b
            old = load_states(states, before * hidden + unit, stride * (steps + 1))
            dgate, dprevious, dgiven = compute(
                later + A(dy[t * batch * width + column]),
                dcurrent,
                A(ys[(t + 1) * batch * width + column]),
                load_saved(saved, row * saved_count * hidden + unit, hidden),
                load_states(states, after * hidden + unit, stride * (steps + 1)),
                no_states() if new else old,
                load_given(earlier, params, inputs, direction, t * batch + b, steps * batch, unit, hidden, input_width),
            )
            store_gates(dgate, dgates, to, hidden)
            store_own(dgiven, dgates, to + count * hidden, hidden)
            later, dcurrent = first_of(dgiven), dprevious
            if new:
                later, dcurrent = A(0), no_states()
        dh[here] = later
        store_states(dcurrent, dstates, here, stride)

    arrays = (T, A, A, T, A, T, T, T, BYTE, INT, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 6))
