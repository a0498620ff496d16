"""A single step of one direction, for a layer's inference: no tape, nothing packed, no buffers but the caller's."""

from __future__ import annotations

from ..codegen.compilation import inline, kernel
from ..crew.atomics import fetch_add
from .few_rows import HIDDEN, SCRATCH, SCRATCH_STRIDE, H, X, compute_units, count_units, stride_of_x


@inline
def _address(array):
    """Byte address of the first element; 0 where there is none."""
    return array.ctypes.data + 0 * array.size if array.size else 0  # a signed number


@kernel
def step(cell, x, h, weights, states, new_h, given, scratch, counters, rank, size, barrier):
    """A step that any number of threads share; ``counters`` (1,) is zero.

    x (B, I), or pre-activations (B, Gx·H) where ih is empty; h and what it becomes, ``new_h`` (B, H); ``states``
    (S, B, H), updated in place; ``weights``: ih, hh and the two biases, which are empty where there are none, as a
    layer has them; ``given``: None for a cell that is given nothing, else what :func:`.few_rows.addresses_of` says of
    its parameters, and its inputs (N, B, W); ``scratch``: of :func:`.few_rows.new_scratch`.
    """
    ih, hh, bias_ih, bias_hh = weights
    places = _address(x), _address(ih), _address(hh), _address(bias_ih), _address(bias_hh), 0, 0, _address(h)
    own_places = _address(states), _address(new_h), _address(scratch), scratch.shape[1]
    if given is None:
        beside = 0, 0, 0
    else:
        beside = _address(given[0]), _address(given[1]), given[1].shape[2]
    row = (ih.shape[1], h.shape[1], *places, *own_places, *beside)
    item, ldx = x.itemsize, stride_of_x(cell, row, x.itemsize)
    count = count_units(cell, x, x, row[HIDDEN])
    own = row[SCRATCH] + rank * row[SCRATCH_STRIDE]
    i = fetch_add(counters.ctypes.data, 1)
    while i < count:
        compute_units(cell, x, x, i, x.shape[0], row, row[X], ldx, row[H], row[HIDDEN] * item, own)
        i = fetch_add(counters.ctypes.data, 1)
