"""The independently recurrent network (Li et al. 2018): each unit sees its own past alone."""

from __future__ import annotations

from typing import Any

from ..language.cell import cell
from ..language.operators import relu


@cell(x_gates="a", params="u")
def indrnn(x: Any, s: Any, p: Any) -> Any:
    return relu(x.a + p.u * s.h), {}
