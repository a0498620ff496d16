"""A few units of one step for a handful of rows: the products and the cell, as single steps and streams compute them.

What costs here is reading the weights once, and getting to the kernel at all. So float weights and biases are read
in place, without packing, and threads claim a few units after another (dynamic scheduling). A layer is a row of
numbers, its *program*: sizes and byte addresses, which kernels take apart without looking at arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import types
from numba.extending import overload

from ...cells import Cell
from ...memory import contiguous, empty
from ..codegen.compilation import always_inline, cell_forward, inline
from ..codegen.dots import dots
from ..codegen.features import REGISTER_BYTES
from ..codegen.narrow import packed_depth
from ..codegen.tile import panel_vectors, tile_row, tile_rows, units
from ..codegen.vector import lanes, load, load_gates, load_states, store, store_tuple

# Columns of a program: I, H, then byte addresses of arrays, 0 for one that is not there, and bytes of scratch a thread.
(INPUTS, HIDDEN, X, IH, HH, BIAS, BIAS_HH, SCALE_IH, SCALE_HH, H, STATES, NEW_H, SCRATCH, SCRATCH_STRIDE) = range(14)


@inline
def dot_gates(cell, like, to, stride, x, inputs, h, outputs, ih, hh, hidden, unit):
    """A register of each gate of one row, from ``unit`` on: W_ih·x + W_hh·h, weights read in place.

    ``to``, ``x``, ``h``, ``ih``, ``hh``: byte addresses; ``stride``: bytes from gate to gate.
    """
    ldx, ldh, valid = inputs * like.itemsize, outputs * like.itemsize, min(lanes(like), hidden - unit)
    for g in range(cell.n_gates):
        row = g * hidden + unit
        gate = dots(like, valid, x, ih + row * ldx, ldx, inputs, h, hh + row * ldh, ldh, outputs)
        store(like, gate, to + g * stride, lanes(like))


@always_inline
def _apply_cell(cell, like, gates, gate_stride, carried, states, stride, new_h, place, valid):
    """The cell on a register of units: h to ``new_h + place``; its states, ``stride`` bytes apart, are updated.

    ``gates``: byte address, ``gate_stride`` bytes from gate to gate; ``carried``: scratch for the states.
    """
    item, lane = like.itemsize, lanes(like)
    for k in range(cell.n_states):
        store(like, load(like, states + k * stride + place, valid), carried + k * lane * item, lane)
    previous = load_states(cell, like, carried, lane * item)
    out, carry, _ = cell_forward(cell, load_gates(cell, like, gates, gate_stride), previous)
    store_tuple(carry, carried, lane * item)
    for k in range(cell.n_states):
        store(like, load(like, carried + k * lane * item, lane), states + k * stride + place, valid)
    store(like, out, new_h + place, valid)


@always_inline
def _units_of_unpacked(cell, like, i, batch, row, x, ldx, h, ldh, scratch):
    """Units of register ``i`` of every row, from float weights as the layer has them."""
    item, lane, hidden, inputs = like.itemsize, lanes(like), row[HIDDEN], row[INPUTS]
    unit = i * lane
    gate_stride, valid = lane * item, min(lane, hidden - unit)
    for b in range(batch):
        of_x, of_h = x + b * ldx, h + b * ldh
        dot_gates(cell, like, scratch, gate_stride, of_x, inputs, of_h, hidden, row[IH], row[HH], hidden, unit)
        if row[BIAS]:
            for g in range(cell.n_gates):
                at, gate = (g * hidden + unit) * item, scratch + g * gate_stride
                bias = load(like, row[BIAS] + at, valid) + load(like, row[BIAS_HH] + at, valid)
                store(like, load(like, gate, lane) + bias, gate, lane)
        place = (b * hidden + unit) * item
        stride, carried = batch * hidden * item, scratch + cell.n_gates * gate_stride
        _apply_cell(cell, like, scratch, gate_stride, carried, row[STATES], stride, row[NEW_H], place, valid)


@always_inline
def _units_of_packed(cell, like, weights, p, batch, row, x, ldx, h, ldh, scratch):
    """Units of panel ``p`` of every row, from packed weights of the dtype of ``weights``."""
    item, lane, hidden, inputs = like.itemsize, lanes(like), row[HIDDEN], row[INPUTS]
    width = units(cell, like)
    across = cell.n_gates * width
    panel = p * across * item
    panel_x = packed_depth(weights, inputs) * across * weights.itemsize
    panel_h = packed_depth(weights, hidden) * across * weights.itemsize
    ih, hh = row[IH] + p * panel_x, row[HH] + p * panel_h
    ldg = (across + cell.n_states * lane) * item
    bias, scale_ih, scale_hh = row[BIAS] + panel, row[SCALE_IH] + panel, row[SCALE_HH] + panel
    if batch == 1:
        tile_row(cell, like, weights, scale_ih, scratch, bias, x, ih, inputs)
        tile_row(cell, like, weights, scale_hh, scratch, scratch, h, hh, hidden)
    else:
        next_ih, next_hh = ih + panel_x, hh + panel_h
        tile_rows(cell, like, weights, scale_ih, scratch, ldg, bias, 0, x, ldx, ih, batch, inputs, next_ih)
        tile_rows(cell, like, weights, scale_hh, scratch, ldg, scratch, ldg, h, ldh, hh, batch, hidden, next_hh)
    for b in range(batch):
        gates, carried, stride = scratch + b * ldg, scratch + b * ldg + across * item, batch * hidden * item
        for u in range(0, min(width, hidden - p * width), lane):
            place, valid = (b * hidden + p * width + u) * item, min(lane, hidden - p * width - u)
            at = gates + u * item
            _apply_cell(cell, like, at, width * item, carried, row[STATES], stride, row[NEW_H], place, valid)


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
    """Scratch for each of ``threads`` to hold a panel of gates and the states of ``rows`` rows, and ``extra`` bytes."""
    registers = len(cell.gates) * panel_vectors(len(cell.gates)) + len(cell.states)
    return empty((threads, rows * registers * REGISTER_BYTES + extra), np.dtype(np.uint8))


def program_row(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    h: np.ndarray,
    states: np.ndarray,
    new_h: np.ndarray,
    scratch: np.ndarray,
) -> tuple[int, ...]:
    """The program of one layer: h and carried states (S, B, H), updated in place, become what ``new_h`` and they hold.

    ``weights``: by the names a layer has them under; scales and a missing bias may be left out. ``scratch``: of
    :func:`new_scratch`.
    """
    arrays = [x, *(weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))]
    arrays += [weights.get("scale_ih"), weights.get("scale_hh"), h, states, new_h, scratch]
    if any(array is not None and contiguous(array) is not array for array in arrays):
        raise ValueError("a stream takes C-contiguous, aligned arrays alone")
    addresses = [0 if array is None else array.ctypes.data for array in arrays]
    return x.shape[1], h.shape[1], *addresses, scratch.shape[1]
