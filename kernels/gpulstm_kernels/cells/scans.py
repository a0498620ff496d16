"""Recurrences without a product of h, whose coefficients at all steps are known: what an LSTM's or an sLSTM's states
are once its outputs are.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import abs, maximum, where


def at_least_one(v: Any) -> Any:
    """max(v, 1), with half the gradient at 1, as torch's maximum has it."""
    return 0.5 * (v + 1 + abs(v - 1))


@cell(x_gates="a b")
def linear_scan(x: Any, s: Any) -> Any:
    return x.a * s.h + x.b, {}


@cell(x_gates="a b")
def floored_scan(x: Any, s: Any) -> Any:
    return at_least_one(x.a * s.h + x.b), {}


@cell(x_gates="i f", inputs="first")
def maximum_scan(x: Any, s: Any, i: Any) -> Any:
    return where(i.first, x.i, maximum(x.i, s.h + x.f)), {}
