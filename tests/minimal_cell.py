"""A cell that only tests know: two gates, two states, and h that is none of them.

``a' = f∘a + (1 - f)∘g``, ``b' = a - b/2``, ``h' = tanh(a')·f + b'/4``. Saved for backward: f, g.
"""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.cells.activations import sigmoid, tanh


def forward(gates: Any, states: Any) -> Any:
    f, g = gates
    a, b = states
    f, g = sigmoid(f), tanh(g)
    new_a, new_b = f * a + (1.0 - f) * g, a - b * 0.5
    return tanh(new_a) * f + new_b * 0.25, (new_a, new_b), (f, g)


def backward(dh: Any, dstates: Any, h: Any, saved: Any, states: Any, previous: Any) -> Any:
    f, g = saved
    tanh_a = tanh(states[0])
    da = dstates[0] + dh * f * (1.0 - tanh_a * tanh_a)
    db = dstates[1] + dh * 0.25
    df = (da * (previous[0] - g) + dh * tanh_a) * f * (1.0 - f)
    dg = da * (1.0 - f) * (1.0 - g * g)
    return (df, dg), (da * f + db, -db * 0.5)
