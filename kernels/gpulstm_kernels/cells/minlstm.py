"""The minimal LSTM without a recurrent product (Feng et al. 2024, "Were RNNs all we needed?")."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid


@cell(x_gates="i f n")
def minlstm(x: Any, s: Any) -> Any:
    i, f = sigmoid(x.i), sigmoid(x.f)
    return (f * s.h + i * x.n) / (f + i), {}
