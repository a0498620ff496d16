"""The multiplicative LSTM (Krause et al. 2016): its gates see m, what the input makes of a unit times what h does."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import product, sigmoid, tanh


@cell(x_gates="i f g o m_x", h_gates="m_h", states="c", weights="u_i u_f u_g u_o")
def multiplicative_lstm(x: Any, s: Any) -> Any:
    m = x.m_x * x.m_h
    i, f, o = (sigmoid(getattr(x, gate) + product(f"u_{gate}", m)) for gate in "ifo")
    c = f * s.c + i * tanh(x.g + product("u_g", m))
    return o * tanh(c), {"c": c}
