"""The sLSTM (Beck et al. 2024, xLSTM) exactly as FlashRNN computes it from a state that is given.

What differs from :mod:`.slstm`: the call says with ``first`` at which step m begins as i, as FlashRNN does where n is
zero everywhere; and where n is at its floor of 1 half of a gradient passes, as torch's maximum has it.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import exp, maximum, sigmoid, softplus, tanh, where
from .scans import at_least_one


@cell(gates="i f z o", states="c n m", inputs="first")
def slstm_flashrnn(x: Any, s: Any, i: Any) -> Any:
    kept = s.m - softplus(-x.f)  # m + log sigmoid(f)
    m = where(i.first, x.i, maximum(x.i, kept))
    forget, add = exp(kept - m), exp(x.i - m)
    c, n = forget * s.c + add * tanh(x.z), at_least_one(forget * s.n + add)
    return sigmoid(x.o) * c / n, {"c": c, "n": n, "m": m}
