"""A cell that only tests know: an LSTM whose forget gate is 1 - i (Greff et al. 2017, "coupled input and forget gate").

``c' = (1 - i)∘c + i∘g``, ``h' = o∘tanh(c')``. Saved for backward: i, g, o.
"""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.cells.activations import sigmoid, tanh


def forward(gates: Any, states: Any) -> Any:
    i, g, o = gates
    (c,) = states
    i, g, o = sigmoid(i), tanh(g), sigmoid(o)
    c = (1.0 - i) * c + i * g
    return o * tanh(c), (c,), (i, g, o)


def backward(dh: Any, dstates: Any, h: Any, saved: Any, states: Any, previous: Any) -> Any:
    i, g, o = saved
    (c,), (c_previous,), (dc,) = states, previous, dstates
    tanh_c = tanh(c)
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * (g - c_previous) * i * (1.0 - i)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return (di, dg, do), (dc * (1.0 - i),)
