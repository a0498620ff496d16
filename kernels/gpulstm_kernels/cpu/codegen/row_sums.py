"""Numbers that all units of a row share, in kernels: sums of registers, and one number in every lane."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vector import first_lanes, of_array, splat_at


def first_of(builder: ir.IRBuilder, value: Any, n: Any) -> Any:
    """``value`` in the first ``n`` lanes, zeros behind them."""
    return builder.select(first_lanes(builder, value.type, n), value, ir.Constant(value.type, None))


def lane_sum(builder: ir.IRBuilder, value: Any) -> Any:
    """The sum of all lanes: halves of them are added to each other until one is left."""
    count, index = value.type.count, ir.IntType(32)
    while count > 1:
        count //= 2
        low, high = (ir.Constant(ir.VectorType(index, count), list(range(k, k + count))) for k in (0, count))
        value = builder.fadd(*(builder.shuffle_vector(value, value, mask) for mask in (low, high)))
    return builder.extract_element(value, index(0))


@intrinsic
def load_splat(typing: Any, like: Any, address: Any) -> Any:
    """The element at ``address`` in every lane."""
    typ = of_array(like)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat_at(builder, args[1], typ.ir)

    return typ(like, types.int64), codegen


@intrinsic
def keep_first(typing: Any, value: Any, n: Any) -> Any:
    """``value`` in the first ``n`` lanes, zeros behind them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return first_of(builder, *args)

    return value(value, types.int64), codegen


@intrinsic
def store_lane_sum(typing: Any, value: Any, factor: Any, address: Any) -> Any:
    """The sum of all lanes, as :func:`lane_sum` has it, times ``factor``, to ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, factor, address = args
        total = lane_sum(builder, value)
        scaled = builder.fmul(total, context.cast(builder, factor, sig.args[1], sig.args[0].dtype))
        builder.store(scaled, builder.inttoptr(address, scaled.type.as_pointer()))
        return context.get_dummy_value()

    return types.none(value, factor, types.int64), codegen
