"""The LSTM cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

``c' = f∘c + i∘g``, ``h' = o∘tanh(c')``; i, f, o through the logistic function, g through tanh.
Saved for backward: i, f, g, o. tanh(c') is computed again from c'.
"""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.cells.activations import sigmoid, tanh


def forward(gates: Any, states: Any) -> Any:
    i, f, g, o = gates
    (c,) = states
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    return o * tanh(c), (c,), (i, f, g, o)


def backward(dh: Any, dstates: Any, h: Any, saved: Any, states: Any, previous: Any) -> Any:
    i, f, g, o = saved
    (c,), (c_previous,), (dc,) = states, previous, dstates
    tanh_c = tanh(c)
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c_previous * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return (di, df, dg, do), (dc * f,)
