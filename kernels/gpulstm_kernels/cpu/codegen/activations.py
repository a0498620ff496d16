"""tanh, the logistic function, exp, log and softplus of vector registers, as cells call them.

All are within 2 units in the last place over the whole range, infinities included, and NaN stays NaN; where the result
is subnormal, a unit is the smallest subnormal number. All but exp cost one division: exp is computed as a power of two
and a polynomial, which tanh and the logistic function put together only in numerator and denominator, so that each of
those is rounded once and nothing cancels.
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
from ...cells.activations import absolute, maximum, minimum, select
from . import elementwise  # noqa: F401 - which implements those
from .compilation import inline
from .vector import Vector, llvm_call, suffix


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
    """A function of x that gives p and m such that one * exp(-times * x) = s * (1 + times * m).

    s is a power of two, ``_from_exponent(p)``. ``high`` + ``low`` is ln(2) / times.
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
        return shifted, r * r * tail(r) - r

    return inline(exponential)


def _tanh(dtype: types.Float) -> Any:
    """tanh |x| = (1 - E) / (1 + E) with E = exp(-2|x|)."""
    end = _EXP[dtype].small / 2.0
    exponential = _exponential(dtype, 2.0, 1.0, math.log(2.0) / 2.0)

    def tanh(x):
        p, m = exponential(minimum(absolute(x), end))
        s = _from_exponent(p)
        return _with_sign_of((s * m + (s * 0.5 - 0.5)) / (s * m + (s * 0.5 + 0.5)), x)

    return inline(tanh)


def _sigmoid(dtype: types.Float) -> Any:
    """1 / (1 + E) with E = exp(-x), both scaled by ``one``, since E may be larger than any number."""
    e = _EXP[dtype]
    first, last, one = -e.large, e.small, e.one
    exponential = _exponential(dtype, 1.0, one, *e.ln2)

    def sigmoid(x):
        p, m = exponential(minimum(maximum(x, first), last))
        s = _from_exponent(p)
        return one / ((s * m + one) + s)

    return inline(sigmoid)


def _exp(dtype: types.Float) -> Any:
    """exp(x) as the product of two numbers, the first within the range of normal numbers, the second a power of two."""
    last, exponent = _EXP[dtype].large, np.finfo(dtype.name).maxexp // 2.0
    up, down = 2.0**exponent, 2.0**-exponent
    high, low = _EXP[dtype].ln2
    exponential = _exponential(dtype, -1.0, 1.0, -high, -low)

    def exp(x):
        p, m = exponential(minimum(maximum(x, -last), last))
        s = _from_exponent(p + select(x, 0.0, -exponent, exponent))
        return (s - s * m) * select(x, 0.0, up, down)

    return inline(exp)


@intrinsic
def _exponent_and_mantissa(typing: Any, x: Any) -> Any:
    """e and m of positive normal numbers: x = 2**e * m, 1/2 <= m**2 < 2."""
    info = np.finfo(x.dtype.name)
    least = int(np.sqrt(info.dtype.type(0.5)).view(f"i{info.bits // 8}"))
    bias = info.maxexp - 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        typ = args[0].type
        bits = ir.VectorType(ir.IntType(info.bits), typ.count)

        def whole(value: int) -> ir.Constant:
            return ir.Constant(bits, [value] * typ.count)

        moved = builder.add(builder.bitcast(args[0], bits), whole((bias << info.nmant) - least))
        biased = builder.lshr(moved, whole(info.nmant))
        # as the lowest bits of a number whose unit in the last place is 1; few machines convert integers of 64 bits
        number = builder.bitcast(builder.or_(biased, whole((bias + info.nmant) << info.nmant)), typ)
        e = builder.fsub(number, ir.Constant(typ, [float(2**info.nmant + bias)] * typ.count))
        rest = builder.and_(moved, whole((1 << info.nmant) - 1))
        m = builder.bitcast(builder.add(rest, whole(least)), typ)
        return context.make_tuple(builder, sig.return_type, [e, m])

    return types.UniTuple(x, 2)(x), codegen


# (log((1 + s) / (1 - s)) / s - 2) / s**2 as a polynomial in s**2 for |s| <= 1/3, minimax by Remez' algorithm in 50
# digits. The logarithm is off by 1.3e-18 of itself in float64, and by 1.1e-10 in float32, where the coefficients were
# rounded one by one and the others fitted again.
_LOG = {
    float32: (0.66666675, 0.3999895, 0.28615218, 0.21443719, 0.24246344),
    float64: (
        0.66666666666666309775,
        0.40000000000155094816,
        0.28571428548120110074,
        0.22222223953540246525,
        0.181817444822195362,
        0.1538654833493336615,
        0.13301122043552422999,
        0.12104940244242780997,
        0.08344989707110190146,
        0.17009726235830346093,
    ),
}


def _below_line(dtype: types.Float) -> Any:
    """A function of x that gives x - log(1 + x), for x from -1/2 to 1.

    With s = x / (2 + x), so that 1 + x = (1 + s) / (1 - s), it is x²/2 - s (x²/2 + s² polynomial(s²)), where the
    rounding of s matters least (e_log.c of fdlibm).
    """
    polynomial = _polynomial(_LOG[dtype])

    def below_line(x):
        s = x / (x + 2.0)
        square = s * s
        half = 0.5 * x * x
        return half - s * (half + square * polynomial(square))

    return inline(below_line)


def _log(dtype: types.Float) -> Any:
    """log x = e ln(2) + log m with x = 2**e * m. Subnormal numbers are scaled to normal ones first."""
    info = np.finfo(dtype.name)
    tiny, largest, least = float(info.tiny), float(info.max), 2.0 ** (info.minexp - info.nmant)
    places = info.nmant + 1.0
    scale = 2.0**places
    high, low = _EXP[dtype].ln2
    infinity, nan = math.inf, math.nan
    below_line = _below_line(dtype)

    def log(x):
        e, m = _exponent_and_mantissa(select(x, tiny, x, x * scale))
        e = e + select(x, tiny, 0.0, -places)
        f = m - 1.0
        value = e * high + (f - (below_line(f) - e * low))
        of_none = select(x, -least, -infinity, nan)  # x is 0, negative or NaN
        return select(x, 0.0, select(x, largest, x, value), of_none)

    return inline(log)


def _softplus(dtype: types.Float) -> Any:
    """max(x, 0) + log(1 + E) with E = exp(-|x|), which is computed scaled, since it may be subnormal."""
    e = _EXP[dtype]
    last, unscaled = e.large, e.one
    exponential = _exponential(dtype, 1.0, 1.0 / e.one, *e.ln2)
    below_line = _below_line(dtype)

    def softplus(x):
        p, m = exponential(minimum(absolute(x), last))
        s = _from_exponent(p)
        power = (s * m + s) * unscaled
        return (maximum(x, 0.0) - below_line(power)) + power

    return inline(softplus)


def _activation(name: Callable[..., Any], implement: Callable[[types.Float], Any]) -> None:
    @overload(name)
    def choose(x):
        if not isinstance(x, Vector):
            return None
        function = implement(x.dtype)
        return lambda x: function(x)


_activation(activations.tanh, _tanh)
_activation(activations.sigmoid, _sigmoid)
_activation(activations.exp, _exp)
_activation(activations.log, _log)
_activation(activations.softplus, _softplus)
