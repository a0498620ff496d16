"""The kernels of the block walk: one block walks all of time for eight sequences, and waits for no other block.

    gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias;   h_t, states_t, saved_t = cell(gates_t, states_{t-1})

Arguments and launch shape are those of ``kernels.cu``: grid (⌈B/8⌉, 1, D), any number of threads. The C++ kernel holds
W_hh in registers and passes h and dgates on in shared memory. This one reads W_hh, and what the step before wrote to ys
and dgates, from the caches, after a barrier: shorter but slower, so it is taken only when asked for. A thread takes the
(sequence, unit) pairs that are ``blockDim.x`` apart, at every step the same ones.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from ....cells import Cell
from ...device import numba_cell
from ...device.numba_kernel import INT, POINTER, Twin, element
from ..persistent import COLUMNS


@functools.cache
def _products(count: int, typ: Any) -> Any:
    """A device function that adds Σ_k vector[start + k]·matrix[j·stride + first + k] to sum j of ``count``."""
    if count == 0:
        return cuda.jit(device=True)(lambda sums, vector, start, matrix, first, stride, width: ())
    before, last = _products(count - 1, typ), count - 1

    @cuda.jit(device=True)
    def products(sums, vector, start, matrix, first, stride, width):
        total = sums[last]
        for k in range(width):
            total += typ(vector[start + k]) * typ(matrix[first + last * stride + k])
        return before(sums, vector, start, matrix, first, stride, width) + (total,)  # noqa: RUF005

    return products


def block_forward(dtype: np.dtype, tf32: bool, cell: Cell, training: bool, chunks: int) -> Twin:
    """All steps of eight sequences: fills ys, states, and in training saved; ``tf32`` and ``chunks`` are C++'s."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.gates), len(cell.states), cell.saved
    compute, multiply = numba_cell.forward(cell, A), _products(count, A)
    load_gates, add_bias = numba_cell.loader(count, A), numba_cell.adder(count)
    load_states, store_states = numba_cell.loader(states_count, A), numba_cell.storer(states_count, A)
    store_saved = numba_cell.storer(saved_count, T)

    def kernel(
        gates,
        bias,
        weight_hh,
        lengths,
        ys,
        states,
        saved,
        steps,
        batch,
        hidden,
        directions,
        has_bias,
        ragged,
    ):
        direction = cuda.blockIdx.z
        first = cuda.blockIdx.x * COLUMNS
        pairs = min(COLUMNS, batch - first) * hidden
        slots = steps + 1 if training else 1
        stride = directions * slots * batch * hidden  # from one state to the next
        width = directions * hidden
        for step in range(steps):
            t = steps - 1 - step if direction else step
            before = (direction * slots + (t + direction if training else 0)) * batch
            after = (direction * slots + (t + 1 - direction if training else 0)) * batch
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // hidden, pair % hidden
                column = b * width + direction * hidden + unit
                output, earlier = (t + 1) * batch * width + column, (t + 2 * direction) * batch * width + column
                current = load_states(states, (before + b) * hidden + unit, stride)
                if ragged != 0 and t >= lengths[b]:
                    store_states(current, states, (after + b) * hidden + unit, stride)
                    ys[output] = ys[earlier]
                    continue
                row = (direction * steps + t) * batch + b
                gate = load_gates(gates, row * count * hidden + unit, hidden)
                if has_bias:
                    gate = add_bias(gate, bias, direction * count * hidden + unit, hidden)
                weights = (direction * count * hidden + unit) * hidden
                gate = multiply(gate, ys, earlier - unit, weight_hh, weights, hidden * hidden, hidden)
                value, state, save = compute(gate, current)
                store_states(state, states, (after + b) * hidden + unit, stride)
                if training:
                    store_saved(save, saved, row * saved_count * hidden + unit, hidden)
                ys[output] = T(A(value))
            cuda.syncthreads()

    arrays = (A, A, T, INT, T, A, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 6))


def block_backward(dtype: np.dtype, tf32: bool, cell: Cell, chunks: int) -> Twin:
    """All steps of eight sequences, the last first: fills dgates, and carries dh and dstates to the first step."""
    T, A = element(dtype)
    count, states_count, saved_count = len(cell.gates), len(cell.states), cell.saved
    compute = numba_cell.backward(cell, A)
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
        lengths,
        dgates,
        steps,
        batch,
        hidden,
        directions,
        ragged,
    ):
        direction = cuda.blockIdx.z
        first = cuda.blockIdx.x * COLUMNS
        pairs = min(COLUMNS, batch - first) * hidden
        stride = directions * batch * hidden  # from one state's gradient to the next
        width, gates = directions * hidden, count * hidden
        for step in range(steps):
            t = step if direction else steps - 1 - step
            before = (direction * (steps + 1) + t + direction) * batch
            after = (direction * (steps + 1) + t + 1 - direction) * batch
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // hidden, pair % hidden
                row, here = (direction * steps + t) * batch + b, (direction * batch + b) * hidden + unit
                to = row * gates + unit
                if ragged != 0 and t >= lengths[b]:
                    for j in range(count):
                        dgates[to + j * hidden] = T(A(0))
                    continue
                column = direction * hidden + unit
                dgate, dprevious = compute(
                    dh[here] + A(dy[(t * batch + b) * width + column]),
                    load_states(dstates, here, stride),
                    A(ys[((t + 1) * batch + b) * width + column]),
                    load_saved(saved, row * saved_count * hidden + unit, hidden),
                    load_states(states, (after + b) * hidden + unit, stride * (steps + 1)),
                    load_states(states, (before + b) * hidden + unit, stride * (steps + 1)),
                )
                store_gates(dgate, dgates, to, hidden)
                store_states(dprevious, dstates, here, stride)
                dh[here] = A(0)
            cuda.syncthreads()
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // hidden, pair % hidden
                row, total = (direction * steps + t) * batch + b, A(0)
                for j in range(gates):  # of this unit in the step before, by what all units' gates took of it
                    weight = weight_hh[(direction * gates + j) * hidden + unit]
                    total += A(dgates[row * gates + j]) * A(weight)
                dh[(direction * batch + b) * hidden + unit] += total

    arrays = (T, A, A, T, A, T, T, INT, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 5))
