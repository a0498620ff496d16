"""The kernels of the block walk: one block walks all of time for eight sequences, and waits for no other block.

    gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias;   h_t, states_t, saved_t = cell(gates_t, states_{t-1}, given_t)

Arguments and launch shape are those of ``kernels.cu``: grid (⌈B/8⌉, 1, D·heads), any number of threads. The C++ kernel
holds W_hh in registers and passes h and dgates on in shared memory. This one reads W_hh, and what the step before wrote
to ys and dgates, from the caches, after a barrier: shorter but slower, so it is taken only when asked for. A thread
takes the (sequence, unit) pairs that are ``blockDim.x`` apart, at every step the same ones.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from ....cells import Cell
from ...device import numba_cell
from ...device.numba_kernel import BYTE, INT, POINTER, Twin, element
from ..persistent import COLUMNS


@functools.cache
def _products(count: int, typ: Any, skipped: int) -> Any:
    """A device function that adds Σ_k vector[start + k]·matrix[j·stride + first + k] to sum ``skipped`` + j; the sums
    before that, of ``skipped`` + ``count``, stay as they are."""
    if count == 0:
        head = slice(0, skipped)
        return cuda.jit(device=True)(lambda sums, vector, start, matrix, first, stride, width: sums[head])
    before, last, of_sum = _products(count - 1, typ, skipped), count - 1, skipped + count - 1

    @cuda.jit(device=True)
    def products(sums, vector, start, matrix, first, stride, width):
        total = sums[of_sum]
        for k in range(width):
            total += typ(vector[start + k]) * typ(matrix[first + last * stride + k])
        return before(sums, vector, start, matrix, first, stride, width) + (total,)  # noqa: RUF005

    return products


@cuda.jit(device=True)
def _begins(resets, t, direction, steps, batch, b):
    """Whether sequence ``b`` begins anew between step ``t`` and the one before it in the walk of its direction."""
    return t + direction < steps and resets[(t + direction) * batch + b] != 0


def block_forward(
    dtype: np.dtype, tf32: bool, cell: Cell, training: bool, anew: bool, chunks: int, heads: int = 1
) -> Twin:
    """All steps of eight sequences: fills ys, states, and in training saved; ``tf32`` and ``chunks`` are C++'s.

    ``anew``: sequences may begin anew.
    """
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.preactivations), len(cell.states), cell.saved
    of_h, first_of_h, reads_h, begin = len(cell.gates_of_h), len(cell.x_gates), cell.reads_h, _begins
    compute, multiply = numba_cell.forward_given(cell, A), _products(of_h, A, first_of_h)
    load_given, no_states = numba_cell.given_loader(cell, A), numba_cell.zeros(states_count, A)
    load_gates, of_h_alone = numba_cell.loader(len(cell.gates_of_x), A), numba_cell.zeros(len(cell.h_gates), A)
    add_bias = numba_cell.adder(count)
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    store_saved = numba_cell.storer(saved_count, T)

    def kernel(
        gates,
        bias,
        weight_hh,
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
        number, units = cuda.blockIdx.z, hidden // heads
        direction, head = number // heads, number % heads * units
        first = cuda.blockIdx.x * COLUMNS
        pairs = min(COLUMNS, batch - first) * units
        slots = steps + 1 if training else 1
        stride = directions * slots * batch * hidden  # from one state to the next
        width = directions * hidden
        for step in range(steps):
            t = steps - 1 - step if direction else step
            before = (direction * slots + (t + direction if training else 0)) * batch
            after = (direction * slots + (t + 1 - direction if training else 0)) * batch
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, own_unit = first + pair // units, pair % units
                unit = head + own_unit
                column = b * width + direction * hidden + unit
                output, earlier = (t + 1) * batch * width + column, (t + 2 * direction) * batch * width + column
                current = load_states(states, (before + b) * hidden + unit, stride)
                if ragged != 0 and t >= lengths[b]:
                    store_states(current, states, (after + b) * hidden + unit, stride)
                    ys[output] = ys[earlier]
                    continue
                begins = anew and begin(resets, t, direction, steps, batch, b)
                row = (direction * steps + t) * batch + b
                gate = load_gates(gates, row * count * hidden + unit, hidden) + of_h_alone()
                if has_bias:
                    gate = add_bias(gate, bias, direction * count * hidden + unit, hidden)
                weights, h = (number * of_h * units + own_unit) * units, A(0)
                if not begins:
                    gate = multiply(gate, ys, earlier - own_unit, weight_hh, weights, units * units, units)
                    if reads_h:
                        h = A(ys[earlier])
                own = load_given(h, params, inputs, direction, t * batch + b, steps * batch, unit, hidden, input_width)
                value, state, save = compute(gate, no_states() if begins else current, own)
                store_states(state, states, (after + b) * hidden + unit, stride)
                if training:
                    store_saved(save, saved, row * saved_count * hidden + unit, hidden)
                ys[output] = T(A(value))
            cuda.syncthreads()

    arrays = (A, A, T, T, T, BYTE, INT, T, A, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 7))


def block_backward(dtype: np.dtype, tf32: bool, cell: Cell, anew: bool, chunks: int, heads: int = 1) -> Twin:
    """All steps of eight sequences, the last first: fills dgates, and carries dh and dstates to the first step."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.preactivations), len(cell.states), cell.saved
    of_h, first_of_h, reads_h, begin = len(cell.gates_of_h), len(cell.x_gates), cell.reads_h, _begins
    own = len(cell.params) + len(cell.differentiable)
    compute = numba_cell.backward_given(cell, A)
    load_given, no_states = numba_cell.given_loader(cell, A), numba_cell.zeros(states_count, A)
    first_of, store_own = numba_cell.first_or_zero(reads_h, A), numba_cell.storer(own, T, int(reads_h))
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    load_saved, store_gates = numba_cell.loader(saved_count, A), numba_cell.storer(count, T)

    def kernel(
        dy,
        dh,
        dstates,
        saved,
        states,
        ys,
        weight_hh,
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
        number, units = cuda.blockIdx.z, hidden // heads
        direction, head = number // heads, number % heads * units
        first = cuda.blockIdx.x * COLUMNS
        pairs = min(COLUMNS, batch - first) * units
        stride = directions * batch * hidden  # from one state's gradient to the next
        width, gates = directions * hidden, (count + own) * hidden
        for step in range(steps):
            t = step if direction else steps - 1 - step
            before = (direction * (steps + 1) + t + direction) * batch
            after = (direction * (steps + 1) + t + 1 - direction) * batch
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // units, head + pair % units
                row, here = (direction * steps + t) * batch + b, (direction * batch + b) * hidden + unit
                to = row * gates + unit
                if ragged != 0 and t >= lengths[b]:
                    for j in range(count + own):
                        dgates[to + j * hidden] = T(A(0))
                    continue
                begins = anew and begin(resets, t, direction, steps, batch, b)
                column, earlier = direction * hidden + unit, A(0)
                if reads_h and not begins:
                    earlier = A(ys[((t + 2 * direction) * batch + b) * width + column])
                old = load_states(states, (before + b) * hidden + unit, stride * (steps + 1))
                dgate, dprevious, dgiven = compute(
                    dh[here] + A(dy[(t * batch + b) * width + column]),
                    load_states(dstates, here, stride),
                    A(ys[((t + 1) * batch + b) * width + column]),
                    load_saved(saved, row * saved_count * hidden + unit, hidden),
                    load_states(states, (after + b) * hidden + unit, stride * (steps + 1)),
                    no_states() if begins else old,
                    load_given(
                        earlier, params, inputs, direction, t * batch + b, steps * batch, unit, hidden, input_width
                    ),
                )
                store_gates(dgate, dgates, to, hidden)
                store_own(dgiven, dgates, to + count * hidden, hidden)
                store_states(no_states() if begins else dprevious, dstates, here, stride)
                dh[here] = first_of(dgiven)
            cuda.syncthreads()
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, own_unit = first + pair // units, pair % units
                unit, row, total = head + own_unit, (direction * steps + t) * batch + b, A(0)
                for j in range(of_h):  # of this unit in the step before, by what all units' gates took of it
                    of_gate = row * gates + (first_of_h + j) * hidden + head
                    for k in range(units):
                        weight = weight_hh[((number * of_h + j) * units + k) * units + own_unit]
                        total += A(dgates[of_gate + k]) * A(weight)
                here = (direction * batch + b) * hidden + unit
                dh[here] += total
                if anew and not (ragged != 0 and t >= lengths[b]) and begin(resets, t, direction, steps, batch, b):
                    dh[here] = A(0)

    arrays = (T, A, A, T, A, T, T, T, T, BYTE, INT, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 6))
