"""The LSTM whose gates see the cell state (Gers, Schraudolph and Schmidhuber 2002)."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh


@cell(gates="i f g o", states="c", params="p_i p_f p_o")
def peephole(x: Any, s: Any, p: Any) -> Any:
    i, f = sigmoid(x.i + p.p_i * s.c), sigmoid(x.f + p.p_f * s.c)
    c = f * s.c + i * tanh(x.g)
    return sigmoid(x.o + p.p_o * c) * tanh(c), {"c": c}
