"""The LSTM with dropout of what its cell state is given (Semeniuta, Severyn and Barth 2016): no memory is lost.

``mask`` multiplies the candidate: 0 or 1 / (1 - p) in training, 1 in inference. A layer draws it for each step, as in
``noise={"mask": 0.25}``, or once a sequence, ``noise={"mask": (0.25, "sequence")}``.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh


@cell(gates="i f g o", states="c", inputs="mask", noise="mask:dropout")
def recurrent_dropout(x: Any, s: Any, i: Any) -> Any:
    c = sigmoid(x.f) * s.c + sigmoid(x.i) * (i.mask * tanh(x.g))
    return sigmoid(x.o) * tanh(c), {"c": c}
