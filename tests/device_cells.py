"""Cells in the language that only tests know; under no name that users could ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
from problems import Problem

from gpulstm_kernels.language.cell import cell
from gpulstm_kernels.language.operators import (
    abs,
    exp,
    hard_sigmoid,
    log,
    maximum,
    minimum,
    product,
    relu,
    row_mean,
    sigmoid,
    softplus,
    sqrt,
    tanh,
    where,
)


@cell(gates="z i f o", states="c n m")
def slstm(x: Any, s: Any) -> Any:
    """The sLSTM without heads (Beck et al. 2024, equations 8 to 17, with a sigmoid forget gate); n starts above 0.

    ``bound + log(1 + exp(-|x.f|))`` is the logarithm of sigmoid(x.f): no exponential of a large number is taken.
    """
    bound = minimum(x.f, 0.0)
    m = maximum(bound + s.m, x.i)
    f = exp(bound + s.m - m) / (1 + exp(-abs(x.f)))
    i = exp(x.i - m)
    c, n = f * s.c + i * tanh(x.z), f * s.n + i
    return sigmoid(x.o) * (c / n), {"c": c, "n": n, "m": m}


@cell(gates="a b c d e f g i j", states="s t u v w")
def nine_gates(x: Any, s: Any) -> Any:
    """No cell of the literature either: more gates and states than others have, and a state that stays as it was."""
    new = sigmoid(x.a) * s.s + tanh(x.b) * sigmoid(x.c)
    h = sigmoid(x.d) * tanh(new) + sigmoid(x.e) * s.t + tanh(x.f * s.u) * tanh(x.g)
    return h, {"s": new, "t": s.t, "u": sigmoid(x.i) * s.w, "v": 0.5 * s.v, "w": tanh(x.j) + 0.5 * s.v}


@cell(gates="a b", states="s t")
def every_operator(x: Any, s: Any) -> Any:
    """No cell of the literature: it uses each operator once, away from where a logarithm or a root is infinite."""
    positive = softplus(x.a) + exp(-abs(x.b)) + 0.5
    one = sqrt(positive) - log(positive) / (1 + sigmoid(s.t) ** 2)
    two = where(x.a, minimum(tanh(x.b), s.s), hard_sigmoid(s.t)) + relu(maximum(x.b, s.s) - one)
    return tanh(one * two), {"s": 0.5 * one - 0.25 * s.s, "t": tanh(two)}


@cell(gates="a b", x_gates="c d", h_gates="e", states="s t", params="p q r", inputs="i j k", differentiable="k i")
def all_parts(x: Any, s: Any, p: Any, i: Any) -> Any:
    """No cell of the literature: all that one may have, in counts that differ."""
    new = sigmoid(x.a + p.p * s.s) * s.s + tanh(x.c + p.q * i.i) * i.j
    h = tanh(new + x.d * x.e) + p.r * s.h * i.k + sigmoid(x.b) * s.t
    return h, {"s": new, "t": 0.5 * s.t + tanh(x.e)}


@cell(x_gates="a b", states="s t", params="p q", inputs="i j", differentiable="j")
def scanned(x: Any, s: Any, p: Any, i: Any) -> Any:
    """Likewise, but h enters no product."""
    new = sigmoid(x.a + p.p * s.h) * s.s + tanh(x.b) * i.i
    return tanh(new + p.q * i.j * s.t) + 0.25 * s.h, {"s": new, "t": 0.5 * s.t + i.j}


@cell(gates="a", x_gates="b", states="c", params="u", inputs="k j", differentiable="k", weights="w v")
def staged(x: Any, s: Any, p: Any, i: Any) -> Any:
    """Likewise in stages: products of a product, of h and with one weight, means of means, what is given."""
    first = product("w", s.h)
    c = 0.5 * s.c + tanh(x.a + first * i.k) * i.j
    second, third = product("v", tanh(first + p.u * c)), product("v", first)
    mean = row_mean(second * second)
    return tanh(second + third - row_mean(c * mean) + i.k) * sigmoid(x.b), {"c": c}


def started(p: Problem) -> Problem:
    """``p``, in which the sLSTM's n starts above 0, as the sums of exponentials that it is do."""
    if p.cell.name != "slstm":
        return p
    h, c, n, m = p.state
    return p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
