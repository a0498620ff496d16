"""The arguments of a kernel as a record in memory, which threads are given the address of.

Numba unboxes a tuple into one value of as many words as all its arrays have, and hands it on word by word: of the
arguments of a walk there are three hundred, which take a second to compile. Here each argument is unboxed into its
place, and arrays are borrowed: the caller holds them meanwhile.

Every array comes to its kernel here. Kernels go by addresses, so at every call each is seen to be C-contiguous and
aligned; the caller makes it so, by :func:`gpulstm_kernels.memory.contiguous`. Whether it may be written to is no
part of its type: parameters of which some are read-only are no other kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, typeof, types
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

from .numba_internals import borrow_array, call_machine_code, cgutils, element_of_tuple, set_value_error
from .vector import INT64


class Record(tuple):
    """(address of machine code, \\*its arguments), told apart from a tuple by Numba's ``typeof``."""


class RecordType(types.Type):
    """Numba's type of a :class:`Record`, from the tuple's. In a kernel it is the byte address of the record."""

    def __init__(self, inside: types.BaseTuple) -> None:
        self.inside = inside
        super().__init__(name=f"Record({inside})")


@register_model(RecordType)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, manager: Any, typ: RecordType) -> None:
        super().__init__(manager, typ, INT64)


@typeof_impl.register(Record)
def _typeof_record(value: Record, context: Any) -> RecordType:
    return RecordType(type_of(tuple(value)))


def type_of(value: Any) -> types.Type:
    """Numba's type of an argument of a kernel."""
    if isinstance(value, np.ndarray):
        return types.Array(from_dtype(value.dtype), value.ndim, "C")
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([type_of(element) for element in value], type(value))
    return typeof(value)


def _is_contiguous(c: Any, typ: types.Array, place: Any) -> Any:
    """Whether the array that Numba has at ``place`` is C-contiguous and aligned."""
    name = f"is_contiguous.{typ.dtype}.{typ.ndim}"
    function = c.builder.module.globals.get(name) or _check_of(c.context, c.builder.module, name, typ)
    return c.builder.call(function, [place])


def _check_of(context: Any, module: ir.Module, name: str, typ: types.Array) -> ir.Function:
    """A function of its own, which all arrays of a type share: a walk has some forty."""
    function_type = ir.FunctionType(ir.IntType(1), [context.get_value_type(typ).as_pointer()])
    function = ir.Function(module, function_type, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    array = context.make_array(typ)(context, builder, ref=function.args[0])
    past = builder.and_(builder.ptrtoint(array.data, INT64), builder.sub(array.itemsize, INT64(1)))
    right, stride = builder.icmp_signed("==", past, INT64(0)), array.itemsize
    sizes, strides = (cgutils.unpack_tuple(builder, part, typ.ndim) for part in (array.shape, array.strides))
    for size, own in reversed(list(zip(sizes, strides, strict=True))):
        fits = builder.or_(builder.icmp_signed("==", own, stride), builder.icmp_signed("==", size, INT64(1)))
        right, stride = builder.and_(right, fits), builder.mul(stride, size)
    builder.ret(builder.or_(right, builder.icmp_signed("==", array.nitems, INT64(0))))
    return function


@unbox(RecordType)
def _unbox_record(record: RecordType, arguments: Any, c: Any) -> NativeValue:
    place = cgutils.alloca_once(c.builder, c.context.get_value_type(record.inside))
    failed = cgutils.alloca_once_value(c.builder, cgutils.false_bit)

    def write(typ: types.Type, value: Any, to: Any) -> None:
        if isinstance(typ, types.BaseTuple):
            for i, element in enumerate(typ):
                write(element, element_of_tuple(c, value, i), cgutils.gep_inbounds(c.builder, to, 0, i))
            return
        if isinstance(typ, types.Array):
            error = c.builder.or_(borrow_array(c, value, to), c.builder.not_(_is_contiguous(c, typ, to)))
            with c.builder.if_then(error, likely=False):
                set_value_error(c, "a kernel takes C-contiguous, aligned arrays alone")
        else:
            native = c.unbox(typ, value)
            c.builder.store(native.value, to)
            error = native.is_error
        with c.builder.if_then(error, likely=False):
            c.builder.store(cgutils.true_bit, failed)

    write(record.inside, arguments, place)
    return NativeValue(c.builder.ptrtoint(place, INT64), is_error=c.builder.load(failed))


@intrinsic
def share_of(typing: Any, record: Any) -> Any:
    """Address of machine code that runs a share of what ``record`` says.

    It takes the record's address, rank, size and barrier, all int64, and returns 0, or 1 if an error ended the share.
    """
    inside = [*list(record.inside)[1:], types.int64, types.int64, types.int64]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        code = ir.Function(builder.module, ir.FunctionType(INT64, [INT64] * 4), builder.module.get_unique_name("share"))
        code.linkage = "internal"
        inner = ir.IRBuilder(code.append_basic_block("entry"))
        at = inner.inttoptr(code.args[0], context.get_value_type(record.inside).as_pointer())
        address, *own = (inner.load(cgutils.gep_inbounds(inner, at, 0, i)) for i in range(len(record.inside)))
        failed, _ = call_machine_code(context, inner, address, types.none, inside, [*own, *code.args[1:]])
        inner.ret(inner.zext(failed, INT64))
        return builder.ptrtoint(code, INT64)

    return types.int64(record), codegen


@intrinsic
def address_of(typing: Any, record: Any) -> Any:
    """Where a :class:`Record` lies: it is there as long as the function that Python called with it runs."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[0]

    return types.int64(record), codegen
