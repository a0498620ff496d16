"""FlashRNN (``pip install flashrnn``; it compiles with nvcc), fused, after a product for the input as torch does it."""

from __future__ import annotations

from typing import Any

import torch
from flashrnn import flashrnn

from ...problem import Runner
from ...registry import Case
from ..grid import Contender
from ..problem import Arrays, Problem
from .torch import array, tensor, use_tf32


def misfit(case: Case, mode: str, contender: Contender) -> str | None:
    return None if case.dtype in ("float16", "bfloat16") else "its fused kernels multiply half types"


def inference(problem: Problem, contender: Contender) -> Runner:
    forward, _ = _layer(problem)

    def call() -> Any:
        with torch.inference_mode():
            return forward()

    return call, lambda y: {"y": array(y, problem)}


def training(problem: Problem, contender: Contender) -> Runner:
    forward, leaves = _layer(problem)
    dy = tensor(problem.dy)
    for leaf in leaves.values():
        leaf.requires_grad_()

    def call() -> Any:
        y = forward()
        return y, torch.autograd.grad(y, list(leaves.values()), dy)

    def outputs(result: Any) -> Arrays:
        y, gradients = result
        found = {f"d{name}": array(value, problem) for name, value in zip(leaves, gradients, strict=True)}
        return {"y": array(y, problem), **found}

    return call, outputs


def _layer(problem: Problem) -> tuple[Any, dict[str, torch.Tensor]]:
    """The layer as a function, and what it is differentiated by."""
    use_tf32(problem.case)
    steps, batch, hidden = problem.x.shape
    leaves = {"x": tensor(problem.x), **{name: tensor(value) for name, value in problem.params.items()}}

    def forward() -> torch.Tensor:
        bias = leaves["bias_ih_l0"] + leaves["bias_hh_l0"]
        gates = torch.nn.functional.linear(leaves["x"], leaves["weight_ih_l0"])
        gates = gates.view(steps, batch, 4, 1, hidden).transpose(0, 1)  # (B, T, gates, heads, units)
        states, _ = flashrnn(
            gates.contiguous(),
            leaves["weight_hh_l0"].view(4, 1, hidden, hidden),
            bias.view(4, 1, hidden),
            function="lstm",
            backend="cuda_fused",
            dtype=problem.case.dtype,
        )
        return states[0].reshape(batch, steps, hidden).transpose(0, 1)  # of (h and c, B, T, heads, units)

    return forward, leaves
