"""Products with weights of 16 or 8 bits: activations are quantized to 16 bits, row by row, and multiplied in pairs.

Processors that multiply narrow numbers do so by pairs: a lane of 32 bits holds two neighbours along K of each operand,
and one instruction adds both products to the lane's sum, twice as many as a multiply-add does. Weights in bfloat16 (as
uint16) are multiplied with activations rounded to bfloat16 where there is such an instruction (AVX512-BF16), and summed
in float32; elsewhere they are widened, and nothing else is rounded. Where there is AMX, its blocks multiply several
rows at once (:mod:`.amx`). For weights in int8, activations are whole numbers of 16 bits with a scale for each row; the
weights are widened to 16 bits as they are loaded, and sums are exact.

A quantized row takes ``row_bytes(k)``: a head that ends with its scale, its pairs, and zeros.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from .amx import DEPTH
from .compilation import constant, inline
from .features import AMX, FEATURES, IS_X86, REGISTER_BYTES
from .vector import (
    INT64,
    constant_like,
    element_bytes,
    lanes,
    llvm_call,
    load,
    load_at,
    splat,
    store,
    store_at,
    to_bits,
)

HEAD = 64  # bytes before the pairs of a row, so that they begin on a cache line; the last four are its scale
_MOST = 32767  # of a row in 16 bits, so that its range is symmetric
_MOST_SUM, _MOST_WEIGHT = 2**31 - 1, 127
_BFLOAT16_DOT = REGISTER_BYTES == 64 and "avx512bf16" in FEATURES
_INT16_DOT = REGISTER_BYTES == 64 and "avx512vnni" in FEATURES
_INT16_PRODUCTS = {16: "sse2.pmadd.wd", 32: "avx2.pmadd.wd", 64: "avx512.pmaddw.d.512"}  # by a register's bytes
if _BFLOAT16_DOT or _INT16_DOT:
    llvm.initialize_native_asmparser()  # for instructions whose names in LLVM change from version to version


def group(weights: np.ndarray | np.dtype) -> int:
    """How many neighbours along K share a lane of packed weights of this dtype (a constant in a kernel)."""
    dtype = np.dtype(getattr(weights, "dtype", weights))
    return 2 if dtype == np.int8 or (dtype == np.uint16 and _BFLOAT16_DOT) else 1


constant(group, lambda weights: group(np.dtype(weights.dtype.name)))


def in_blocks(weights: np.ndarray | np.dtype) -> bool:
    """Whether packed weights of this dtype are multiplied in blocks of :mod:`.amx` (a constant in a kernel)."""
    return AMX and np.dtype(getattr(weights, "dtype", weights)) == np.uint16


constant(in_blocks, lambda weights: in_blocks(np.dtype(weights.dtype.name)), types.boolean)


@register_jitable
def packed_depth(weights: np.ndarray, k: int) -> int:
    """How many elements along K packed weights have for ``k``: whole groups of neighbours, or blocks."""
    whole = DEPTH if in_blocks(weights) else group(weights)
    return -(-k // whole) * whole


@register_jitable
def row_bytes(weights: np.ndarray, k: int) -> int:
    """Bytes of a quantized row of ``k`` elements, in whole cache lines; 0 where ``weights`` need none."""
    return (HEAD + -(-2 * k // 64) * 64) * (group(weights) - 1)


class Pairs:
    """The products of a tile with weights packed in pairs; sums are float32 for bfloat16, int32 for int8."""

    group, spare = 2, 1  # a register between the instructions that multiply and that add, where those are two

    def __init__(self, vector: ir.VectorType, element: types.Type) -> None:
        self.vector, self.element = vector, element
        self.lanes = ir.VectorType(ir.IntType(32), vector.count)
        self.bytes = 2 * vector.count * element.bitwidth // 8
        # In a row, at most: additions that are instructions of their own are put off until no register is left.
        self.steps = 2 if element == types.int8 and not _INT16_DOT else 8

    def load(self, builder: ir.IRBuilder, address: Any) -> Any:
        narrow = load_at(builder, address, ir.VectorType(ir.IntType(self.element.bitwidth), 2 * self.lanes.count))
        if self.element == types.int8:
            narrow = builder.sext(narrow, ir.VectorType(ir.IntType(16), 2 * self.lanes.count))
        return builder.bitcast(narrow, self.lanes)

    def add(self, builder: ir.IRBuilder, left: Any, right: Any, total: Any) -> Any:
        """``total`` + both products of each lane."""
        if self.element != types.int8:
            return _instruction(builder, "vdpbf16ps", left, right, total)
        if _INT16_DOT:
            return _instruction(builder, "vpdpwssd", left, right, total)
        if IS_X86:
            pairs = ir.VectorType(ir.IntType(16), 2 * self.lanes.count)
            operands = [builder.bitcast(value, pairs) for value in (left, right)]
            name = f"x86.{_INT16_PRODUCTS[REGISTER_BYTES]}"
            return builder.add(total, llvm_call(builder, name, self.lanes, *operands))
        half = ir.Constant(self.lanes, [16] * self.lanes.count)
        high = builder.mul(builder.ashr(left, half), builder.ashr(right, half))
        low = builder.mul(*(builder.ashr(builder.shl(value, half), half) for value in (left, right)))
        return builder.add(total, builder.add(low, high))

    def scaled(
        self, builder: ir.IRBuilder, sums: list[Any], rows: list[Any], columns: list[Any], start: list[Any]
    ) -> Any:
        """``start`` + ``sums`` of int8 products, times the scale of their row and of their column."""
        result = []
        for r, row in enumerate(rows):
            place = builder.sub(row, INT64(element_bytes(self.vector)))
            pointer = builder.inttoptr(place, self.vector.element.as_pointer())
            scale = splat(builder, self.vector, builder.load(pointer))
            for v, column in enumerate(columns):
                i = r * len(columns) + v
                value = builder.fmul(builder.sitofp(sums[i], self.vector), builder.fmul(scale, column))
                result.append(builder.fadd(start[i], value))
        return result


def _instruction(builder: ir.IRBuilder, name: str, left: Any, right: Any, total: Any) -> Any:
    function_type = ir.FunctionType(total.type, [total.type, left.type, right.type])
    return builder.asm(function_type, f"{name} $2, $3, $0", "=v,0,v,v", [total, left, right], side_effect=False)


# --- rows -------------------------------------------------------------------------------------------------------


@intrinsic
def _larger(typing: Any, a: Any, b: Any) -> Any:
    """In each lane the larger of ``a``, which has no sign, and |b|; NaN is larger than everything."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (to_bits(builder, value) for value in args)
        b = builder.and_(b, ir.Constant(b.type, [0x7FFFFFFF] * b.type.count))
        return builder.bitcast(builder.select(builder.icmp_signed(">", a, b), a, b), args[0].type)

    return a(a, b), codegen


@intrinsic
def _largest_lane(typing: Any, x: Any) -> Any:
    """The largest lane of ``x``, which has no signs, in every lane; NaN if there is one."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = to_bits(builder, args[0])
        largest = llvm_call(builder, f"vector.reduce.smax.v{bits.type.count}i32", ir.IntType(32), bits)
        return context.cast(builder, builder.bitcast(largest, ir.FloatType()), types.float32, x)

    return x(x), codegen


@intrinsic
def _store_int16(typing: Any, x: Any, most: Any, address: Any) -> Any:
    """Write ``x``, rounded to whole numbers in ±most, to ``address``; a NaN as one of them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, most, address = args
        name = f"v{x.type.count}f32"
        x = llvm_call(builder, f"minnum.{name}", x.type, llvm_call(builder, f"rint.{name}", x.type, x), most)
        x = llvm_call(builder, f"maxnum.{name}", x.type, x, builder.fneg(most))
        whole = builder.fptosi(x, ir.VectorType(ir.IntType(32), x.type.count))
        store_at(builder, builder.trunc(whole, ir.VectorType(ir.IntType(16), x.type.count)), address)
        return context.get_dummy_value()

    return types.none(x, x, types.int64), codegen


@intrinsic
def _store_bfloat16(typing: Any, x: Any, address: Any) -> Any:
    """Write ``x``, rounded to the nearest bfloat16, ties to even, to ``address``; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = to_bits(builder, args[0])

        def constant(value: int) -> Any:
            return ir.Constant(bits.type, [value] * bits.type.count)

        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
        quiet = builder.or_(bits, constant(0x400000))
        rounded = builder.select(builder.fcmp_unordered("uno", args[0], args[0]), quiet, rounded)
        half = ir.VectorType(ir.IntType(16), bits.type.count)
        store_at(builder, builder.trunc(builder.lshr(rounded, constant(16)), half), args[1])
        return context.get_dummy_value()

    return types.none(x, types.int64), codegen


@inline
def _row_to_int16(like, to, row, k):
    size, step = like.itemsize, lanes(like)
    first = load(like, row, k)
    largest = _larger(first, first)
    for j in range(step, k, step):
        largest = _larger(largest, load(like, row + j * size, k - j))
    largest = _largest_lane(largest)
    most = constant_like(largest, float(min(_MOST, _MOST_SUM // (_MOST_WEIGHT * k))))
    # Where the row holds an infinity or NaN, the scale is NaN; where it holds zeros alone, the scale is 0.
    store(like, largest / most + (largest - largest), to - size, 1)
    for j in range(0, k, step):
        _store_int16(load(like, row + j * size, k - j) * (most / largest), most, to + 2 * j)


@inline
def _row_to_bfloat16(like, to, row, k):
    for j in range(0, -(-k // DEPTH) * DEPTH, lanes(like)):
        _store_bfloat16(load(like, row + j * like.itemsize, k - j), to + 2 * j)


def _quantize_row(weights: Any, like: Any, to: int, row: int, k: int) -> None:
    """Write a row of ``k`` elements, at byte address ``row``, to ``to`` as products with ``weights`` take it."""


@overload(_quantize_row)
def _choose(weights, like, to, row, k):
    if group(np.dtype(weights.dtype.name)) == 1:  # never called
        return lambda weights, like, to, row, k: None
    function = _row_to_int16 if weights.dtype == types.int8 else _row_to_bfloat16
    return lambda weights, like, to, row, k: function(like, to, row, k)


@inline
def quantized_rows(weights, like, scratch, source, ld, rows, k):
    """(byte address, bytes from row to row) of ``rows`` rows of ``k`` elements as products with ``weights`` take them.

    These are ``source`` and ``ld``, or for weights packed in pairs those of quantized rows, written to ``scratch``.
    """
    if group(weights) == 1:
        return source, ld
    apart = row_bytes(weights, k)
    for r in range(rows):
        _quantize_row(weights, like, scratch + r * apart + HEAD, source + r * ld, k)
    return scratch + HEAD, apart
