"""The gated recurrent unit (Cho et al. 2014) as cuDNN and torch have it: the reset gate scales the product of h."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh


@cell(gates="r z", x_gates="n_x", h_gates="n_h")
def gru(x: Any, s: Any) -> Any:
    r, z = sigmoid(x.r), sigmoid(x.z)
    n = tanh(x.n_x + r * x.n_h)
    return (1 - z) * n + z * s.h, {}
