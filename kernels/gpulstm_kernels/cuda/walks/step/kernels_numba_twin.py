"""The kernels of the step walk; ``kernels.cu`` has the equations, shapes and the launch shape, the same here.

One thread takes ``units`` neighbouring units of one sequence; block (128, 1, 1), grid (⌈B·⌈H/units⌉ / 128⌉, 1, D).
In training the cell's saved values (value by value) and the states of every step are kept.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from ....cells import Cell
from ...device import numba_cell
from ...device.numba_kernel import BYTE, INT, POINTER, Twin, element


@cuda.jit(device=True)
def _location(features, units):
    """Which sequence and which first unit this thread takes, of ``features`` in groups of ``units``."""
    groups = (features + units - 1) // units
    flat = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    return flat // groups, flat % groups * units


@functools.cache
def _place(heads: int) -> Any:
    """A device function: where the first of a unit's ``count`` values is in an array (D·heads, B, count·H/heads); it is
    H/heads to the next."""

    @cuda.jit(device=True)
    def place(direction, b, unit, batch, features, count):
        units = features // heads
        head = unit // units if heads > 1 else 0
        return ((direction * heads + head) * batch + b) * count * units + unit - head * units

    return place


@cuda.jit(device=True)
def _begins(resets, t, direction, steps, batch, b):
    """Whether sequence ``b`` begins anew between step ``t`` and the one before it in the walk of its direction."""
    return t + direction < steps and resets[(t + direction) * batch + b] != 0


@cuda.jit(device=True)
def _ends(resets, t, direction, steps, batch, b):
    """Whether it does so between step ``t`` and the one after it."""
    time = t + 1 - direction
    return time > 0 and time < steps and resets[time * batch + b] != 0


def step_forward(dtype: np.dtype, cell: Cell, training: bool, units: int, anew: bool, heads: int = 1) -> Twin:
    """h_t, states_t, saved_t = cell(gates_t + bias, states_{t-1}, given); ``anew``: sequences may begin anew."""
    T, A = element(dtype)
    count, states_count, reads_h = len(cell.preactivations), len(cell.states), cell.reads_h
    compute, location = numba_cell.forward_given(cell, A), _location
    begin, end = _begins, _ends
    load_given, no_states = numba_cell.given_loader(cell, A), numba_cell.zeros(states_count, A)
    of_h, apart = len(cell.gates_of_h), heads > 1  # whether h's product is no part of gates
    load_gates = numba_cell.loader(len(cell.gates_of_x) if apart else count, A)
    of_h_alone = numba_cell.zeros(len(cell.h_gates) if apart else 0, A)
    add_product = numba_cell.adder(of_h, len(cell.x_gates)) if apart else numba_cell.adder(0, count)
    add_bias, place = numba_cell.adder(count), _place(heads)
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
        params,
        inputs,
        resets,
        input_width,
        product,
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
        begins = anew and begin(resets, t, direction, steps, batch, b)
        ends = anew and end(resets, t, direction, steps, batch, b)
        for unit in range(first, first + units):
            output = (((t + 1) * batch + b) * directions + direction) * outputs + unit
            of_unit = place(direction, b, unit, batch, outputs, 1)
            current = no_states() if begins else load_states(states, before * hidden_size + unit, stride)
            if ended:
                store_states(current, states, after * hidden_size + unit, stride)
                if projected:  # the gradient of weight_hr multiplies these rows by zeros, and a NaN would survive that
                    hidden[(row if training else here) * hidden_size + unit] = T(A(0))
                else:
                    ys[output] = h[of_unit]
                continue
            gate = load_gates(gates, row * count * hidden_size + unit, hidden_size) + of_h_alone()
            of_product = place(direction, b, unit, batch, hidden_size, of_h)
            gate = add_product(gate, product, of_product, hidden_size // heads)
            if has_bias:
                gate = add_bias(gate, bias, direction * count * hidden_size + unit, hidden_size)
            earlier = A(h[of_unit]) if reads_h else A(0)
            own = load_given(
                earlier, params, inputs, direction, t * batch + b, steps * batch, unit, hidden_size, input_width
            )
            value, new, save = compute(gate, current, own)
            store_states(new, states, after * hidden_size + unit, stride)
            if training:
                store_saved(save, saved, row * cell_saved * hidden_size + unit, hidden_size)
            if projected:
                hidden[(row if training else here) * hidden_size + unit] = T(A(value))
            else:
                h[of_unit] = T(A(0)) if ends else T(A(value))
                ys[output] = T(A(value))

    cell_saved = cell.saved
    arrays = (A, A, INT, T, T, A, T, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 9, *map(POINTER, (T, T, BYTE)), INT, POINTER(A)))


def step_project(dtype: np.dtype, anew: bool) -> Twin:
    """With a projection: product = hidden·W_hrᵀ (D, B, P) becomes h unless the sequence has ended; h goes to ys."""
    T, A = element(dtype)
    location, end = _location, _ends

    def kernel(product, lengths, h, ys, step, steps, batch, outputs, directions, ragged, resets):
        direction = cuda.blockIdx.z
        b, unit = location(outputs, 1)
        if b >= batch:
            return
        t = steps - 1 - step if direction else step
        here = (direction * batch + b) * outputs + unit
        if ragged == 0 or t < lengths[b]:
            h[here] = T(product[here])
        ys[(((t + 1) * batch + b) * directions + direction) * outputs + unit] = h[here]
        if anew and end(resets, t, direction, steps, batch, b):
            h[here] = T(A(0))

    return Twin(kernel, (*map(POINTER, (A, INT, T, T)), *(INT,) * 6, POINTER(BYTE)))


def step_begin(dtype: np.dtype, heads: int = 1) -> Twin:
    """h before the first step of the walk: zero where a sequence begins with that step."""
    T, A = element(dtype)
    location, begin, place = _location, _begins, _place(heads)

    def kernel(ys, resets, h, steps, batch, outputs, directions):
        direction = cuda.blockIdx.z
        b, unit = location(outputs, 1)
        if b >= batch:
            return
        here = place(direction, b, unit, batch, outputs, 1)
        if begin(resets, steps - 1 if direction else 0, direction, steps, batch, b):
            h[here] = T(A(0))
        else:
            slot = steps + 1 if direction else 0
            h[here] = ys[((slot * batch + b) * directions + direction) * outputs + unit]

    return Twin(kernel, (*map(POINTER, (T, BYTE, T)), *(INT,) * 4))


def step_end(dtype: np.dtype, heads: int = 1) -> Twin:
    """dh goes no further where a sequence began with the first step of the walk."""
    _, A = element(dtype)
    location, begin, place = _location, _begins, _place(heads)

    def kernel(dh, resets, steps, batch, outputs):
        direction = cuda.blockIdx.z
        b, unit = location(outputs, 1)
        if b < batch and begin(resets, steps - 1 if direction else 0, direction, steps, batch, b):
            dh[place(direction, b, unit, batch, outputs, 1)] = A(0)

    return Twin(kernel, (*map(POINTER, (A, BYTE)), *(INT,) * 3))


def step_unproject(dtype: np.dtype, anew: bool) -> Twin:
    """With a projection, backward: the whole gradient of h_t to dprojected; dh becomes zero unless the
    sequence has ended."""
    T, A = element(dtype)
    location, end = _location, _ends

    def kernel(dy, dh, lengths, dprojected, step, steps, batch, outputs, directions, ragged, resets):
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
            crossed = anew and end(resets, t, direction, steps, batch, b)
            later = A(0) if crossed else dh[here]
            dprojected[to] = T(A(later + A(dy[((t * batch + b) * directions + direction) * outputs + unit])))
            dh[here] = A(0)

    return Twin(kernel, (*map(POINTER, (T, A, INT, T)), *(INT,) * 6, POINTER(BYTE)))


def step_backward(dtype: np.dtype, cell: Cell, units: int, anew: bool, heads: int = 1) -> Twin:
    """A row of dgates and dstates_{t-1} from the gradient of h_t and dstates_t; dh becomes the gradient of h before the
    step as the cell reads it, to which the host's product adds dgates·W_hh."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.preactivations), len(cell.states), cell.saved
    reads_h, own = cell.reads_h, len(cell.params) + len(cell.differentiable)
    compute, location = numba_cell.backward_given(cell, A), _location
    begin, end = _begins, _ends
    load_given, no_states = numba_cell.given_loader(cell, A), numba_cell.zeros(states_count, A)
    first_of = numba_cell.first_or_zero(reads_h, A)
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    load_saved, store_gates = numba_cell.loader(saved_count, A), numba_cell.storer(count, T)
    store_own = numba_cell.storer(own, T, int(reads_h))
    of_h, place = len(cell.gates_of_h), _place(heads)
    factors = of_h if heads > 1 else 0  # dgates that lie a second time where the product takes them from
    store_factor = numba_cell.storer(factors, T, len(cell.x_gates))

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
        params,
        inputs,
        resets,
        input_width,
        factor,
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
        begins = anew and begin(resets, t, direction, steps, batch, b)
        ends = anew and end(resets, t, direction, steps, batch, b)
        for unit in range(first, first + units):
            to = row * (count + own) * hidden_size + unit
            of_unit = place(direction, b, unit, batch, outputs, 1)
            of_factor, apart = place(direction, b, unit, batch, hidden_size, of_h), hidden_size // heads
            if ended:
                for j in range(count + own):
                    dgates[to + j * hidden_size] = T(A(0))
                for j in range(factors):
                    factor[of_factor + j * apart] = T(A(0))
                continue
            if projected:
                total = dhidden[here * hidden_size + unit]
                value = A(hidden[row * hidden_size + unit])
            else:
                later = A(0) if ends else dh[of_unit]
                total = later + A(dy[((t * batch + b) * directions + direction) * outputs + unit])
                value = A(ys[(((t + 1) * batch + b) * directions + direction) * outputs + unit])
            earlier = A(0)
            if reads_h and not begins:
                earlier = A(ys[(((t + 2 * direction) * batch + b) * directions + direction) * outputs + unit])
            old = load_states(states, before * hidden_size + unit, stride * (steps + 1))
            dgate, dprevious, dgiven = compute(
                total,
                load_states(dstates, here * hidden_size + unit, stride),
                value,
                load_saved(saved, row * saved_count * hidden_size + unit, hidden_size),
                load_states(states, after * hidden_size + unit, stride * (steps + 1)),
                no_states() if begins else old,
                load_given(
                    earlier, params, inputs, direction, t * batch + b, steps * batch, unit, hidden_size, input_width
                ),
            )
            store_gates(dgate, dgates, to, hidden_size)
            store_factor(dgate, factor, of_factor, apart)
            store_own(dgiven, dgates, to + count * hidden_size, hidden_size)
            store_states(no_states() if begins else dprevious, dstates, here * hidden_size + unit, stride)
            if not projected:
                dh[of_unit] = first_of(dgiven)

    arrays = (T, A, A, A, T, A, T, T, INT, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 8, *map(POINTER, (T, T, BYTE)), INT, POINTER(T)))
