"""tanh and the logistic function of vector registers, as cells call them.

Both are within 2 units in the last place over the whole range, infinities included, and NaN stays NaN; where the result
is subnormal, a unit is the smallest subnormal number. Both cost one division: exp is computed as a power of two and a
polynomial, which are put together only in numerator and denominator, so that each of those is rounded once and nothing
cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, float64, types
from numba.extending import intrinsic, overload

from ...cells import activations
from .compilation import inline
from .vector import Vector, constant_like, llvm_call, suffix


def _bound(comparison: str) -> Any:
    @intrinsic
    def bounded(typing: Any, x: Any, bound: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, bound = args
            return builder.select(builder.fcmp_ordered(comparison, x, bound), bound, x)

        return x(x, x), codegen

    return bounded


# ``x``, or the bound where x is past it; NaN stays.
_at_least = _bound("<")
_at_most = _bound(">")


@intrinsic
def _absolute(typing: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return llvm_call(builder, f"fabs.{suffix(args[0].type)}", args[0].type, args[0])

    return x(x), codegen


@intrinsic
def _with_sign_of(typing: Any, x: Any, sign: Any) -> Any:
    """``|x|`` with the sign of ``sign``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return llvm_call(builder, f"copysign.{suffix(args[0].type)}", args[0].type, *args)

    return x(x, x), codegen


@intrinsic
def _from_exponent(typing: Any, x: Any) -> Any:
    """The power of two whose biased exponent is in the lowest bits of ``x``."""
    info = np.finfo(x.dtype.name)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        typ = args[0].type
        bits = ir.VectorType(ir.IntType(info.bits), typ.count)
        shifted = builder.shl(builder.bitcast(args[0], bits), ir.Constant(bits, [info.nmant] * typ.count))
        return builder.bitcast(shifted, typ)

    return x(x), codegen


def _polynomial(coefficients: Sequence[float]) -> Any:
    """A function of a vector: the polynomial with these coefficients, the constant one first.

    Pairs of terms, then Horner's scheme in x²: half as long a chain as Horner's in x, and no more operations where x²
    is needed anyway.
    """

    @intrinsic
    def polynomial(typing: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def multiply_add(a: Any, b: Any, c: Any) -> Any:
                return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

            (x,) = args
            square = builder.fmul(x, x)
            terms = [ir.Constant(x.type, [c] * x.type.count) for c in coefficients]
            pairs = [multiply_add(odd, x, even) for even, odd in zip(terms[::2], terms[1::2], strict=False)]
            value, *rest = (pairs + terms[2 * len(pairs) :])[::-1]
            for pair in rest:
                value = multiply_add(value, square, pair)
            return value

        return x(x), codegen

    return polynomial


class _Exp(NamedTuple):
    """How exp is computed in one dtype."""

    small: float  # exp(-small) is nothing beside 1
    large: float  # 1 / exp(large) is 0, even as a subnormal number
    one: float  # a power of two, such that one * exp(large) is finite
    ln2: tuple[float, float]  # in two parts, the first so short that products with whole numbers are exact
    tail: tuple[float, ...]  # (exp(x) - 1 - x) / x² for |x| <= ln(2) / 2


# The parts of ln(2) are those of Cephes (Moshier, expf.c and exp.c). The polynomials are minimax, by Lawson's iteration
# in 50 digits. In float64, exp(x) - 1 is off by 1.8e-17 of x. In float32, where the coefficients were rounded one by
# one and the others fitted again, by 6.6e-9 of -x below 0, which tanh depends on near 0, and by 4.6e-9 above.
_EXP = {
    float32: _Exp(
        20.0,
        104.0,
        2.0**-24,
        (0.693359375, -2.12194440e-4),
        (0.499999851, 0.166665241, 0.0416701883, 0.00836838875, 0.0013722002),
    ),
    float64: _Exp(
        40.0,
        746.0,
        2.0**-60,
        (6.93145751953125e-1, 1.42860682030941723212e-6),
        (
            0.50000000000000055671,
            0.16666666666666684573,
            0.041666666666573533332,
            0.0083333333333155327788,
            0.0013888888932392545414,
            0.00019841269900948808764,
            0.000024801504440685274227,
            2.7557229839992103754e-6,
            2.7626325592810516305e-7,
            2.5113870402004591849e-8,
        ),
    ),
}


def _exponential(dtype: types.Float, times: float, one: float, high: float, low: float = 0.0) -> Any:
    """A function of x that gives s and m such that one * exp(-times * x) = s * (1 + times * m), s a power of two.

    ``high`` + ``low`` is ln(2) / times.
    """
    info = np.finfo(dtype.name)
    # Added to a number, this leaves the nearest whole number in the lowest bits, and the bias of exponents with it.
    magic = 1.5 * 2.0**info.nmant + (info.maxexp - 1) + math.log2(one)
    log2_e = -times / math.log(2.0)
    tail = _polynomial([times * c * (-times) ** k for k, c in enumerate(_EXP[dtype].tail)])

    def exponential(x):
        shifted = x * log2_e + magic
        n = shifted - magic
        r = x + n * high
        if low:
            r = r + n * low
        return _from_exponent(shifted), r * r * tail(r) - r

    return inline(exponential)


def _tanh(dtype: types.Float) -> Any:
    """tanh |x| = (1 - E) / (1 + E) with E = exp(-2|x|)."""
    end = _EXP[dtype].small / 2.0
    exponential = _exponential(dtype, 2.0, 1.0, math.log(2.0) / 2.0)

    def tanh(x):
        s, m = exponential(_at_most(_absolute(x), constant_like(x, end)))
        return _with_sign_of((s * m + (s * 0.5 - 0.5)) / (s * m + (s * 0.5 + 0.5)), x)

    return inline(tanh)


def _sigmoid(dtype: types.Float) -> Any:
    """1 / (1 + E) with E = exp(-x), both scaled by ``one``, since E may be larger than any number."""
    e = _EXP[dtype]
    first, last, one = -e.large, e.small, e.one
    exponential = _exponential(dtype, 1.0, one, *e.ln2)

    def sigmoid(x):
        s, m = exponential(_at_most(_at_least(x, constant_like(x, first)), constant_like(x, last)))
        return one / ((s * m + one) + s)

    return inline(sigmoid)


def _activation(name: Callable[..., Any], implement: Callable[[types.Float], Any]) -> None:
    @overload(name)
    def choose(x):
        if not isinstance(x, Vector):
            return None
        function = implement(x.dtype)
        return lambda x: function(x)


_activation(activations.tanh, _tanh)
_activation(activations.sigmoid, _sigmoid)
