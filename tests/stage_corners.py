"""Cells with stages that only tests know, each with something that a step may be cut wrongly at."""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.language.cell import cell
from gpulstm_kernels.language.operators import product, row_mean, sigmoid, sqrt, tanh, where


@cell(gates="a", weights="u")
def operand_is_mean(x: Any, s: Any) -> Any:
    """All units of a row share what is multiplied."""
    return tanh(x.a + product("u", row_mean(tanh(x.a)))), {}


@cell(gates="a b", states="c", weights="u")
def h_is_state(x: Any, s: Any) -> Any:
    """h and the new state are one value, and the product is of a state."""
    c = tanh(x.a + product("u", s.c)) + 0.5 * s.c * sigmoid(x.b)
    return c, {"c": c}


@cell(gates="a b", states="c d")
def state_stays(x: Any, s: Any) -> Any:
    """A state is passed on as it was."""
    c = tanh(x.a) + 0.5 * s.c
    return c - row_mean(c) * s.d + x.b, {"c": c, "d": s.d}


@cell(gates="a b", states="c")
def h_is_old_state(x: Any, s: Any) -> Any:
    """h is what a state was before the step."""
    return 1.0 * s.c, {"c": tanh(x.a) * row_mean(x.b) + 0.3 * s.h}


@cell(x_gates="a", weights="u v")
def no_recurrent_product(x: Any, s: Any) -> Any:
    """h enters products of the cell alone, two of one operand."""
    return tanh(x.a + product("u", s.h) * product("v", s.h)), {}


@cell(gates="a", states="c", weights="u")
def one_weight_thrice(x: Any, s: Any) -> Any:
    """Products of three operands with one weight."""
    p, q, r = product("u", s.h), product("u", s.c), product("u", tanh(x.a))
    return tanh(p + q * r), {"c": 0.5 * s.c + p}


@cell(gates="a b")
def numbers_for_gradients(x: Any, s: Any) -> Any:
    """What is linear, or decides only, has a gradient that is a number; and a mean of a mean times a value."""
    return x.a - row_mean(x.b) + where(x.b, 1.0, 0.5) + row_mean(row_mean(x.a) * x.a), {}


@cell(gates="a b c d e f g i j k", states="s")
def many_means(x: Any, s: Any) -> Any:
    """More means behind one stage than a block of a narrow row has threads."""
    values = [x.a, x.b, x.c, x.d, x.e, x.f, x.g, x.i, x.j, x.k] * 4
    means = [row_mean(tanh((1 + 0.1 * k) * value)) for k, value in enumerate(values)]
    h = tanh(sum(mean * value for mean, value in zip(means, values, strict=True))) + 0.1 * s.s
    return h, {"s": 0.5 * s.s + tanh(sum(means[:3]) * x.a)}


@cell(gates="a", params="p", weights="u v")
def mean_between_products(x: Any, s: Any, p: Any) -> Any:
    """Means of products, which later products and their launches need."""
    q = product("u", tanh(x.a))
    m = row_mean(q * q)
    r = product("v", q / sqrt(m + 0.1))
    return tanh(r * p.p - row_mean(r) + product("u", q * m)), {}


@cell(gates="a b", states="c")
def early_and_late(x: Any, s: Any) -> Any:
    """The gradient of c is that of a, which is there in the first stage, but c's is to be read in the second one."""
    c = s.c + x.a
    return 2 * c + (x.b - row_mean(x.b)), {"c": c}


CORNERS = (
    operand_is_mean,
    h_is_state,
    state_stays,
    h_is_old_state,
    no_recurrent_product,
    one_weight_thrice,
    numbers_for_gradients,
    many_means,
    mean_between_products,
    early_and_late,
)
FEW = (h_is_state, numbers_for_gradients, many_means, mean_between_products, early_and_late)
"""Those for kernels that take long to compile or to interpret."""
