"""The kernels of the block walk: one block walks all of time for a tile of the batch, and no two blocks wait.

    gates_t = x_t·W_ihᵀ + h_{t-1}·W_hhᵀ + bias;   h_t, states_t, saved_t = cell(gates_t, states_{t-1})

The C++ kernel of the same name holds W_hh in registers; here each thread reads it as it needs it, from cache. h of the
tile (forward) and its dgates (backward) are in shared memory. A thread takes the (sequence, unit) pairs of the tile
that are ``blockDim.x`` apart, at every step the same ones, so only h and dgates need a barrier. Any grid will do whose
blocks along x share the batch, and any number of threads; blockIdx.z is the direction.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import cuda

from ..cells import Cell
from . import cells
from .compile import INT, POINTER, Element, Twin


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
            total += vector[start + k] * typ(matrix[first + last * stride + k])
        return before(sums, vector, start, matrix, first, stride, width) + (total,)  # noqa: RUF005

    return products


def block_forward(element: Element, cell: Cell, keep: bool) -> Twin:
    """All steps of a tile: fills ys, states, and with ``keep`` saved."""
    T, A = element
    count, states_count, saved_count = len(cell.gates), len(cell.states), cell.saved
    compute, multiply = cells.forward(cell, A), _products(count, A)
    load_gates, add_bias = cells.loader(count, A), cells.adder(count)
    load_states, store_states = cells.loader(states_count, A), cells.storer(states_count, A)
    store_saved = cells.storer(saved_count, T)

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
        hidden_size,
        directions,
        has_bias,
        ragged,
    ):
        h = cuda.shared.array(0, A)
        direction = cuda.blockIdx.z
        tile = (batch + cuda.gridDim.x - 1) // cuda.gridDim.x
        first = cuda.blockIdx.x * tile
        pairs = min(tile, batch - first) * hidden_size
        slots = steps + 1 if keep else 1
        stride = directions * slots * batch * hidden_size  # from one state to the next
        width = directions * hidden_size
        initial = (steps + 1 if direction else 0) * batch
        for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
            b, unit = first + pair // hidden_size, pair % hidden_size
            h[pair] = A(ys[(initial + b) * width + direction * hidden_size + unit])
        cuda.syncthreads()
        old, new = 0, tile * hidden_size  # two copies of h, so that one barrier a step is enough
        for step in range(steps):
            t = steps - 1 - step if direction else step
            before = (direction * slots + (t + direction if keep else 0)) * batch
            after = (direction * slots + (t + 1 - direction if keep else 0)) * batch
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // hidden_size, pair % hidden_size
                output = ((t + 1) * batch + b) * width + direction * hidden_size + unit
                current = load_states(states, (before + b) * hidden_size + unit, stride)
                if ragged != 0 and t >= lengths[b]:
                    store_states(current, states, (after + b) * hidden_size + unit, stride)
                    h[new + pair] = h[old + pair]
                    ys[output] = T(h[old + pair])
                    continue
                row = (direction * steps + t) * batch + b
                gate = load_gates(gates, row * count * hidden_size + unit, hidden_size)
                if has_bias:
                    gate = add_bias(gate, bias, direction * count * hidden_size + unit, hidden_size)
                weights = (direction * count * hidden_size + unit) * hidden_size
                gate = multiply(gate, h, old + pair - unit, weight_hh, weights, hidden_size * hidden_size, hidden_size)
                value, state, save = compute(gate, current)
                store_states(state, states, (after + b) * hidden_size + unit, stride)
                if keep:
                    store_saved(save, saved, row * saved_count * hidden_size + unit, hidden_size)
                rounded = T(A(value))
                h[new + pair] = A(rounded)
                ys[output] = rounded
            cuda.syncthreads()
            old, new = new, old

    arrays = (A, A, T, INT, T, A, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 6))


def block_backward(element: Element, cell: Cell) -> Twin:
    """All steps of a tile, the last first: fills dgates, and carries dh and dstates to the first step."""
    T, A = element
    count, states_count, saved_count = len(cell.gates), len(cell.states), cell.saved
    compute = cells.backward(cell, A)
    load_states, store_states = cells.loader(states_count, A), cells.storer(states_count, A)
    load_saved, store_gates = cells.loader(saved_count, A), cells.storer(count, T)

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
        hidden_size,
        directions,
        ragged,
    ):
        of_tile = cuda.shared.array(0, A)  # dgates (sequence, gate, unit) of one step
        direction = cuda.blockIdx.z
        tile = (batch + cuda.gridDim.x - 1) // cuda.gridDim.x
        first = cuda.blockIdx.x * tile
        pairs = min(tile, batch - first) * hidden_size
        stride = directions * batch * hidden_size  # from one state's gradient to the next
        width, gates = directions * hidden_size, count * hidden_size
        for step in range(steps):
            t = step if direction else steps - 1 - step
            before = (direction * (steps + 1) + t + direction) * batch
            after = (direction * (steps + 1) + t + 1 - direction) * batch
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // hidden_size, pair % hidden_size
                row, here = (direction * steps + t) * batch + b, (direction * batch + b) * hidden_size + unit
                to, in_tile = row * gates + unit, pair // hidden_size * gates + unit
                if ragged != 0 and t >= lengths[b]:
                    for j in range(count):
                        dgates[to + j * hidden_size] = T(A(0))
                        of_tile[in_tile + j * hidden_size] = A(0)
                    continue
                column = direction * hidden_size + unit
                dgate, dprevious = compute(
                    dh[here] + A(dy[(t * batch + b) * width + column]),
                    load_states(dstates, here, stride),
                    A(ys[((t + 1) * batch + b) * width + column]),
                    load_saved(saved, row * saved_count * hidden_size + unit, hidden_size),
                    load_states(states, (after + b) * hidden_size + unit, stride * (steps + 1)),
                    load_states(states, (before + b) * hidden_size + unit, stride * (steps + 1)),
                )
                store_gates(dgate, dgates, to, hidden_size)
                for j in range(count):  # rounded, as the products of weights' gradients will read them
                    of_tile[in_tile + j * hidden_size] = A(dgates[to + j * hidden_size])
                store_states(dprevious, dstates, here, stride)
                dh[here] = A(0)
            cuda.syncthreads()
            for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
                b, unit = first + pair // hidden_size, pair % hidden_size
                total = A(0)
                for j in range(gates):
                    weight = weight_hh[(direction * gates + j) * hidden_size + unit]
                    total += of_tile[pair // hidden_size * gates + j] * A(weight)
                dh[(direction * batch + b) * hidden_size + unit] += total
            cuda.syncthreads()

    arrays = (T, A, A, T, A, T, T, INT, T)
    return Twin(kernel, (*map(POINTER, arrays), *(INT,) * 5))
