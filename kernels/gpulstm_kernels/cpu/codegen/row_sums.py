"""Numbers that all units of a row share, in kernels: sums of registers, and one number in every lane."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vector import _first_lanes, of_array, splat


@intrinsic
def load_splat(typing: Any, like: Any, address: Any) -> Any:
    """The element at ``address`` in every lane."""
    typ = of_array(like)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[1], typ.ir.element.as_pointer())
        return splat(builder, typ.ir, builder.load(pointer))

    return typ(like, types.int64), codegen


@intrinsic
def keep_first(typing: Any, value: Any, n: Any) -> Any:
    """``value`` in the first ``n`` lanes, zeros behind them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = args[0].type
        return builder.select(_first_lanes(builder, vector, args[1]), args[0], ir.Constant(vector, None))

    return value(value, types.int64), codegen


@intrinsic
def store_lane_sum(typing: Any, value: Any, factor: Any, address: Any) -> Any:
    """The sum of all lanes, halves first, times ``factor``, to ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total, factor, address = args
        count, index = total.type.count, ir.IntType(32)
        while count > 1:
            count //= 2
            low, high = (ir.Constant(ir.VectorType(index, count), list(range(k, k + count))) for k in (0, count))
            undefined = ir.Constant(total.type, ir.Undefined)
            halves = [builder.shuffle_vector(total, undefined, mask) for mask in (low, high)]
            total = builder.fadd(*halves)
        element = builder.extract_element(total, ir.Constant(index, 0))
        scaled = builder.fmul(element, context.cast(builder, factor, sig.args[1], sig.args[0].dtype))
        builder.store(scaled, builder.inttoptr(address, scaled.type.as_pointer()))
        return context.get_dummy_value()

    return types.none(value, factor, types.int64), codegen
