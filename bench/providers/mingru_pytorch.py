"""minGRU-pytorch's minGRU and minLSTM, parallel scans of logarithms (``pip install minGRU-pytorch``).

Its cells have no biases and keep h positive (:mod:`bench.networks`). The minLSTM takes the h before the first step as a
pre-activation, so it is given that which g maps to h.
"""

from __future__ import annotations

from functools import partial

import torch
from minGRU_pytorch.minGRU import minGRU
from minGRU_pytorch.minLSTM import minLSTM

from ..problem import Problem, Runner
from ..torch_loops import State, Tensor
from . import torch_loop

setup = torch_loop.setup
CELLS = {  # the module, its matrix, and the order of the gates in it
    "mingru_positive": (minGRU, "to_hidden_and_gate", (1, 0)),
    "minlstm_positive": (minLSTM, "to_hidden_and_f_i_gate", (2, 1, 0)),
}


def forward(problem: Problem, leaves: dict[str, Tensor], module: torch.nn.Module) -> tuple[Tensor, State]:
    _, linear, order = CELLS[problem.case.cell]
    parts = leaves["weight_ih_l0"].chunk(len(order))
    h0 = leaves["h0"].transpose(0, 1)
    before = torch.where(h0 > 0.5, h0 - 0.5, h0.clamp(max=0.5).logit()) if len(order) == 3 else h0
    y, last = torch.func.functional_call(
        module,
        {f"{linear}.weight": torch.cat([parts[k] for k in order])},
        (leaves["x"].transpose(0, 1), before),
        {"return_next_prev_hidden": True},
    )
    return y.transpose(0, 1), (last[:, 0],)


def inference(problem: Problem) -> Runner:
    return torch_loop.inference(problem, partial(forward, module=layer(problem)))


def training(problem: Problem) -> Runner:
    return torch_loop.training(problem, partial(forward, module=layer(problem)))


def layer(problem: Problem) -> torch.nn.Module:
    """
    Raises:
        ValueError: the case is of another cell, or has what its modules have not.
    """
    case = problem.case
    if case.cell not in CELLS or case.bias or case.resets or case.features != case.hidden or case.steps == 1:
        raise ValueError(f"it is measured with {' and '.join(CELLS)} of many steps, I = H, bias=0, not {case.label}")
    module: torch.nn.Module = CELLS[case.cell][0](case.hidden).to(getattr(torch, case.dtype))
    return module
