"""The inner loop of every matrix product: a tile of C held in vector registers while it runs along K.

``tile_rows`` adds A·B to rows of C that are ``width`` vectors wide. B is packed, so that a step along K reads ``width``
consecutive vectors; A is read one element a row and step, and broadcast. Every element is one sum in the order of K,
however the rows are cut into tiles, so threads may split them anywhere. A handful of rows is :mod:`.dots`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model

from ...cells import Cell
from . import amx, narrow
from .compilation import CellType, constant
from .features import CACHE_LINE, REGISTERS
from .narrow import group, in_blocks
from .numba_internals import type_calls
from .vector import (
    INT64,
    counted_loop,
    element_bytes,
    from_bfloat16,
    lanes,
    llvm_call,
    load_at,
    multiply_add,
    of_array,
    splat,
    store_at,
    suffix,
)

WIDTH = 4  # vectors of C across a tile; a step along K loads as many from B
# Products that a loop along K adds up before it counts. Where a core serves two threads, each may start half as many
# instructions in a cycle, and then every one that is not a product costs time. A step of the highest tile has 12 in 16
# registers, and 24 in 32, where more of them take longer to compile than they save.
_UNROLLED_PRODUCTS = 48 if REGISTERS == 16 else 24


def _tile_height(width: int, spare: int = 0) -> int:
    """How many rows of C, ``width`` vectors each, fit the registers as sums, with what a step along K multiplies.

    That is every register of the lower side of a tile, one of the other, and ``spare`` ones.
    """
    fits = [m for m in range(1, REGISTERS) if m * width + min(m, width) + 1 + spare <= REGISTERS]
    return max(fits, default=1)


ROWS = _tile_height(WIDTH)  # of a tile of floats


def panel_vectors(n_gates: int) -> int:
    """How many vectors of units a panel of gates holds: as many as make a tile about ``WIDTH`` vectors wide."""
    return max(1, WIDTH // n_gates)


def units(cell: Any, like: Any) -> int:
    """How many units a panel of ``cell``'s gates spans (a constant in a kernel)."""
    return panel_vectors(len(cell.preactivations)) * lanes(like)


constant(units, lambda cell, like: panel_vectors(len(cell.cell.preactivations)) * of_array(like).lanes)


class RunType(types.Type):
    """The Numba type of the gates that one of a cell's two products gives: they lie side by side in a panel."""

    def __init__(self, gates: int, of: int) -> None:
        self.vectors = gates * panel_vectors(of)
        super().__init__(name=f"Run({self.vectors})")


register_model(RunType)(models.OpaqueModel)


def x_run(cell: Any) -> Any:
    """In a kernel, the width of the gates of the input's product in a panel, for tiles."""


def h_run(cell: Any) -> Any:
    """In a kernel, the width of the gates of h's product in a panel, for tiles."""


def _run_type(function: Any, count: Callable[[Cell], int]) -> None:
    type_calls(function, lambda typ: (RunType(count(typ.cell), len(typ.cell.preactivations)), typ))

    @lower_builtin(function, CellType)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_dummy_value()


_run_type(x_run, lambda cell: len(cell.gates_of_x))
_run_type(h_run, lambda cell: len(cell.gates_of_h))


def _width(typ: Any) -> int:
    """The width in vectors: of some gates of a panel, or a literal number."""
    return typ.vectors if isinstance(typ, RunType) else int(typ.literal_value)


def _prefetch(builder: Any, address: Any, near: int = 2) -> None:
    """Prefetch the cache line at ``address`` into the L2 cache (``near`` 2) or the L1 (3), if there is memory there."""
    i32 = ir.IntType(32)
    to_read, data = i32(0), i32(1)
    place = builder.inttoptr(address, ir.IntType(8).as_pointer())
    llvm_call(builder, "prefetch.p0i8", ir.VoidType(), place, to_read, i32(near), data)


class _Products:
    """Multiply-adds of a register with one of weights: floats of its own type, or bfloat16 (as uint16) widened."""

    group, spare = 1, 0
    steps = 8  # in a row, at most

    def __init__(self, vector: ir.VectorType, element: types.Type) -> None:
        self.lanes, self.element = vector, element
        self.bytes = vector.count * element.bitwidth // 8

    def load(self, builder: ir.IRBuilder, address: Any) -> Any:
        if isinstance(self.element, types.Float):
            return load_at(builder, address, self.lanes)
        return from_bfloat16(builder, address, self.lanes)

    def add(self, builder: ir.IRBuilder, left: Any, right: Any, total: Any) -> Any:
        return multiply_add(builder, left, right, total)


def _products(like: Any, weights: Any) -> Any:
    """How a register of the dtype of ``like`` is multiplied with one of ``weights``."""
    vector, element = of_array(like).ir, weights.dtype
    by_pairs = group(np.dtype(element.name)) == 2
    return narrow.Pairs(vector, element) if by_pairs else _Products(vector, element)


def _emit_tile(
    builder: ir.IRBuilder,
    products: Any,
    vector: ir.VectorType,
    w: int,
    rows: list[Any],
    n: Any,
    panels: list[tuple[Any, Any, list[Any], list[Any]]],
    prefetch: tuple[Any, Any] | None = None,
) -> None:
    """C = S + A·B for ``rows`` of A and each of ``panels``, ``w`` vectors wide, in one loop along K.

    A panel: byte addresses of scales and of B, and of its rows of S and of C. ``prefetch``: an address, from which on a
    cache line is prefetched for each step, and whether to do that.
    """
    across = [INT64(v * vector.count * element_bytes(vector)) for v in range(w)]
    steps = builder.sdiv(builder.add(n, INT64(products.group - 1)), INT64(products.group))

    def multiply(k: Any, count: int, sums: list[Any]) -> list[Any]:
        offset = builder.mul(k, INT64(element_bytes(products.lanes)))
        lefts = [builder.add(row, offset) for row in rows]
        offset = builder.mul(k, INT64(w * products.bytes))
        rights = [builder.add(b, offset) for _, b, _, _ in panels]
        for j in range(count):
            sums = add_products(lefts, rights, j, sums)
        return sums

    def add_products(lefts: list[Any], rights: list[Any], j: int, sums: list[Any]) -> list[Any]:
        @functools.cache
        def left(r: int) -> Any:
            place = builder.add(lefts[r], INT64(j * element_bytes(products.lanes)))
            pointer = builder.inttoptr(place, products.lanes.element.as_pointer())
            return splat(builder, products.lanes, builder.load(pointer))

        @functools.cache
        def right(c: int) -> Any:
            return products.load(builder, builder.add(rights[c // w], INT64((j * w + c % w) * products.bytes)))

        # All of the side with fewer registers stays in them; the other one comes one at a time.
        m, n = range(len(rows)), range(len(panels) * w)
        order = [(r, c) for c in n for r in m] if len(m) < len(n) else [(r, c) for r in m for c in n]
        result = list(sums)
        for r, c in order:
            i = r * len(n) + c
            result[i] = products.add(builder, left(r), right(c), sums[i])
        return result

    def places(which: int) -> list[Any]:
        firsts = [panel[which][r] for r in range(len(rows)) for panel in panels]
        return [builder.add(first, place) for first in firsts for place in across]

    def along_k(sums: list[Any]) -> list[Any]:
        several = min(products.steps, max(1, _UNROLLED_PRODUCTS // len(sums)))

        def in_a_row(i: Any, sums: list[Any]) -> list[Any]:
            k = builder.mul(i, INT64(several))
            if prefetch is not None:
                begin, prefetches = prefetch
                line = builder.add(begin, builder.mul(k, INT64(CACHE_LINE)))
                with builder.if_then(prefetches):
                    for j in range(several):
                        _prefetch(builder, builder.add(line, INT64(j * CACHE_LINE)))
            return multiply(k, several, sums)

        def one_by_one(k: Any, sums: list[Any]) -> list[Any]:
            builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)  # what LLVM does not unroll
            return multiply(builder.add(done, k), 1, sums)

        times = builder.sdiv(steps, INT64(several))
        sums, done = counted_loop(builder, times, sums, in_a_row), builder.mul(times, INT64(several))
        return counted_loop(builder, builder.sub(steps, done), sums, one_by_one)

    first = [load_at(builder, place, vector) for place in places(2)]
    if products.element == types.int8:
        sums = along_k([ir.Constant(products.lanes, None)] * len(first))
        columns = [load_at(builder, builder.add(scale, place), vector) for scale, *_ in panels for place in across]
        sums = products.scaled(builder, sums, rows, columns, first)
    else:
        sums = along_k(first)
    for value, place in zip(sums, places(3), strict=True):
        store_at(builder, value, place)


@intrinsic(prefer_literal=True)
def tile_rows(
    typing: Any,
    width: Any,
    like: Any,
    weights: Any,
    scale: Any,
    c: Any,
    ldc: Any,
    start: Any,
    lds: Any,
    a: Any,
    lda: Any,
    b: Any,
    m: Any,
    n: Any,
    prefetch: Any,
) -> Any:
    """C = S + A·B for ``m`` rows of C.

    ``width``: a literal number of vectors, or :func:`x_run` or :func:`h_run` of a cell; ``like``, ``weights``: arrays
    of the dtype and of B's, which may be narrower, with A as :func:`.narrow.quantized_rows` gives it; ``scale``: byte
    address of what the columns of an int8 product are multiplied with, not read for other dtypes; ``c``, ``start``,
    ``a``, ``b``: byte addresses, ``start`` that of S, which may be C; ``ldc``, ``lds``, ``lda``: bytes from row to row,
    0 to read the same row again; ``n``: length of the sum; ``prefetch``: byte address of as much memory as B takes,
    which may be prefetched into the L2 cache meanwhile.
    """
    vector, products, w = of_array(like).ir, _products(like, weights), _width(width)
    blocks = in_blocks(np.dtype(weights.dtype.name)) and w <= amx.WIDEST

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not w:
            pass  # a cell without a product of h
        elif blocks:
            c, ldc, start, lds, a, lda, b, m, n = args[4:13]
            amx.multiply_rows(builder, w, c, ldc, start, lds, a, lda, b, m, n)
        else:
            name = f"tile_rows.{w}.{suffix(vector)}.{weights.dtype}"
            function = builder.module.globals.get(name) or _rows_in_tiles(builder.module, name, products, vector, w)
            builder.call(function, args[3:])
        return context.get_dummy_value()

    return types.none(width, like, weights, *[types.int64] * 11), codegen


def _rows_in_tiles(module: ir.Module, name: str, products: Any, vector: ir.VectorType, w: int) -> ir.Function:
    """:func:`tile_rows` in tiles of nearly the same height: a low one leaves the core idle.

    A function of its own, which all calls share: inlined, its loops take seconds to compile.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64] * 11), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    scale, c, ldc, start, lds, a, lda, b, m, n, prefetch = function.args
    height, lines = _tile_height(w, products.spare), w * products.bytes // CACHE_LINE  # of B that a step along K reads
    tiles = builder.sdiv(builder.add(m, INT64(height - 1)), INT64(height))
    part = builder.mul(builder.sdiv(n, INT64(products.group)), INT64(CACHE_LINE))
    several = builder.icmp_signed(">", tiles, INT64(1))
    low = builder.sdiv(m, builder.select(several, tiles, INT64(1)))  # the height of the lowest tile
    higher = builder.sub(m, builder.mul(low, tiles))  # how many have a row more: the first ones

    def tile(i: Any, _: list[Any]) -> list[Any]:
        is_higher = builder.icmp_signed("<", i, higher)
        top = builder.add(builder.mul(low, i), builder.select(is_higher, i, higher))
        of_a, of_s, of_c = (
            builder.add(first, builder.mul(ld, top)) for first, ld in ((a, lda), (start, lds), (c, ldc))
        )
        # The first tiles prefetch, each a line at a step.
        prefetches = builder.and_(several, builder.icmp_signed("<", i, INT64(lines)))
        there = builder.add(prefetch, builder.mul(i, part))
        after = builder.append_basic_block("tiled")
        switch = builder.switch(builder.add(low, builder.zext(is_higher, INT64)), after)
        for count in range(1, height + 1):
            block = builder.append_basic_block(f"rows{count}")
            switch.add_case(INT64(count), block)
            builder.position_at_end(block)
            rows = [
                [builder.add(at, builder.mul(ld, INT64(r))) for r in range(count)]
                for at, ld in ((of_a, lda), (of_s, lds), (of_c, ldc))
            ]
            below = builder.mul(lds, INT64(count))  # where the next tile begins, which does not wait for its S then
            for row in rows[1]:
                for line in range(0, w * vector.count * element_bytes(vector), CACHE_LINE):
                    _prefetch(builder, builder.add(builder.add(row, below), INT64(line)), near=3)
            _emit_tile(builder, products, vector, w, rows[0], n, [(scale, b, *rows[1:])], (there, prefetches))
            builder.branch(after)
        builder.position_at_end(after)
        return []

    counted_loop(builder, tiles, [], tile)
    builder.ret_void()
    return function


@intrinsic(prefer_literal=True)
def tile_row(
    typing: Any,
    width: Any,
    like: Any,
    weights: Any,
    scale: Any,
    c: Any,
    start: Any,
    a: Any,
    b: Any,
    n: Any,
) -> Any:
    """C = S + A·B for the only row of a batch; arguments as for :func:`tile_rows`.

    Of one row, a matrix unit would do a sixteenth of what it can.
    """
    vector, products, w = of_array(like).ir, _products(like, weights), _width(width)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        *_, scale, c, start, a, b, n = args
        if w:
            _emit_tile(builder, products, vector, w, [a], n, [(scale, b, [start], [c])])
        return context.get_dummy_value()

    return types.none(width, like, weights, *[types.int64] * 6), codegen


@intrinsic(prefer_literal=True)
def tile_row_twice(
    typing: Any,
    width: Any,
    like: Any,
    weights: Any,
    scale: Any,
    other_scale: Any,
    c: Any,
    other_c: Any,
    a: Any,
    b: Any,
    other_b: Any,
    n: Any,
) -> Any:
    """As :func:`tile_row` with S = C, for two panels in one loop along K.

    The sums of one row and panel are too few to hide how long a multiply-add takes.
    """
    vector, products, w = of_array(like).ir, _products(like, weights), _width(width)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        *_, scale, other_scale, c, other_c, a, b, other_b, n = args
        panels = [(scale, b, [c], [c]), (other_scale, other_b, [other_c], [other_c])]
        if w:
            _emit_tile(builder, products, vector, w, [a], n, panels)
        return context.get_dummy_value()

    return types.none(width, like, weights, *[types.int64] * 8), codegen
