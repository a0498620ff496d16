"""What a cell's step is given and gives, tuples of vector registers, in memory: one vector for each gate, state, saved
value, parameter or input of the cell, ``stride`` bytes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from ...cells import Cell
from .compilation import inline
from .numba_internals import cgutils
from .row_sums import first_of, lane_sum
from .vector import INT64, lanes, load_at, load_first_at, of_array, splat_at, store_at, store_first_at


def _loaded(context: Any, builder: Any, result: types.UniTuple, address: Any, stride: Any, read: Any) -> Any:
    """A tuple of what ``read`` gives for addresses ``stride`` bytes apart."""
    places = [builder.add(address, builder.mul(stride, INT64(k))) for k in range(result.count)]
    return context.make_tuple(builder, result, [read(place) for place in places])


def _tuple_loader(count: Callable[[Cell], int]) -> Any:
    @intrinsic
    def load_tuple(typing: Any, cell: Any, like: Any, address: Any, stride: Any) -> Any:
        typ = of_array(like)
        result = types.UniTuple(typ, count(cell.cell))

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _, _, address, stride = args
            return _loaded(context, builder, result, address, stride, lambda at: load_at(builder, at, typ.ir))

        return result(cell, like, types.int64, types.int64), codegen

    return load_tuple


# One full vector for each gate (state, saved value) of a cell, `stride` bytes apart.
load_gates = _tuple_loader(lambda cell: len(cell.preactivations))
load_states = _tuple_loader(lambda cell: len(cell.states))
load_saved = _tuple_loader(lambda cell: cell.saved)


def _part_loader(count: Callable[[Cell], int]) -> Any:
    """As :func:`_tuple_loader`, of the first ``n`` elements of each, with zeros behind them."""
    load_all = _tuple_loader(count)

    @intrinsic
    def load_first(typing: Any, cell: Any, like: Any, address: Any, stride: Any, n: Any) -> Any:
        typ = of_array(like)
        result = types.UniTuple(typ, count(cell.cell))

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            *_, address, stride, n = args
            return _loaded(context, builder, result, address, stride, lambda at: load_first_at(builder, at, typ.ir, n))

        return result(cell, like, *[types.int64] * 3), codegen

    @inline
    def load_part(cell, like, address, stride, n):
        if n >= lanes(like):
            return load_all(cell, like, address, stride)
        return load_first(cell, like, address, stride, n)

    return load_part


# The first `n` units of each state, parameter or input of a cell, `stride` bytes apart; zeros behind them.
load_some_states = _part_loader(lambda cell: len(cell.states))
load_params = _part_loader(lambda cell: len(cell.params))
_load_inputs = _part_loader(lambda cell: len(cell.inputs))


@intrinsic
def _load_shared_inputs(typing: Any, cell: Any, like: Any, address: Any, stride: Any) -> Any:
    """One element of each input, in every lane."""
    typ = of_array(like)
    result = types.UniTuple(typ, len(cell.cell.inputs))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, address, stride = args
        return _loaded(context, builder, result, address, stride, lambda at: splat_at(builder, at, typ.ir))

    return result(cell, like, types.int64, types.int64), codegen


@inline
def load_inputs(cell, like, address, stride, n, shared):
    """The first ``n`` units of each input, ``stride`` bytes apart; ``shared``: the one value that all units have."""
    if shared:
        return _load_shared_inputs(cell, like, address, stride)
    return _load_inputs(cell, like, address, stride, n)


@intrinsic
def given_of(typing: Any, cell: Any, h: Any, params: Any, inputs: Any) -> Any:
    """What a cell is given beside gates and states: ``h`` before the step if it reads that, ``params``, ``inputs``."""
    result = types.UniTuple(h, len(cell.cell.given))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, h, *others = args
        values = [value for part in others for value in cgutils.unpack_tuple(builder, part)]
        return context.make_tuple(builder, result, [h] * cell.cell.reads_h + values)

    return result(cell, h, params, inputs), codegen


def _part_of_gradients(first: Callable[[Cell], int], count: Callable[[Cell], int]) -> Any:
    @intrinsic
    def part(typing: Any, cell: Any, gradients: Any) -> Any:
        start, result = first(cell.cell), types.UniTuple(gradients.dtype, count(cell.cell))

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[1])
            return context.make_tuple(builder, result, values[start : start + result.count])

        return result(cell, gradients), codegen

    return part


# Those of h before the step, of parameters and of inputs among the gradients of what a cell is given.
gradients_of_h = _part_of_gradients(lambda cell: 0, lambda cell: int(cell.reads_h))
gradients_of_params = _part_of_gradients(lambda cell: int(cell.reads_h), lambda cell: len(cell.params))
gradients_of_inputs = _part_of_gradients(
    lambda cell: cell.reads_h + len(cell.params), lambda cell: len(cell.differentiable)
)


@intrinsic
def store_gates(
    typing: Any, cell: Any, values: Any, address: Any, padded: Any, panel: Any, unit: Any, stride: Any
) -> Any:
    """Write a full vector of each gate of a row at ``address``.

    The gates of one product, of both and of the other one lie in regions of their own, each in panels. All in bytes:
    ``padded``: of a gate of all panels; ``stride``: of one of a panel; ``panel``: of one of the panels before this one;
    ``unit``: of the units before these in the panel.
    """
    x_gates, gates, h_gates = (len(part) for part in (cell.cell.x_gates, cell.cell.gates, cell.cell.h_gates))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, values, address, padded, panel, unit, stride = args
        place = builder.add(address, unit)
        for first, count in ((0, x_gates), (x_gates, gates), (x_gates + gates, h_gates)):
            region = builder.add(builder.mul(padded, INT64(first)), builder.mul(panel, INT64(count)))
            for k in range(count):
                at = builder.add(builder.add(place, region), builder.mul(stride, INT64(k)))
                store_at(builder, builder.extract_value(values, first + k), at)
        return context.get_dummy_value()

    return types.none(cell, values, *[types.int64] * 5), codegen


@intrinsic
def add_tuple(typing: Any, values: Any, address: Any, stride: Any) -> Any:
    """Add vectors to full ones in memory, ``stride`` bytes apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for k in range(values.count):
            place, value = builder.add(args[1], builder.mul(args[2], INT64(k))), builder.extract_value(args[0], k)
            store_at(builder, builder.fadd(load_at(builder, place, value.type), value), place)
        return context.get_dummy_value()

    return types.none(values, types.int64, types.int64), codegen


@intrinsic
def add_sums(typing: Any, values: Any, address: Any, stride: Any, n: Any, add: Any) -> Any:
    """Write the sum of each vector's first ``n`` lanes, ``stride`` bytes apart, or add it to what is there if ``add``.

    Halves of the lanes are added to each other until one is left.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tuple_, address, stride, n, add = args
        for k in range(values.count):
            total = lane_sum(builder, first_of(builder, builder.extract_value(tuple_, k), n))
            place = builder.add(address, builder.mul(stride, INT64(k)))
            pointer = builder.inttoptr(place, total.type.as_pointer())
            with builder.if_else(add) as (adds, begins):
                with adds:
                    builder.store(builder.fadd(builder.load(pointer), total), pointer)
                with begins:
                    builder.store(total, pointer)
        return context.get_dummy_value()

    return types.none(values, *[types.int64] * 3, types.boolean), codegen


@intrinsic
def store_tuple(typing: Any, values: Any, address: Any, stride: Any) -> Any:
    """Write full vectors ``stride`` bytes apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for k in range(values.count):
            value = builder.extract_value(args[0], k)
            store_at(builder, value, builder.add(args[1], builder.mul(args[2], INT64(k))))
        return context.get_dummy_value()

    return types.none(values, types.int64, types.int64), codegen


@intrinsic
def _store_first_of_tuple(typing: Any, values: Any, address: Any, stride: Any, n: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values_, address, stride, n = args
        for k in range(values.count):
            place = builder.add(address, builder.mul(stride, INT64(k)))
            store_first_at(builder, builder.extract_value(values_, k), place, n)
        return context.get_dummy_value()

    return types.none(values, *[types.int64] * 3), codegen


@inline
def store_some(like, values, address, stride, n):
    """Write the first ``n`` lanes of vectors ``stride`` bytes apart."""
    if n >= lanes(like):
        store_tuple(values, address, stride)
    else:
        _store_first_of_tuple(values, address, stride, n)
