"""The truth: gpulstm's reference backend, plain NumPy in float64. Never timed."""

from __future__ import annotations

from dataclasses import fields, replace

import gpulstm

from ..problem import Problem, Runner
from . import gpulstm as provider


def setup(threads: int) -> None:
    gpulstm.use_backend("reference")


def inference(problem: Problem) -> Runner:
    return provider.inference(widened(problem))


def training(problem: Problem) -> Runner:
    return provider.training(widened(problem))


def widened(problem: Problem) -> Problem:
    """The same numbers in float64."""
    arrays = {f.name: getattr(problem, f.name).astype("float64") for f in fields(problem) if f.type == "np.ndarray"}
    params = {name: value.astype("float64") for name, value in problem.params.items()}
    return replace(problem, case=replace(problem.case, dtype="float64"), params=params, **arrays)
