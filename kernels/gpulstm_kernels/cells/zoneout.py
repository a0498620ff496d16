"""The LSTM with zoneout (Krueger et al. 2017): units keep their old h or c, by chance in training.

``keep_c`` and ``keep_h`` are 1 where the old value stays: random bits in training, their probability in inference. A
layer draws them, as in ``noise={"keep_c": 0.5, "keep_h": 0.05}``.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh


@cell(gates="i f g o", states="c", inputs="keep_c keep_h", noise="keep_c:bernoulli keep_h:bernoulli")
def zoneout(x: Any, s: Any, i: Any) -> Any:
    new = sigmoid(x.f) * s.c + sigmoid(x.i) * tanh(x.g)
    h = i.keep_h * s.h + (1 - i.keep_h) * (sigmoid(x.o) * tanh(new))
    return h, {"c": i.keep_c * s.c + (1 - i.keep_c) * new}
