"""FlashRNN's ``vanilla``, its sLSTM in torch for machines without CUDA (``pip install flashrnn``)."""

from __future__ import annotations

import torch
from flashrnn import flashrnn

from ..problem import Problem, Runner
from ..torch_loops import State, Tensor
from . import torch_loop

setup = torch_loop.setup


def forward(problem: Problem, leaves: dict[str, Tensor]) -> tuple[Tensor, State]:
    """It takes Wx (B, T, gates, heads, units), R (gates, heads, out, in), states (of them, B, 1, heads, units)."""
    case = problem.case
    heads, batch = case.heads, case.batch
    units = case.hidden // heads
    rows = torch.nn.functional.linear(leaves["x"], leaves["weight_ih_l0"], leaves.get("bias_ih_l0"))
    weight = leaves["weight_hh_l0"].view(heads, 4, units, units).transpose(0, 1)
    bias = leaves["bias_hh_l0"] if case.bias else torch.zeros(4 * case.hidden)
    states = torch.stack([leaves[f"{name}0"][0] for name in ("h", "c", "n", "m")])
    every, last = flashrnn(
        rows.view(case.steps, batch, 4, heads, units).transpose(0, 1),
        weight,
        bias.view(4, heads, units),
        states.view(4, batch, 1, heads, units),
        function="slstm",
        backend="vanilla",
        dtype="float32",
    )
    y = every[0].reshape(batch, case.steps, case.hidden).transpose(0, 1)
    return y, tuple(last.reshape(4, batch, case.hidden))


def inference(problem: Problem) -> Runner:
    check(problem)
    return torch_loop.inference(problem, forward)


def training(problem: Problem) -> Runner:
    check(problem)
    return torch_loop.training(problem, forward)


def check(problem: Problem) -> None:
    """
    Raises:
        ValueError: the case is no sLSTM in float32.
    """
    case = problem.case
    if case.cell != "slstm" or case.dtype != "float32" or case.resets:
        raise ValueError(f"it is measured with an sLSTM in float32 and without resets, not {case.label}")
