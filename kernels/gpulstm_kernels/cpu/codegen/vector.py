"""Vector registers as Numba values: arithmetic, loads and stores.

A cell's maths is written in ``+ - * /`` and functions (:mod:`.elementwise`, :mod:`.activations`); given :class:`Vector`
values the same lines compile to one instruction a line, without leaning on the auto-vectoriser. Memory is addressed by
byte address (int64): the kernels compute addresses, Numba never sees an array here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from .compilation import constant, inline
from .features import REGISTER_BYTES
from .numba_internals import cgutils, type_calls

INT64 = ir.IntType(64)


class Vector(types.Type):
    """One vector register of ``dtype``."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = REGISTER_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.lanes})")

    @property
    def ir(self) -> ir.VectorType:
        return ir.VectorType(ir.FloatType() if self.dtype == float32 else ir.DoubleType(), self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, typ: Vector) -> None:
        super().__init__(manager, typ, typ.ir)


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


def splat(builder: ir.IRBuilder, typ: ir.VectorType, scalar: Any) -> Any:
    undefined = ir.Constant(typ, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), typ.count), [0] * typ.count)
    )


def llvm_call(builder: ir.IRBuilder, name: str, result: Any, *args: Any, fastmath: tuple[str, ...] = ()) -> Any:
    """Call the LLVM intrinsic ``llvm.<name>``."""
    function_type = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}")
    return builder.call(function, args, fastmath=fastmath)


def suffix(typ: ir.VectorType) -> str:
    """How LLVM's overloaded intrinsics name a vector type."""
    return f"v{typ.count}f{32 if isinstance(typ.element, ir.FloatType) else 64}"


def multiply_add(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, fused where the machine can."""
    return llvm_call(builder, f"fmuladd.{suffix(c.type)}", c.type, a, b, c)


# --- arithmetic -------------------------------------------------------------------------------------------------


def operation(function: Callable[..., Any], operands: int, emit: Callable[..., Any]) -> None:
    """In kernels, let ``emit(builder, *operands)`` compute ``function`` of vectors; all but one may be numbers."""

    def signature_of(*args: types.Type) -> list[types.Type] | None:
        vectors = [arg for arg in args if isinstance(arg, Vector)]
        if len(args) != operands or not vectors:
            return None
        if all(arg == vectors[0] or isinstance(arg, types.Number) for arg in args):
            return [vectors[0]] * (1 + operands)
        return None

    type_calls(function, signature_of)

    @lower_builtin(function, *[Vector] * operands)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


def _arithmetic(instruction: str) -> Callable[..., Any]:
    return lambda builder, a, b: getattr(builder, instruction)(a, b, flags=("contract",))


for _name, _instruction in {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}.items():
    operation(getattr(operator, _name), 2, _arithmetic(_instruction))
    operation(getattr(operator, f"i{_name}"), 2, _arithmetic(_instruction))
operation(operator.neg, 1, lambda builder, x: builder.fneg(x))


@lower_cast(types.Number, Vector)
def _number_to_vector(context: Any, builder: Any, fromty: Any, toty: Vector, value: Any) -> Any:
    return splat(builder, toty.ir, context.cast(builder, value, fromty, toty.dtype))


@intrinsic
def constant_like(typing: Any, x: Any, value: Any) -> Any:
    """``value`` in every lane of a vector of the type of ``x``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[1], sig.args[1], sig.args[0])

    return x(x, value), codegen


# --- memory -----------------------------------------------------------------------------------------------------
# `like` arguments are arrays given for their dtype alone.


def of_array(array: types.Array) -> Vector:
    """The vector type that holds elements of ``array``."""
    return Vector(array.dtype)


def element_bytes(typ: ir.VectorType) -> int:
    if isinstance(typ.element, ir.IntType):
        return int(typ.element.width) // 8
    return 4 if isinstance(typ.element, ir.FloatType) else 8


def to_bits(builder: ir.IRBuilder, value: Any) -> Any:
    """The bits of float32 lanes."""
    return builder.bitcast(value, ir.VectorType(ir.IntType(32), value.type.count))


def load_at(builder: ir.IRBuilder, address: Any, typ: ir.VectorType) -> Any:
    value = builder.load(builder.inttoptr(address, typ.as_pointer()))
    value.align = element_bytes(typ)
    return value


def splat_at(builder: ir.IRBuilder, address: Any, typ: ir.VectorType) -> Any:
    """The element at ``address`` in every lane."""
    return splat(builder, typ, builder.load(builder.inttoptr(address, typ.element.as_pointer())))


def store_at(builder: ir.IRBuilder, value: Any, address: Any) -> None:
    store = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    store.align = element_bytes(value.type)


def from_bfloat16(builder: ir.IRBuilder, address: Any, typ: ir.VectorType) -> Any:
    """float32 lanes from as many bfloat16 in memory: their upper halves."""
    wide = ir.VectorType(ir.IntType(32), typ.count)
    value = builder.zext(load_at(builder, address, ir.VectorType(ir.IntType(16), typ.count)), wide)
    return builder.bitcast(builder.shl(value, ir.Constant(wide, [16] * wide.count)), typ)


def load_first_at(builder: ir.IRBuilder, address: Any, vector: ir.VectorType, n: Any) -> Any:
    """The first ``n`` lanes from memory, zeros behind them."""
    name = f"masked.load.{suffix(vector)}.p0{suffix(vector)}"
    pointer = builder.inttoptr(address, vector.as_pointer())
    align = ir.Constant(ir.IntType(32), element_bytes(vector))
    zero = ir.Constant(vector, None)
    return llvm_call(builder, name, vector, pointer, align, first_lanes(builder, vector, n), zero)


def store_first_at(builder: ir.IRBuilder, value: Any, address: Any, n: Any) -> None:
    """The first ``n`` lanes to memory."""
    name = f"masked.store.{suffix(value.type)}.p0{suffix(value.type)}"
    pointer = builder.inttoptr(address, value.type.as_pointer())
    align = ir.Constant(ir.IntType(32), element_bytes(value.type))
    llvm_call(builder, name, ir.VoidType(), value, pointer, align, first_lanes(builder, value.type, n))


def first_lanes(builder: ir.IRBuilder, typ: ir.VectorType, n: Any) -> Any:
    """The mask of lanes 0 .. n-1."""
    numbers = ir.Constant(ir.VectorType(INT64, typ.count), list(range(typ.count)))
    return builder.icmp_signed("<", numbers, splat(builder, numbers.type, n))


def lanes(like: np.ndarray | np.dtype) -> int:
    """How many elements of the dtype of ``like`` a register holds (a constant in a kernel)."""
    return REGISTER_BYTES // like.itemsize


constant(lanes, lambda like: of_array(like).lanes)


@intrinsic
def _load_all(typing: Any, like: Any, address: Any) -> Any:
    typ = of_array(like)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_at(builder, args[1], typ.ir)

    return typ(like, types.int64), codegen


@intrinsic
def _load_first(typing: Any, like: Any, address: Any, n: Any) -> Any:
    typ = of_array(like)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_first_at(builder, args[1], typ.ir, args[2])

    return typ(like, types.int64, types.int64), codegen


@inline
def load(like, address, n):
    """The ``n`` elements at ``address``, zeros behind them."""
    if n >= lanes(like):
        return _load_all(like, address)
    return _load_first(like, address, n)


@intrinsic
def _store_all(typing: Any, value: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_at(builder, args[0], args[1])
        return context.get_dummy_value()

    return types.none(value, types.int64), codegen


@intrinsic
def _store_first(typing: Any, value: Any, address: Any, n: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_first_at(builder, *args)
        return context.get_dummy_value()

    return types.none(value, types.int64, types.int64), codegen


@inline
def store(like, value, address, n):
    """Write the first ``n`` lanes of ``value`` to ``address``."""
    if n >= lanes(like):
        _store_all(value, address)
    else:
        _store_first(value, address, n)


@intrinsic
def _transpose_square(typing: Any, like: Any, source: Any, apart: Any, to: Any, stride: Any) -> Any:
    """:func:`transpose` of as many rows and columns as a register has lanes."""
    vector = of_array(like).ir
    n = vector.count
    index = ir.VectorType(ir.IntType(32), n)
    low, high = (ir.Constant(index, [k // 2 + first + k % 2 * n for k in range(n)]) for first in (0, n // 2))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, apart, to, stride = args
        rows = [load_at(builder, builder.add(source, builder.mul(apart, INT64(r))), vector) for r in range(n)]
        for _ in range(n.bit_length() - 1):  # each turns the numbers of rows and columns by one bit
            pairs = zip(rows[: n // 2], rows[n // 2 :], strict=True)
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]
        for r, row in enumerate(rows):
            store_at(builder, row, builder.add(to, builder.mul(stride, INT64(r))))
        return context.get_dummy_value()

    return types.none(like, *[types.int64] * 4), codegen


@inline
def transpose(like, source, apart, rows, columns, to, stride):
    """Write ``rows`` rows of ``columns`` columns at ``source`` to ``to`` as columns.

    Of both there may be more than a register has lanes; no more than that are written.
    ``apart``, ``stride``: bytes from row to row at ``source`` and at ``to``.
    """
    lane, size = lanes(like), like.itemsize
    if rows >= lane and columns >= lane:
        _transpose_square(like, source, apart, to, stride)
    else:
        for c in range(min(columns, lane)):
            for r in range(min(rows, lane)):
                store(like, load(like, source + r * apart + c * size, 1), to + c * stride + r * size, 1)
