"""The vanilla recurrent cell (Elman 1990): ``h' = tanh(a)``, a the one gate.

Nothing is saved: backward needs only h'.
"""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.cells.activations import tanh


def forward(gates: Any, states: Any) -> Any:
    (a,) = gates
    return tanh(a), (), ()


def backward(dh: Any, dstates: Any, h: Any, saved: Any, states: Any, previous: Any) -> Any:
    return (dh * (1.0 - h * h),), ()
