"""The layer-norm LSTM that normalises the sums of each gate by itself, and the c that it carries.

As LayerNormBasicLSTMCell of TensorFlow's contrib has it (Ba, Kiros and Hinton 2016, section 5.4).
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh
from .layer_norm import normalized

GAINS = " ".join(f"gain_{name}=1 shift_{name}=0" for name in "ifgoc")


@cell(gates="i f g o", states="c", params=GAINS)
def layer_norm_lstm_by_gate(x: Any, s: Any, p: Any) -> Any:
    def normal(name: str, value: Any) -> Any:
        return getattr(p, f"gain_{name}") * normalized([value])[0] + getattr(p, f"shift_{name}")

    i, f, g, o = (normal(name, getattr(x, name)) for name in "ifgo")
    c = normal("c", sigmoid(f) * s.c + sigmoid(i) * tanh(g))
    return sigmoid(o) * tanh(c), {"c": c}
