"""The sLSTM (Beck et al. 2024, xLSTM): exponential gates, which a running maximum m keeps in range.

As FlashRNN computes it, with m = i where nothing was accumulated yet and a normaliser n of at least 1.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import exp, maximum, sigmoid, softplus, tanh, where


@cell(gates="i f z o", states="c n m")
def slstm(x: Any, s: Any) -> Any:
    kept = s.m - softplus(-x.f)  # m + log sigmoid(f)
    m = where(s.n, maximum(x.i, kept), x.i)
    f, i = exp(kept - m), exp(x.i - m)
    c = f * s.c + i * tanh(x.z)
    n = maximum(f * s.n + i, 1.0)
    return sigmoid(x.o) * c / n, {"c": c, "n": n, "m": m}
