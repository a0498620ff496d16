"""The vanilla recurrent cell (Elman 1990)."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import tanh


@cell(gates="a")
def rnn(x: Any, s: Any) -> Any:
    return tanh(x.a), {}
