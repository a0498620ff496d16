"""Vector registers as Numba values: arithmetic, activations, loads and stores.

A cell's maths is written in ``+ - * /`` and the activations; given :class:`Vector` values the same lines compile to
one instruction a line, without leaning on the auto-vectoriser. Memory is addressed by byte address (int64): the
kernels compute addresses, Numba never sees an array here.

tanh in float32 is the rational approximation of Eigen's ``ptanh_float`` (13th over 6th degree, clamped where it
reaches ±1); in float64, tanh and exp follow Cephes (Moshier, ``tanh.c``, ``exp.c``). NaN stays NaN in all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, float32, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, overload, register_model

from ..cells import Cell, activations
from .compile import inline


def _features() -> set[str]:
    """What the CPU that Numba compiles for can do, in LLVM's names."""
    if config.CPU_FEATURES is None:
        return {name for name, present in llvm.get_host_cpu_features().items() if present}
    # the user's NUMBA_CPU_FEATURES, "+avx2,-avx512f,..."
    return {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}


def _register_bytes() -> tuple[int, int]:
    """Width of a vector register in bytes, and how many there are."""
    if {"avx512f", "avx512bw"} <= FEATURES:
        return 64, 32
    if "avx2" in FEATURES:
        return 32, 16
    return 16, 16 if IS_X86 else 32


FEATURES = _features()
IS_X86 = "x86" in llvm.get_process_triple()
REGISTER_BYTES, REGISTERS = _register_bytes()
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


# --- arithmetic -------------------------------------------------------------------------------------------------


def _arithmetic(symbol: Callable[..., Any], instruction: str) -> None:
    @infer_global(symbol)
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            vectors = [arg for arg in args if isinstance(arg, Vector)]
            if len(args) != 2 or not vectors:
                return None
            if all(arg == vectors[0] or isinstance(arg, types.Number) for arg in args):
                return signature(vectors[0], vectors[0], vectors[0])
            return None

    @lower_builtin(symbol, Vector, Vector)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=("contract",))


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@lower_cast(types.Number, Vector)
def _number_to_vector(context: Any, builder: Any, fromty: Any, toty: Vector, value: Any) -> Any:
    return splat(builder, toty.ir, context.cast(builder, value, fromty, toty.dtype))


@infer_global(operator.neg)
class _Negative(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Vector) else None


@lower_builtin(operator.neg, Vector)
def _negative(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


@intrinsic
def _clamp(typing: Any, x: Any, low: Any, high: Any) -> Any:
    """``x`` within [low, high]; NaN stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, low, high = args
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        return builder.select(builder.fcmp_ordered("<", x, low), low, x)

    return x(x, x, x), codegen


@intrinsic
def _select_small(typing: Any, x: Any, bound: Any, inside: Any, outside: Any) -> Any:
    """``inside`` in the lanes where |x| < bound, else ``outside``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, bound, inside, outside = args
        size = llvm_call(builder, f"fabs.{suffix(x.type)}", x.type, x)
        return builder.select(builder.fcmp_ordered("<", size, bound), inside, outside)

    return x(x, x, x, x), codegen


@intrinsic
def _round(typing: Any, x: Any) -> Any:
    """``x`` rounded to the nearest integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return llvm_call(builder, f"rint.{suffix(args[0].type)}", args[0].type, args[0])

    return x(x), codegen


@intrinsic
def _power_of_two(typing: Any, n: Any) -> Any:
    """2**n for a float64 vector of integers in [-1022, 1023], by writing the exponent bits."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        typ = args[0].type
        bits_type = ir.VectorType(INT64, typ.count)
        # Adding 1.5 * 2**52 + 1023 leaves n + 1023 in the low bits of the mantissa.
        shifted = builder.fadd(args[0], ir.Constant(typ, [1.5 * 2.0**52 + 1023.0] * typ.count))
        bits = builder.shl(builder.bitcast(shifted, bits_type), ir.Constant(bits_type, [52] * typ.count))
        return builder.bitcast(bits, typ)

    return n(n), codegen


@intrinsic
def constant_like(typing: Any, x: Any, value: Any) -> Any:
    """``value`` in every lane of a vector of the type of ``x``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[1], sig.args[1], sig.args[0])

    return x(x, value), codegen


# --- activations ------------------------------------------------------------------------------------------------


@inline
def _tanh_float32(x):
    x = _clamp(x, constant_like(x, -7.90531110763549805), constant_like(x, 7.90531110763549805))
    s = x * x
    p = s * -2.76076847742355e-16 + 2.00018790482477e-13
    p = p * s + -8.60467152213735e-11
    p = p * s + 5.12229709037114e-08
    p = p * s + 1.48572235717979e-05
    p = p * s + 6.37261928875436e-04
    p = p * s + 4.89352455891786e-03
    q = s * 1.19825839466702e-06 + 1.18534705686654e-04
    q = q * s + 2.26843463243900e-03
    q = q * s + 4.89352518554385e-03
    return x * p / q


@inline
def _sigmoid_float32(x):
    return _tanh_float32(x * 0.5) * 0.5 + 0.5


@inline
def _exp_float64(x):
    x = _clamp(x, constant_like(x, -708.0), constant_like(x, 709.0))
    n = _round(x * 1.4426950408889634)
    x = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    s = x * x
    p = x * ((s * 1.26177193074810590878e-4 + 3.02994407707441961300e-2) * s + 1.0)
    q = (s * 3.00198505138664455042e-6 + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1
    q = q * s + 2.0
    return (2.0 * (p / (q - p)) + 1.0) * _power_of_two(n)


@inline
def _tanh_float64(x):
    s = x * x
    p = (s * -9.64399179425052238628e-1 + -9.92877231001918586564e1) * s + -1.61468768441708447952e3
    q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
    near = x + x * s * (p / q)
    far = 1.0 - 2.0 / (_exp_float64(x * 2.0) + 1.0)
    return _select_small(x, constant_like(x, 0.625), near, far)


@inline
def _sigmoid_float64(x):
    return 1.0 / (_exp_float64(-x) + 1.0)


def _activation(name: Callable[..., Any], of_float32: Any, of_float64: Any) -> None:
    @overload(name)
    def choose(x):
        if not isinstance(x, Vector):
            return None
        function = of_float32 if x.dtype == float32 else of_float64
        return lambda x: function(x)


_activation(activations.tanh, _tanh_float32, _tanh_float64)
_activation(activations.sigmoid, _sigmoid_float32, _sigmoid_float64)


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
    return llvm_call(builder, name, vector, pointer, align, _first_lanes(builder, vector, n), zero)


def _first_lanes(builder: ir.IRBuilder, typ: ir.VectorType, n: Any) -> Any:
    """The mask of lanes 0 .. n-1."""
    numbers = ir.Constant(ir.VectorType(INT64, typ.count), list(range(typ.count)))
    return builder.icmp_signed("<", numbers, splat(builder, numbers.type, n))


def lanes(like: np.ndarray | np.dtype) -> int:
    """How many elements of the dtype of ``like`` a register holds (a constant in a kernel)."""
    return REGISTER_BYTES // like.itemsize


@overload(lanes)
def _lanes(like):
    count = of_array(like).lanes
    return lambda like: count


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
        vector = args[0].type
        name = f"masked.store.{suffix(vector)}.p0{suffix(vector)}"
        pointer = builder.inttoptr(args[1], vector.as_pointer())
        align = ir.Constant(ir.IntType(32), element_bytes(vector))
        mask = _first_lanes(builder, vector, args[2])
        llvm_call(builder, name, ir.VoidType(), args[0], pointer, align, mask)
        return context.get_dummy_value()

    return types.none(value, types.int64, types.int64), codegen


@inline
def store(like, value, address, n):
    """Write the first ``n`` lanes of ``value`` to ``address``."""
    if n >= lanes(like):
        _store_all(value, address)
    else:
        _store_first(value, address, n)


def _tuple_loader(count: Callable[[Cell], int]) -> Any:
    @intrinsic
    def load_tuple(typing: Any, cell: Any, like: Any, address: Any, stride: Any) -> Any:
        typ = of_array(like)
        result = types.UniTuple(typ, count(cell.cell))

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _, _, address, stride = args
            values = [
                load_at(builder, builder.add(address, builder.mul(stride, INT64(k))), typ.ir)
                for k in range(result.count)
            ]
            return context.make_tuple(builder, result, values)

        return result(cell, like, types.int64, types.int64), codegen

    return load_tuple


# One full vector for each gate (state, saved value) of a cell, `stride` bytes apart.
load_gates = _tuple_loader(lambda cell: len(cell.gates))
load_states = _tuple_loader(lambda cell: len(cell.states))
load_saved = _tuple_loader(lambda cell: cell.saved)


@intrinsic
def store_tuple(typing: Any, values: Any, address: Any, stride: Any) -> Any:
    """Write full vectors ``stride`` bytes apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for k in range(values.count):
            value = builder.extract_value(args[0], k)
            store_at(builder, value, builder.add(args[1], builder.mul(args[2], INT64(k))))
        return context.get_dummy_value()

    return types.none(values, types.int64, types.int64), codegen
