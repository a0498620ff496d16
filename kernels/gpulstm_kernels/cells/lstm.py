"""The LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh


@cell(gates="i f g o", states="c")
def lstm(x: Any, s: Any) -> Any:
    i, f, g, o = sigmoid(x.i), sigmoid(x.f), tanh(x.g), sigmoid(x.o)
    c = f * s.c + i * g
    return o * tanh(c), {"c": c}
