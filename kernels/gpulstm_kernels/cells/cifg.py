"""The LSTM with coupled input and forget gate (Greff et al. 2017): what is forgotten makes place for what comes."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh


@cell(gates="i g o", states="c")
def cifg(x: Any, s: Any) -> Any:
    i, g, o = sigmoid(x.i), tanh(x.g), sigmoid(x.o)
    c = (1 - i) * s.c + i * g
    return o * tanh(c), {"c": c}
