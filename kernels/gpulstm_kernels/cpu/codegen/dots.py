"""Dot products for a handful of rows, where packing the matrix costs more than the product: it is read in place."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .features import REGISTER_BYTES
from .numba_internals import cgutils
from .vector import INT64, counted_loop, element_bytes, load_at, load_first_at, multiply_add, of_array

# Rows whose dot products share the loads of a vector, and independent sums of each, so that multiply-adds overlap:
# of short rows, whose matrix is in the L2 cache; and of long ones, which two streams bring faster from behind it, or
# four where registers are half as wide.
_SHORT, _OF_SHORT, _OF_LONG = 192, (4, 1), (128 // REGISTER_BYTES, 2)


@intrinsic
def dots(
    typing: Any, like: Any, rows: Any, x: Any, wx: Any, ldx: Any, nx: Any, h: Any, wh: Any, ldh: Any, nh: Any
) -> Any:
    """A register with the dot products of as many rows of two matrices as it has lanes: lane r is W_x[r]·x + W_h[r]·h.

    ``x``, ``wx``, ``h``, ``wh``: byte addresses of the vectors and of the matrices' first rows; ``ldx``, ``ldh``:
    bytes from row to row; ``nx``, ``nh``: lengths; lanes from ``rows`` on repeat the last row. Memory is read in the
    order in which it lies.
    """
    typ = of_array(like)
    vector = typ.ir
    size = element_bytes(vector)

    def add_products(builder: Any, parts: list[Any], chains: int, left: Any, rows: list[Any], n: Any) -> list[Any]:
        """``parts`` + the products of ``n`` elements with each row, lane by lane, in ``chains`` sums each."""
        block = vector.count * chains
        whole = builder.sdiv(n, INT64(block))

        def products(offset: Any, read: Any, sums: list[Any]) -> list[Any]:
            value = read(builder.add(left, offset))
            right = [read(builder.add(row, offset)) for row in rows]
            return [multiply_add(builder, value, other, part) for other, part in zip(right, sums, strict=True)]

        def blocks(k: Any, sums: list[Any]) -> list[Any]:
            at = builder.mul(k, INT64(block * size))
            result = []
            for c in range(chains):
                offset = builder.add(at, INT64(c * vector.count * size))
                own = sums[c * len(rows) : (c + 1) * len(rows)]
                result += products(offset, lambda place: load_at(builder, place, vector), own)
            return result

        zeros = [ir.Constant(vector, None)] * (len(rows) * (chains - 1))
        sums = counted_loop(builder, whole, [*parts, *zeros], blocks)
        while len(sums) > len(rows):
            half = len(sums) // 2
            sums = [builder.fadd(a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
        done = builder.mul(whole, INT64(block))
        rest = builder.sub(n, done)

        def masked(k: Any, sums: list[Any]) -> list[Any]:
            first = builder.mul(k, INT64(vector.count))
            offset = builder.mul(builder.add(done, first), INT64(size))
            valid = builder.sub(rest, first)
            return products(offset, lambda place: load_first_at(builder, place, vector, valid), sums)

        registers = builder.sdiv(builder.add(rest, INT64(vector.count - 1)), INT64(vector.count))
        return counted_loop(builder, registers, sums, masked)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, rows, x, wx, ldx, nx, h, wh, ldh, nh = args
        parts = cgutils.alloca_once(builder, ir.ArrayType(vector, vector.count))
        last = builder.sub(rows, INT64(1))

        def every_row(at_once: int, chains: int) -> None:
            at_once = min(at_once, vector.count)

            def some_rows(k: Any, _: list[Any]) -> list[Any]:
                numbers = [builder.add(builder.mul(k, INT64(at_once)), INT64(i)) for i in range(at_once)]
                valid = [builder.select(builder.icmp_signed("<", r, last), r, last) for r in numbers]
                sums = [ir.Constant(vector, None)] * at_once
                for left, first, ld, n in ((x, wx, ldx, nx), (h, wh, ldh, nh)):
                    own = [builder.add(first, builder.mul(r, ld)) for r in valid]
                    sums = add_products(builder, sums, chains, left, own, n)
                for r, value in zip(numbers, sums, strict=True):
                    builder.store(value, builder.gep(parts, [INT64(0), r]))
                return []

            counted_loop(builder, INT64(vector.count // at_once), [], some_rows)

        short = builder.icmp_signed("<=", builder.add(nx, nh), INT64(2 * _SHORT))
        with builder.if_else(short) as (of_short, of_long):
            with of_short:
                every_row(*_OF_SHORT)
            with of_long:
                every_row(*_OF_LONG)
        sums = [builder.load(builder.gep(parts, [INT64(0), INT64(r)])) for r in range(vector.count)]
        index = ir.VectorType(ir.IntType(32), vector.count)
        even, odd = (ir.Constant(index, list(range(first, 2 * vector.count, 2))) for first in (0, 1))
        while len(sums) > 1:  # pairs of lanes are added while the registers transpose
            sums = [
                builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
                for a, b in zip(sums[::2], sums[1::2], strict=True)
            ]
        return sums[0]

    return typ(like, *[types.int64] * 9), codegen
