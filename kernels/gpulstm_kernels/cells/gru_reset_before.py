"""The gated recurrent unit as first published (Cho et al. 2014), Keras' with reset_after=False: r scales h itself."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import product, sigmoid, tanh


@cell(gates="r z", x_gates="n", weights="u")
def gru_reset_before(x: Any, s: Any) -> Any:
    r, z = sigmoid(x.r), sigmoid(x.z)
    return (1 - z) * tanh(x.n + product("u", r * s.h)) + z * s.h, {}
