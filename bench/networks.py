"""The network of a case, and the two cells that only others' equations ask for.

minGRU-pytorch and its minLSTM (Feng et al. 2024, appendix B.3) work with logarithms, so h and what is added to it are
positive: that is g(n), n + 1/2 above 0 and sigmoid(n) below. gpulstm is timed beside them with the same equations.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gpulstm
from gpulstm.cells import minimum, relu, sigmoid
from gpulstm.config import Config

if TYPE_CHECKING:
    from .registry import Case


def positive(n: Any) -> Any:
    """n + 1/2 above 0, sigmoid(n) below."""
    return relu(n) + sigmoid(minimum(n, 0.0))


@gpulstm.cell(x_gates="z n")
def mingru_positive(x: Any, s: Any) -> Any:
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * positive(x.n), {}


@gpulstm.cell(x_gates="i f n")
def minlstm_positive(x: Any, s: Any) -> Any:
    i, f = sigmoid(x.i), sigmoid(x.f)
    return (f * s.h + i * positive(x.n)) / (f + i), {}


@functools.cache
def config(case: Case) -> Config:
    """The network of a case.

    Raises:
        ValueError: there is none such; the message says why.
    """
    return Config(
        gpulstm.cells.get(case.cell),
        case.features,
        case.hidden,
        case.layers,
        bool(case.bias),
        bidirectional=case.directions == 2,
        proj_size=case.projection,
        heads=case.heads,
    )
