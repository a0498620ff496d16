"""A few units of one step for a handful of rows: the products and the cell, as single steps and streams compute them.

What costs here is reading the weights once, and getting to the kernel at all. So float weights and biases are read
in place, without packing, and threads claim a few units after another (dynamic scheduling). A layer is a row of
numbers, its *program*: sizes and byte addresses, which kernels take apart without looking at arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ...cells import Cell
from ...memory import contiguous, empty
from ..codegen.cell_vectors import given_of, load_gates, load_inputs, load_params, load_states, store_tuple
from ..codegen.compilation import always_inline, cell_forward, inline
from ..codegen.dots import dots
from ..codegen.features import REGISTER_BYTES
from ..codegen.narrow import packed_depth
from ..codegen.tile import h_run, panel_vectors, tile_row, tile_rows, units, x_run
from ..codegen.vector import lanes, load, store
from ..crew.atomics import read

# Columns of a program: I, H, then byte addresses of arrays, 0 for one that is not there, and bytes of scratch a thread;
# where the addresses of the cell's own parameters lie; the address of its inputs of this step (N, B, W), and W.
(INPUTS, HIDDEN, X, IH, HH, BIAS, BIAS_HH, SCALE_IH, SCALE_HH, H, STATES, NEW_H, SCRATCH, SCRATCH_STRIDE) = range(14)
PARAMS, BESIDE, BESIDE_WIDTH = 14, 15, 16


@inline
def numbers(cell, g, in_x, in_h):
    """Of gate ``g`` its number in ``weight_ih``, where those of the input alone are the last, and in ``weight_hh``;
    ``in_x`` and ``in_h``, but 0 where it is not there.

    Conditions of constants: of a cell all of whose gates are in both, nothing stays.
    """
    in_ih, in_hh = g, g
    if cell.first_h > 0:
        in_ih, in_hh = g - cell.first_h, g - cell.first_h
        if g < cell.first_h:
            in_ih, in_h = cell.n_x - cell.first_h + g, 0
    if cell.n_x < cell.n_gates and g >= cell.n_x:
        in_x = 0
    return in_ih, in_hh, in_x, in_h


@inline
def dot_gates(cell, like, to, stride, x, inputs, h, outputs, ih, hh, hidden, unit):
    """A register of each gate of one row, from ``unit`` on: W_ih·x + W_hh·h, weights read in place.

    ``to``, ``x``, ``h``, ``ih``, ``hh``: byte addresses; ``stride``: bytes from gate to gate.
    """
    ldx, ldh, valid = inputs * like.itemsize, outputs * like.itemsize, min(lanes(like), hidden - unit)
    for g in range(cell.n_gates):
        in_ih, in_hh, of_x, of_h = numbers(cell, g, inputs, outputs)
        wx, wh = ih + (in_ih * hidden + unit) * ldx, hh + (in_hh * hidden + unit) * ldh
        store(like, dots(like, valid, x, wx, ldx, of_x, h, wh, ldh, of_h), to + g * stride, lanes(like))


@inline
def _of_cell(row, batch):
    """What the cell wants of a program: numbers, since an array in its arguments would be counted at every register."""
    return row[H], row[STATES], row[NEW_H], row[PARAMS], row[BESIDE], row[BESIDE_WIDTH], row[HIDDEN], batch


@always_inline
def _apply_cell(cell, like, gates, gate_stride, scratch, own, b, unit, valid):
    """The cell on a register of units of row ``b``: new h is written, states are updated.

    ``gates``: byte address, ``gate_stride`` bytes from gate to gate; ``scratch``: for states and parameters; ``own``:
    of :func:`_of_cell`. All is loaded in the order in which the walk through a sequence does so: by that LLVM chooses
    which of two products it fuses with their sum, and bits are to be the same.
    """
    h, states, new_h, params, inputs, width, hidden, batch = own
    item, lane = like.itemsize, lanes(like)
    size, place, stride = lane * item, (b * hidden + unit) * item, batch * hidden * item
    a = load_gates(cell, like, gates, gate_stride)
    for k in range(cell.n_states):
        store(like, load(like, states + k * stride + place, valid), scratch + k * size, lane)
    previous = load_states(cell, like, scratch, size)
    before, params_at = load(like, h + place, valid), scratch + cell.n_states * size
    for k in range(cell.n_params):
        store(like, load(like, read(params + 8 * k) + unit * item, valid), params_at + k * size, lane)
    shared = width == 1  # by the units of a row
    at = inputs + (b * width + (0 if shared else unit)) * item
    beside = load_inputs(cell, like, at, batch * width * item, valid, shared)
    given = given_of(cell, before, load_params(cell, like, params_at, size, lane), beside)
    out, carry, _ = cell_forward(cell, a, previous, given)
    store_tuple(carry, scratch, size)
    for k in range(cell.n_states):
        store(like, load(like, scratch + k * size, lane), states + k * stride + place, valid)
    store(like, out, new_h + place, valid)


@inline
def add_given(cell, like, gates, stride, x, hidden, unit, valid):
    """Add the pre-activations of one row at ``x`` to a register of each gate, ``stride`` bytes from gate to gate."""
    for g in range(cell.n_x):
        in_x, _, _, _ = numbers(cell, g, 0, 0)
        value = load(like, x + (in_x * hidden + unit) * like.itemsize, valid)
        store(like, load(like, gates + g * stride, lanes(like)) + value, gates + g * stride, lanes(like))


@inline
def stride_of_x(cell, row, item):
    """Bytes from row to row of x: of inputs, or of pre-activations where there is no ``weight_ih``."""
    return (row[INPUTS] if row[IH] else cell.n_x * row[HIDDEN]) * item


@always_inline
def _units_of_unpacked(cell, like, i, batch, row, x, ldx, h, ldh, scratch):
    """Units of register ``i`` of every row, from float weights as the layer has them."""
    item, lane, hidden, inputs = like.itemsize, lanes(like), row[HIDDEN], row[INPUTS]
    unit = i * lane
    gate_stride, valid, own = lane * item, min(lane, hidden - unit), _of_cell(row, batch)
    for b in range(batch):
        of_x, of_h = x + b * ldx, h + b * ldh
        dot_gates(cell, like, scratch, gate_stride, of_x, inputs, of_h, hidden, row[IH], row[HH], hidden, unit)
        if row[BIAS]:
            for g in range(cell.n_gates):
                in_ih, in_hh, of_x, of_h = numbers(cell, g, valid, valid)
                bias = load(like, row[BIAS] + (in_ih * hidden + unit) * item, of_x)
                bias = bias + load(like, row[BIAS_HH] + (in_hh * hidden + unit) * item, of_h)
                gate = scratch + g * gate_stride
                store(like, load(like, gate, lane) + bias, gate, lane)
        if not row[IH]:
            add_given(cell, like, scratch, gate_stride, x + b * ldx, hidden, unit, valid)
        _apply_cell(cell, like, scratch, gate_stride, scratch + cell.n_gates * gate_stride, own, b, unit, valid)


def _add_product_of_h(cell, like, weights, scale, to, ldg, h, ldh, hh, batch, n, following):
    """Add W_hh·h to the gates of a panel that h's product gives, at byte address ``to``, for every row."""


@overload(_add_product_of_h)
def _choose_product(cell, like, weights, scale, to, ldg, h, ldh, hh, batch, n, following):
    if not cell.cell.gates_of_h:
        return lambda cell, like, weights, scale, to, ldg, h, ldh, hh, batch, n, following: None

    def add(cell, like, weights, scale, to, ldg, h, ldh, hh, batch, n, following):
        if batch == 1:
            tile_row(h_run(cell), like, weights, scale, to, to, h, hh, n)
        else:
            tile_rows(h_run(cell), like, weights, scale, to, ldg, to, ldg, h, ldh, hh, batch, n, following)

    return add


@always_inline
def _units_of_packed(cell, like, weights, p, batch, row, x, ldx, h, ldh, scratch):
    """Units of panel ``p`` of every row, from packed weights of the dtype of ``weights``."""
    item, lane, hidden, inputs = like.itemsize, lanes(like), row[HIDDEN], row[INPUTS]
    width = units(cell, like)
    across, across_x, across_h = cell.n_gates * width, cell.n_x * width, cell.n_h * width
    panel_x = packed_depth(weights, inputs) * across_x * weights.itemsize
    panel_h = packed_depth(weights, hidden) * across_h * weights.itemsize
    ih, hh = row[IH] + p * panel_x, row[HH] + p * panel_h
    ldg = (across + (cell.n_states + cell.n_params) * lane) * item
    bias = row[BIAS] + p * across * item
    scale_ih, scale_hh = row[SCALE_IH] + p * across_x * item, row[SCALE_HH] + p * across_h * item
    first = across_x * item if row[IH] else 0
    for b in range(batch):  # gates begin with their bias where no product of x writes them
        for v in range(first, across * item, lane * item):
            store(like, load(like, bias + v, lane), scratch + b * ldg + v, lane)
    if not row[IH]:
        apart = stride_of_x(cell, row, item)
        for b in range(batch):
            for u in range(0, width, lane):
                at, unit = scratch + b * ldg + u * item, p * width + u
                add_given(cell, like, at, width * item, row[X] + b * apart, hidden, unit, hidden - unit)
    elif batch == 1:
        tile_row(x_run(cell), like, weights, scale_ih, scratch, bias, x, ih, inputs)
    else:
        tile_rows(x_run(cell), like, weights, scale_ih, scratch, ldg, bias, 0, x, ldx, ih, batch, inputs, ih + panel_x)
    of_h = scratch + cell.first_h * width * item
    _add_product_of_h(cell, like, weights, scale_hh, of_h, ldg, h, ldh, hh, batch, hidden, hh + panel_h)
    own = _of_cell(row, batch)
    for b in range(batch):
        gates = scratch + b * ldg
        for u in range(0, min(width, hidden - p * width), lane):
            unit, valid = p * width + u, min(lane, hidden - p * width - u)
            _apply_cell(cell, like, gates + u * item, width * item, gates + across * item, own, b, unit, valid)


def compute_units(cell, like, weights, i, batch, row, x, ldx, h, ldh, scratch):
    """The ``i``-th few units of every row; ``row``: of a program; x and h as products with ``weights`` take them."""


@overload(compute_units)
def _choose(cell, like, weights, i, batch, row, x, ldx, h, ldh, scratch):
    if isinstance(weights.dtype, types.Float):
        return lambda cell, like, weights, i, batch, row, x, ldx, h, ldh, scratch: _units_of_unpacked(
            cell, like, i, batch, row, x, ldx, h, ldh, scratch
        )
    return lambda cell, like, weights, i, batch, row, x, ldx, h, ldh, scratch: _units_of_packed(
        cell, like, weights, i, batch, row, x, ldx, h, ldh, scratch
    )


@inline
def count_units(cell, like, weights, hidden):
    """For how many ``i`` :func:`compute_units` is to be called."""
    few = lanes(like) if weights.itemsize == like.itemsize else units(cell, like)
    return (hidden + few - 1) // few


def new_scratch(cell: Cell, threads: int, rows: int = 1, extra: int = 0) -> np.ndarray:
    """Scratch for each of ``threads``: of each of ``rows`` a panel of gates, states and parameters; ``extra`` bytes."""
    gates = len(cell.preactivations)
    registers = gates * panel_vectors(gates) + len(cell.states) + len(cell.params)
    return empty((threads, rows * registers * REGISTER_BYTES + extra), np.dtype(np.uint8))


def addresses_of(cell: Cell, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """The byte addresses of the cell's own parameters, which a program refers to."""
    return np.array([address_of(weights[name]) for name in cell.params], np.int64)


def address_of(array: Any) -> int:
    """Its byte address, 0 for None."""
    return 0 if array is None else array.ctypes.data


def program_row(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    h: np.ndarray,
    states: np.ndarray,
    new_h: np.ndarray,
    scratch: np.ndarray,
    params: np.ndarray,
    inputs: np.ndarray,
) -> tuple[int, ...]:
    """The program of one layer: h and carried states (S, B, H), updated in place, become what ``new_h`` and they hold.

    ``weights``: by the names a layer has them under; scales, a missing bias and what a cell without gates of h has not
    may be left out, and ``weight_ih`` where x holds pre-activations. ``scratch``: of :func:`new_scratch`; ``params``:
    of :func:`addresses_of`; ``inputs``: (N, B, W).
    """
    arrays = [x, *(weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))]
    arrays += [weights.get("scale_ih"), weights.get("scale_hh"), h, states, new_h, scratch]
    if any(array is not None and contiguous(array) is not array for array in (*arrays, *weights.values(), inputs)):
        raise ValueError("a stream takes C-contiguous, aligned arrays alone")
    beside = address_of(params), address_of(inputs), inputs.shape[2]
    inputs_of_x = x.shape[1] if "weight_ih" in weights else 0
    return inputs_of_x, h.shape[1], *map(address_of, arrays), scratch.shape[1], *beside
