"""The truth: gpulstm's reference backend, plain NumPy in float64. Never timed."""

from __future__ import annotations

import gpulstm

from ..problem import Problem, Runner
from . import gpulstm as provider


def setup(threads: int) -> None:
    gpulstm.set_backend("reference")


def inference(problem: Problem) -> Runner:
    return provider.inference(problem.astype("float64"))


def training(problem: Problem) -> Runner:
    return provider.training(problem.astype("float64"))
