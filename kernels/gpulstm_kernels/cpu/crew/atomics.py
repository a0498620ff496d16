"""Words of memory that threads share, by byte address: what one thread publishes others see in that order."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import tuning
from ..codegen.features import IS_X86
from ..codegen.numba_internals import cgutils
from ..codegen.vector import INT64

SPINS = tuning.current.spins


def _word(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, INT64.as_pointer())


@intrinsic
def fetch_add(typing: Any, address: Any, value: Any) -> Any:
    """Add ``value`` to a number, and return what it was: no two threads get the same."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def publish(typing: Any, address: Any, value: Any) -> Any:
    """Write a number that others wait for: a thread that reads it sees what was written before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _word(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def read(typing: Any, address: Any) -> Any:
    """A number, and with it what was written before it was published."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_word(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def exchange(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write ``value`` where ``expected`` is; whether it was there."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the core that this is a spin loop, where it wants to know."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if IS_X86:
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def sleep(typing: Any) -> Any:
    """Leave the core to other threads for as short as the system does, where its C library is at hand by name."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if os.name == "posix":
            number = ir.IntType(32)
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number]), "usleep")
            builder.call(function, [number(1)])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def clock(typing: Any) -> Any:
    """The core's clock, in ticks of its own."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function_type = ir.FunctionType(INT64, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.readcyclecounter"), [])

    return types.int64(), codegen
