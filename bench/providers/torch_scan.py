"""torch.nn.LSTM one step at a time, its state masked where a sequence begins anew: torchrl's "scan" does so."""

from __future__ import annotations

from functools import partial

import torch

from ..problem import Problem, Runner
from ..torch_loops import State, Tensor
from . import torch_loop

setup = torch_loop.setup


def forward(problem: Problem, leaves: dict[str, Tensor], lstm: torch.nn.LSTM) -> tuple[Tensor, State]:
    assert problem.resets is not None
    begins = torch.from_numpy(problem.resets)[:, None, :, None]
    parameters = {name: leaves[name] for name in problem.params}
    ys = []
    state: State = (leaves["h0"], leaves["c0"])
    for t, x in enumerate(leaves["x"].split(1)):
        state = tuple(torch.where(begins[t], torch.zeros_like(part), part) for part in state)
        y, state = torch.func.functional_call(lstm, parameters, (x, state))
        ys.append(y)
    return torch.cat(ys), tuple(part[0] for part in state)


def inference(problem: Problem) -> Runner:
    return torch_loop.inference(problem, partial(forward, lstm=layer(problem)))


def training(problem: Problem) -> Runner:
    return torch_loop.training(problem, partial(forward, lstm=layer(problem)))


def layer(problem: Problem) -> torch.nn.LSTM:
    """
    Raises:
        ValueError: the case is no LSTM with resets.
    """
    case = problem.case
    if case.cell != "lstm" or case.heads > 1 or problem.resets is None:
        raise ValueError(f"it is measured with an LSTM and resets, not {case.label}")
    return torch.nn.LSTM(case.features, case.hidden, bias=bool(case.bias), dtype=getattr(torch, case.dtype))
