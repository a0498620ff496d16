"""Products of bfloat16 in AMX: one instruction multiplies 16 rows by 16 columns along 32 elements.

Its eight registers of two dimensions take their shape from a configuration: here as many sums as a panel is vectors
wide, the left operand (rows of 32 elements), and the right one (16 rows of pairs), which reads a panel as
:func:`.packing.pack_rows` packs pairs. A sum adds up the products of even and of odd elements of each 32 first, so it
differs in its last bits from one of instructions that multiply pairs. Names are those of Intel's intrinsics
(Architecture Instruction Set Extensions Programming Reference, chapter 3).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .numba_internals import cgutils
from .vector import INT64, counted_loop

ROWS = 16  # of a register
DEPTH = 32  # elements along K of an instruction
_REGISTERS, _ROW = 8, 64  # registers, and bytes of a row of one
WIDEST = _REGISTERS - 2  # vectors of a panel that leave a register for either operand
_I8 = ir.IntType(8)


def _configuration(rows: int, width: int) -> bytes:
    """Of ``width`` sums and a left operand of ``rows`` rows, and right operands behind them."""
    heights = [rows] * (width + 1) + [ROWS] * (_REGISTERS - width - 1)
    palette, columns = bytes([1]), _ROW.to_bytes(2, "little") * _REGISTERS
    return palette.ljust(16, b"\0") + columns.ljust(32, b"\0") + bytes(heights).ljust(16, b"\0")


def _call(builder: ir.IRBuilder, name: str, *arguments: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), arguments)


def _move(builder: ir.IRBuilder, name: str, register: int, address: Any, apart: Any) -> None:
    """Load or store a register, whose rows lie ``apart`` bytes from each other."""
    _call(builder, name, _I8(register), builder.inttoptr(address, _I8.as_pointer()), apart)


def _configure(builder: ir.IRBuilder, width: int, rows: Any) -> None:
    """Give registers the shapes for products of ``rows`` rows, at most ROWS, with panels ``width`` vectors wide."""
    table = b"".join(_configuration(m, width) for m in range(1, ROWS + 1))
    constant = ir.Constant(ir.ArrayType(_I8, len(table)), bytearray(table))
    first = builder.ptrtoint(cgutils.global_constant(builder, f"amx_shapes_{width}", constant), INT64)
    of_rows = builder.mul(builder.sub(rows, INT64(1)), INT64(len(table) // ROWS))
    _call(builder, "ldtilecfg", builder.inttoptr(builder.add(first, of_rows), _I8.as_pointer()))


def _multiply_block(
    builder: ir.IRBuilder, width: int, c: Any, ldc: Any, start: Any, lds: Any, a: Any, lda: Any, b: Any, n: Any
) -> None:
    """As :func:`multiply_rows` for the rows that registers are configured for."""
    across = [INT64(v * _ROW) for v in range(width)]
    left, others = width, range(width + 1, _REGISTERS)
    for v, place in enumerate(across):
        _move(builder, "tileloadd64", v, builder.add(start, place), lds)

    def multiply(k: Any, _: list[Any]) -> list[Any]:
        _move(builder, "tileloadd64", left, builder.add(a, builder.mul(k, INT64(_ROW))), lda)
        at = builder.add(b, builder.mul(k, INT64(width * ROWS * _ROW)))
        for v, place in enumerate(across):
            right = others[v % len(others)]
            _move(builder, "tileloadd64", right, builder.add(at, place), INT64(width * _ROW))
            _call(builder, "tdpbf16ps", _I8(v), _I8(left), _I8(right))
        return []

    counted_loop(builder, builder.sdiv(builder.add(n, INT64(DEPTH - 1)), INT64(DEPTH)), [], multiply)
    for v, place in enumerate(across):
        _move(builder, "tilestored64", v, builder.add(c, place), ldc)


def multiply_rows(
    builder: ir.IRBuilder, width: int, c: Any, ldc: Any, start: Any, lds: Any, a: Any, lda: Any, b: Any, m: Any, n: Any
) -> None:
    """C = S + A·B for ``m`` rows and a panel ``width`` vectors wide; arguments as for :func:`.tile.tile_rows`.

    A and B have zeros behind the ``n`` elements of a sum, up to a multiple of DEPTH.
    """

    def some_rows(first: Any) -> list[Any]:
        to, source, left = (builder.add(at, builder.mul(first, ld)) for at, ld in ((c, ldc), (start, lds), (a, lda)))
        _multiply_block(builder, width, to, ldc, source, lds, left, lda, b, n)
        return []

    whole, rest = builder.sdiv(m, INT64(ROWS)), builder.srem(m, INT64(ROWS))
    with builder.if_then(builder.icmp_signed(">", whole, INT64(0))):
        _configure(builder, width, INT64(ROWS))
        counted_loop(builder, whole, [], lambda i, _: some_rows(builder.mul(i, INT64(ROWS))))
    with builder.if_then(builder.icmp_signed(">", rest, INT64(0))):
        _configure(builder, width, rest)
        some_rows(builder.mul(whole, INT64(ROWS)))
    _call(builder, "tilerelease")
