"""The inner loop of every matrix product: a tile of C held in vector registers while it runs along K.

``tile_rows`` adds A·B to rows of C that are ``width`` vectors wide. B is packed, so that a step along K reads ``width``
consecutive vectors; A is read one element a row and step, with any strides, and broadcast. Every element is one sum
in the order of K, however the rows are cut into tiles: threads may split them anywhere. ``dots`` serves the case
where packing B would cost more than the product: rows of B as they lie, each a dot product with one row of A.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .compile import CellType, inline
from .threads import share
from .vector import INT64, REGISTERS, element_bytes, lanes, llvm_call, load_at, of_array, splat, store_at, suffix

WIDTH = 4  # vectors of C across a tile; a step along K loads as many from B
ROWS = 6 if REGISTERS == 32 else 2  # rows of C in a tile: ROWS * WIDTH sums and the operands fit the registers
_DOTS = 2  # vectors of a row that a step of ``dots`` takes: with 4 rows, 8 independent chains of multiply-adds


def panel_vectors(n_gates: int) -> int:
    """How many vectors of units a panel of gates holds: as many as make a tile about ``WIDTH`` vectors wide."""
    return max(1, WIDTH // n_gates)


def units(cell: Any, like: Any) -> int:
    """How many units a panel of ``cell``'s gates spans (a constant in a kernel)."""
    return panel_vectors(len(cell.gates)) * lanes(like)


@overload(units)
def _units(cell, like):
    count = panel_vectors(len(cell.cell.gates)) * of_array(like).lanes
    return lambda cell, like: count


def _width(typ: Any) -> int:
    """The width in vectors: of a panel of a cell's gates, or a literal number."""
    if isinstance(typ, CellType):
        n_gates = len(typ.cell.gates)
        return n_gates * panel_vectors(n_gates)
    return int(typ.literal_value)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return llvm_call(builder, f"fmuladd.{suffix(c.type)}", c.type, a, b, c)


def counted_loop(builder: Any, n: Any, values: list[Any], body: Any) -> list[Any]:
    """``for k in range(n): values = body(k, values)`` with ``values`` in registers; returns the last ones."""
    before = builder.block
    loop, after = builder.append_basic_block("k"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", n, INT64(0)), loop, after)
    builder.position_at_end(loop)
    k = builder.phi(INT64)
    k.add_incoming(INT64(0), before)
    inside = []
    for value in values:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        inside.append(phi)
    new = body(k, inside)
    following = builder.add(k, INT64(1))
    end = builder.block
    k.add_incoming(following, end)
    for phi, value in zip(inside, new, strict=True):
        phi.add_incoming(value, end)
    builder.cbranch(builder.icmp_signed("<", following, n), loop, after)
    builder.position_at_end(after)
    result = []
    for value, last in zip(values, new, strict=True):
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        phi.add_incoming(last, end)
        result.append(phi)
    return result


@intrinsic(prefer_literal=True)
def _tile(
    typing: Any,
    rows: Any,
    width: Any,
    like: Any,
    c: Any,
    ldc: Any,
    start: Any,
    lds: Any,
    a: Any,
    lda: Any,
    stepa: Any,
    b: Any,
    n: Any,
) -> Any:
    """As :func:`tile_rows` for at most ROWS ``rows``: one loop along K for each number of them."""
    vector, w = of_array(like).ir, _width(width)
    size = element_bytes(vector)
    step = w * vector.count * size

    def loop(builder: Any, m: int, args: Any) -> None:
        _, _, _, c, ldc, start, lds, a, lda, stepa, b, n = args
        at = [builder.add(a, builder.mul(lda, INT64(r))) for r in range(m)]

        def multiply(k: Any, sums: list[Any]) -> list[Any]:
            row = builder.add(b, builder.mul(k, INT64(step)))
            right = [load_at(builder, builder.add(row, INT64(v * vector.count * size)), vector) for v in range(w)]
            offset = builder.mul(k, stepa)
            result = []
            for r in range(m):
                pointer = builder.inttoptr(builder.add(at[r], offset), vector.element.as_pointer())
                left = splat(builder, vector, builder.load(pointer))
                result += [_multiply_add(builder, left, right[v], sums[r * w + v]) for v in range(w)]
            return result

        def places(first: Any, step: Any) -> list[Any]:
            rows = [builder.add(first, builder.mul(step, INT64(r))) for r in range(m)]
            return [builder.add(row, INT64(v * vector.count * size)) for row in rows for v in range(w)]

        sums = counted_loop(builder, n, [load_at(builder, place, vector) for place in places(start, lds)], multiply)
        for value, place in zip(sums, places(c, ldc), strict=True):
            store_at(builder, value, place)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        after = builder.append_basic_block("tiled")
        cases = [(m, builder.append_basic_block(f"rows{m}")) for m in range(1, ROWS + 1)]
        switch = builder.switch(args[0], after)
        for m, block in cases:
            switch.add_case(INT64(m), block)
            builder.position_at_end(block)
            loop(builder, m, args)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    i8 = types.int64
    return types.none(i8, width, like, *[i8] * 9), codegen


@inline
def tile_rows(width, like, c, ldc, start, lds, a, lda, stepa, b, m, n):
    """C = S + A·B for ``m`` rows of C, cut into tiles of nearly the same height: a low one leaves the core idle.

    ``width``: a literal number of vectors, or a cell for a panel of its gates; ``like``: an array of the dtype;
    ``c``, ``start``, ``a``, ``b``: byte addresses, ``start`` that of S, which may be C; ``ldc``, ``lds``, ``lda``:
    bytes from row to row, 0 to read the same row again; ``stepa``: bytes from element to element of a row of A;
    ``n``: length of the sum.
    """
    tiles = (m + ROWS - 1) // ROWS
    for i in range(tiles):
        r0, r1 = share(m, i, tiles)
        to, source = c + r0 * ldc, start + r0 * lds
        _tile(r1 - r0, width, like, to, ldc, source, lds, a + r0 * lda, lda, stepa, b, n)


@intrinsic(prefer_literal=True)
def _dots(typing: Any, rows: Any, like: Any, c: Any, a: Any, b: Any, ldb: Any, n: Any) -> Any:
    """``rows`` (literal) elements of C += the dot products of a row of A and as many rows of B."""
    vector, count = of_array(like).ir, int(rows.literal_value)
    size, unroll = element_bytes(vector), _DOTS
    block = vector.count * unroll

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, c, a, b, ldb, n = args
        at = [builder.add(b, builder.mul(ldb, INT64(r))) for r in range(count)]

        def vectors(k: Any, sums: list[Any]) -> list[Any]:
            result = []
            for u in range(unroll):
                offset = builder.add(builder.mul(k, INT64(block * size)), INT64(u * vector.count * size))
                left = load_at(builder, builder.add(a, offset), vector)
                for r in range(count):
                    right = load_at(builder, builder.add(at[r], offset), vector)
                    result.append(_multiply_add(builder, left, right, sums[u * count + r]))
            return result

        def scalars(k: Any, sums: list[Any]) -> list[Any]:
            offset = builder.mul(k, INT64(size))
            pointer = vector.element.as_pointer()
            left = builder.load(builder.inttoptr(builder.add(a, offset), pointer))
            products = [
                builder.fmul(left, builder.load(builder.inttoptr(builder.add(place, offset), pointer))) for place in at
            ]
            return [builder.fadd(s, p) for s, p in zip(sums, products, strict=True)]

        whole = builder.sdiv(n, INT64(block))
        sums = counted_loop(builder, whole, [ir.Constant(vector, None)] * (count * unroll), vectors)
        done = builder.mul(whole, INT64(block))
        start = ir.Constant(vector.element, 0.0)
        totals = []
        for r in range(count):
            both = builder.fadd(sums[r], sums[count + r])
            name = f"vector.reduce.fadd.{suffix(vector)}"
            totals.append(llvm_call(builder, name, vector.element, start, both, fastmath=("reassoc",)))
        rest = builder.sub(n, done)
        a = builder.add(a, builder.mul(done, INT64(size)))
        at = [builder.add(place, builder.mul(done, INT64(size))) for place in at]
        totals = counted_loop(builder, rest, totals, scalars)
        for r, total in enumerate(totals):
            place = builder.inttoptr(builder.add(c, INT64(r * size)), vector.element.as_pointer())
            builder.store(builder.fadd(builder.load(place), total), place)
        return context.get_dummy_value()

    i8 = types.int64
    return types.none(rows, like, i8, i8, i8, i8, i8), codegen


@inline
def dots(like, c, a, b, ldb, m, n):
    """``m`` consecutive elements of C += a row of A times ``m`` rows of B, ``ldb`` bytes apart, along ``n``."""
    size = like.itemsize
    r = 0
    while r + 4 <= m:
        _dots(4, like, c + r * size, a, b + r * ldb, ldb, n)
        r += 4
    while r < m:
        _dots(1, like, c + r * size, a, b + r * ldb, ldb, n)
        r += 1
