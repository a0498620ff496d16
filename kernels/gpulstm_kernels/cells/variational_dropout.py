"""The LSTM with variational dropout of h (Gal and Ghahramani 2016): one mask for all steps of a sequence.

``mask`` multiplies h before all four products: 0 or 1 / (1 - p) in training, 1 in inference. A layer draws it once a
sequence, as in ``noise={"mask": 0.25}``.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import product, sigmoid, tanh


@cell(x_gates="i f g o", states="c", inputs="mask", weights="u_i u_f u_g u_o", noise="mask:dropout:sequence")
def variational_dropout(x: Any, s: Any, i: Any) -> Any:
    h = i.mask * s.h
    i_, f, o = (sigmoid(getattr(x, gate) + product(f"u_{gate}", h)) for gate in "ifo")
    c = f * s.c + i_ * tanh(x.g + product("u_g", h))
    return o * tanh(c), {"c": c}
