"""What cells are given beside gates and states, and the gradients of that: h before the step, parameters, inputs.

For a cell that is given nothing there is nothing to compile.
"""

from __future__ import annotations

from numba.extending import overload

from ..codegen.cell_vectors import (
    add_sums,
    add_tuple,
    given_of,
    gradients_of_h,
    gradients_of_inputs,
    gradients_of_params,
    load_inputs,
    load_params,
    store_some,
)
from ..codegen.compilation import always_inline, inline
from ..codegen.vector import load
from .shares import element_address


@inline
def begins(resets, d, t, b):
    """Whether row ``b`` of direction ``d`` begins anew before step ``t``; ``resets``: None, or those of each."""
    if resets is None:
        return False
    return resets[d].begins[t, b] != 0


@inline
def flat_begins(resets, d):
    """The ``begins`` of direction ``d`` in a row, or None."""
    if resets is None:
        return None
    return resets[d].begins.reshape(-1)


@inline
def _input_address(inputs, t, b, unit):
    """Byte address of the first input at (t, b) from ``unit`` on."""
    shared = inputs.shape[3] == 1
    place = (t * inputs.shape[2] + b) * inputs.shape[3] + (0 if shared else unit)
    return inputs.ctypes.data + place * inputs.itemsize


@always_inline
def _load_given(cell, ys, params, inputs, before, t, b, unit, n, new):
    # Zero lanes where the row begins anew: its old h is not read, whatever it is.
    h = load(ys, before, 0 if new else n) if cell.reads_h else load(ys, before, 0)
    own = load_params(cell, ys, params.ctypes.data + unit * ys.itemsize, params.strides[0], n)
    at, shared = _input_address(inputs, t, b, unit), inputs.shape[3] == 1
    return given_of(cell, h, own, load_inputs(cell, ys, at, inputs.strides[0], n, shared))


def load_given(cell, ys, params, inputs, before, t, b, unit, n, new):
    """What ``cell`` is given at step ``t`` for ``n`` units of row ``b`` from ``unit`` on; lanes behind them are zero.

    ``before``: byte address of h before the step; ``new``: whether the row begins anew, where that is zero.
    """


@overload(load_given)
def _choose_load(cell, ys, params, inputs, before, t, b, unit, n, new):
    if not cell.cell.given:
        return lambda cell, ys, params, inputs, before, t, b, unit, n, new: ()
    return lambda cell, ys, params, inputs, before, t, b, unit, n, new: _load_given(
        cell, ys, params, inputs, before, t, b, unit, n, new
    )


@always_inline
def _store_gradients(cell, ys, gradients, dh, dparams, dinputs, t, b, p, u, unit, n, shared):
    item = ys.itemsize
    store_some(ys, gradients_of_h(cell, gradients), element_address(dh, 0, b, unit), 0, n)
    add_tuple(gradients_of_params(cell, gradients), element_address(dparams, b, 0, unit), dparams.strides[1])
    of_inputs, apart = gradients_of_inputs(cell, gradients), dinputs.strides[0]
    if shared:
        _, _, steps, batch = dinputs.shape
        place = dinputs.ctypes.data + ((p * steps + t) * batch + b) * item
        add_sums(of_inputs, place, apart, n, u > 0)
    else:
        _, _, batch, hidden = dinputs.shape
        store_some(ys, of_inputs, dinputs.ctypes.data + ((t * batch + b) * hidden + unit) * item, apart, n)


def store_given_gradients(cell, ys, gradients, dh, dparams, dinputs, t, b, p, u, unit, n, shared):
    """Write the ``gradients`` of what a cell is given, of ``n`` units of row ``b`` at step ``t`` from ``unit`` on.

    That of h goes to dh, those of parameters are added to dparams, those of inputs go to dinputs; of inputs that are
    ``shared`` by the units, their sum over those of panel ``p``, of which this is register ``u``.
    """


@overload(store_given_gradients)
def _choose_store(cell, ys, gradients, dh, dparams, dinputs, t, b, p, u, unit, n, shared):
    if not cell.cell.given_gradients:
        return lambda cell, ys, gradients, dh, dparams, dinputs, t, b, p, u, unit, n, shared: None
    return lambda cell, ys, gradients, dh, dparams, dinputs, t, b, p, u, unit, n, shared: _store_gradients(
        cell, ys, gradients, dh, dparams, dinputs, t, b, p, u, unit, n, shared
    )
