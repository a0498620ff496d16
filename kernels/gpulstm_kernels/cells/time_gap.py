"""The LSTM whose memory fades with the time since the last step, as GRU-D's h does (Che et al. 2018).

``gap`` is that time, in any unit: c is multiplied by exp(-max(0, w gap + b)) before the step.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import exp, relu, sigmoid, tanh


@cell(gates="i f g o", states="c", params="w_gap b_gap", inputs="gap", differentiable="gap")
def time_gap(x: Any, s: Any, p: Any, i: Any) -> Any:
    faded = s.c * exp(-relu(p.w_gap * i.gap + p.b_gap))
    c = sigmoid(x.f) * faded + sigmoid(x.i) * tanh(x.g)
    return sigmoid(x.o) * tanh(c), {"c": c}
