"""The vanilla recurrent cell with a rectifier (Le, Jaitly & Hinton 2015)."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import relu


@cell(gates="a")
def rnn_relu(x: Any, s: Any) -> Any:
    return relu(x.a), {}
