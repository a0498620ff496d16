"""What cells call that is one to three instructions of vector registers: square roots, maxima, choices.

Where all but one operand are numbers, a maximum is one instruction, and a choice one comparison and one blend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ...cells import activations
from .vector import llvm_call, operation, suffix


def _of_llvm(name: str) -> Callable[..., Any]:
    """Writes a call of an LLVM intrinsic of one operand."""
    return lambda builder, x: llvm_call(builder, f"{name}.{suffix(x.type)}", x.type, x)


def _bound(comparison: str) -> Callable[..., Any]:
    """Writes ``a``, or ``b`` where ``a comparison b``; NaN of either stays.

    The instruction of x86 gives its second operand where either is NaN, which takes care of ``a``. That ``b`` is no NaN
    is known of a number when this is compiled.
    """

    def emit(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
        bounded = builder.select(builder.fcmp_ordered(comparison, a, b), b, a)
        return builder.select(builder.fcmp_unordered("uno", b, b), b, bounded)

    return emit


def _select(builder: ir.IRBuilder, a: Any, b: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), x, y)


operation(activations.sqrt, 1, _of_llvm("sqrt"))
operation(activations.absolute, 1, _of_llvm("fabs"))
operation(activations.maximum, 2, _bound("<"))
operation(activations.minimum, 2, _bound(">"))
operation(activations.select, 4, _select)
