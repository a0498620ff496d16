"""Haste (``haste_pytorch``): float32 only, gates in the order i, g, f, o, matrices transposed."""

from __future__ import annotations

from typing import Any

import haste_pytorch
import torch

from ...problem import Runner
from ...registry import Case
from ..grid import Contender
from ..problem import Arrays, Problem
from .torch import array, tensor, use_tf32


def misfit(case: Case, mode: str, contender: Contender) -> str | None:
    return None if case.dtype in ("float32", "tf32") else "it computes in float32"


def inference(problem: Problem, contender: Contender) -> Runner:
    lstm, x = _layer(problem).eval(), tensor(problem.x)

    def call() -> Any:
        with torch.inference_mode():
            return lstm(x)

    return call, lambda result: {"y": array(result[0], problem)}


def training(problem: Problem, contender: Contender) -> Runner:
    lstm, x, dy = _layer(problem).train(), tensor(problem.x).requires_grad_(), tensor(problem.dy)
    wanted = {"dx": x, "dweight_ih_l0": lstm.kernel, "dweight_hh_l0": lstm.recurrent_kernel}

    def call() -> Any:
        y, _ = lstm(x)
        return y, torch.autograd.grad(y, list(wanted.values()), dy)

    def outputs(result: Any) -> Arrays:
        y, (dx, *weights) = result
        found = dict(zip(("dweight_ih_l0", "dweight_hh_l0"), weights, strict=True))
        return {
            "y": array(y, problem),
            "dx": array(dx, problem),
            **{name: array(_reordered(value.T), problem) for name, value in found.items()},
        }

    return call, outputs


def _reordered(value: torch.Tensor) -> torch.Tensor:
    """Gates i, f, g, o as i, g, f, o, or back."""
    i, second, third, o = value.chunk(4)
    return torch.cat([i, third, second, o])


def _layer(problem: Problem) -> Any:
    use_tf32(problem.case)
    lstm = haste_pytorch.LSTM(problem.case.hidden, problem.case.hidden)
    params = {name: _reordered(tensor(value)) for name, value in problem.params.items()}
    with torch.no_grad():
        lstm.kernel.copy_(params["weight_ih_l0"].T)
        lstm.recurrent_kernel.copy_(params["weight_hh_l0"].T)
        lstm.bias.copy_(params["bias_ih_l0"] + params["bias_hh_l0"])
    return lstm
