"""What a kernel, which runs without Python's lock, needs to let Python run the handlers of signals meanwhile.

Python's handlers run in its main thread alone, between two of its instructions or where C code asks for them. What
a handler raises stays with the thread until Python goes on; a kernel that ends by :func:`raise_pending` hands it over.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..codegen.numba_internals import cgutils, return_exception
from ..codegen.vector import INT64

_INT = ir.IntType(32)
_LONG = ir.IntType(8 * ctypes.sizeof(ctypes.c_ulong))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: Any) -> ir.Value:
    """Call a function of Python or of the C library, which are found by name when machine code is loaded."""
    typ = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, typ, name), arguments)


def _widened(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return value if value.type == INT64 else builder.zext(value, INT64)


@intrinsic
def thread_ident(typing: Any) -> Any:
    """``threading.get_ident()`` of the calling thread."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _widened(builder, _call(builder, "PyThread_get_thread_ident", _LONG))

    return types.int64(), codegen


@intrinsic
def milliseconds(typing: Any) -> Any:
    """A clock that does not go back."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if os.name != "posix":
            return _call(builder, "GetTickCount64", INT64)
        place = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2))  # a timespec
        _call(builder, "clock_gettime", _INT, _INT(time.CLOCK_MONOTONIC), place)
        seconds, nanoseconds = (builder.load(cgutils.gep_inbounds(builder, place, 0, i)) for i in range(2))
        return builder.add(builder.mul(seconds, INT64(1000)), builder.sdiv(nanoseconds, INT64(1_000_000)))

    return types.int64(), codegen


@intrinsic
def stay_apart(typing: Any) -> Any:
    """Keep the machine code of the function that says this out of those that call it: it is for what seldom runs."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def run_handlers(typing: Any) -> Any:
    """Let Python run the handlers of signals that came; whether one raised, which :func:`raise_pending` then must."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        state = _call(builder, "PyGILState_Ensure", _INT)
        result = _call(builder, "PyErr_CheckSignals", _INT)
        _call(builder, "PyGILState_Release", ir.VoidType(), state)
        return cgutils.is_neg_int(builder, result)

    return types.boolean(), codegen


@intrinsic
def raise_pending(typing: Any, flag: Any) -> Any:
    """In an entry: if ``flag``, raise to Python what is pending there."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.if_then(builder.icmp_signed("!=", args[0], INT64(0)), likely=False):
            return_exception(context, builder)
        return context.get_dummy_value()

    return types.none(types.int64), codegen
