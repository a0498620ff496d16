"""The gated recurrent unit with layer normalisation of the products of x and of h (Ba, Kiros and Hinton 2016).

r and z are normalised together, n by itself, each for x and for h.
"""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import sigmoid, tanh
from .layer_norm import normalized

GAINS = " ".join(f"gain_{of}_{gate}=1 shift_{of}_{gate}=0" for gate in "rzn" for of in "xh")


@cell(x_gates="r_x z_x n_x", h_gates="r_h z_h n_h", params=GAINS)
def layer_norm_gru(x: Any, s: Any, p: Any) -> Any:
    def normal(of: str, gates: str) -> list[Any]:
        values = normalized([getattr(x, f"{gate}_{of}") for gate in gates])
        pairs = zip(gates, values, strict=True)
        return [getattr(p, f"gain_{of}_{gate}") * value + getattr(p, f"shift_{of}_{gate}") for gate, value in pairs]

    r, z = (sigmoid(of_x + of_h) for of_x, of_h in zip(normal("x", "rz"), normal("h", "rz"), strict=True))
    n = tanh(normal("x", "n")[0] + r * normal("h", "n")[0])
    return (1 - z) * n + z * s.h, {}
