"""The minimal gated unit without a recurrent product (Feng et al. 2024, "Were RNNs all we needed?")."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid


@cell(x_gates="z n")
def mingru(x: Any, s: Any) -> Any:
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * x.n, {}
