"""The layer-norm LSTM (Ba, Kiros and Hinton 2016): the products of x and of h are normalised, each over all of its
gates, and c where h is made of it. The gains and shifts are parameters, one a unit and gate.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh
from .layer_norm import normalized

GAINS = " ".join(f"gain_x_{gate}=1 gain_h_{gate}=1 shift_{gate}=0" for gate in "ifgo")


@cell(x_gates="i_x f_x g_x o_x", h_gates="i_h f_h g_h o_h", states="c", params=f"{GAINS} gain_c=1 shift_c=0")
def layer_norm_lstm(x: Any, s: Any, p: Any) -> Any:
    of_x = normalized([x.i_x, x.f_x, x.g_x, x.o_x])
    of_h = normalized([x.i_h, x.f_h, x.g_h, x.o_h])
    i = p.gain_x_i * of_x[0] + p.gain_h_i * of_h[0] + p.shift_i
    f = p.gain_x_f * of_x[1] + p.gain_h_f * of_h[1] + p.shift_f
    g = p.gain_x_g * of_x[2] + p.gain_h_g * of_h[2] + p.shift_g
    o = p.gain_x_o * of_x[3] + p.gain_h_o * of_h[3] + p.shift_o
    c = sigmoid(f) * s.c + sigmoid(i) * tanh(g)
    (n,) = normalized([c])
    return sigmoid(o) * tanh(p.gain_c * n + p.shift_c), {"c": c}
