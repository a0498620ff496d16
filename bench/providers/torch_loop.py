"""A cell as one writes it in torch, a loop over steps (:mod:`bench.torch_loops`), eager; autograd for its gradients."""

from __future__ import annotations

from typing import Any

import torch

from .. import torch_loops
from ..problem import Outputs, Problem, Runner, named
from ..torch_loops import State, Tensor, Weights
from .torch import setup as setup


def positive(n: Tensor) -> Tensor:
    return n.relu() + n.clamp(max=0).sigmoid()


def mingru_positive(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    z, n = x.chunk(2, dim=1)
    return ((1 - z.sigmoid()) * state[0] + z.sigmoid() * positive(n),)


def minlstm_positive(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    a, f, n = x.chunk(3, dim=1)
    a, f = a.sigmoid(), f.sigmoid()
    return (f / (f + a) * state[0] + a / (f + a) * positive(n),)


STEPS = {**torch_loops.CELLS, "mingru_positive": mingru_positive, "minlstm_positive": minlstm_positive}


def forward(problem: Problem, leaves: dict[str, Tensor]) -> tuple[Tensor, State]:
    """y and the final state (B, H) of the leaves."""
    case = problem.case
    weights = {name.removesuffix("_l0"): leaves[name] for name in problem.params}
    state = tuple(leaves[f"{name}0"][0] for name in named(case, problem.state))
    inputs = {name: leaves[f"inputs.{name}"] for name in problem.inputs}
    resets = None if problem.resets is None else torch.from_numpy(problem.resets)
    return torch_loops.loop(STEPS[case.cell], leaves["x"], state, weights, inputs, resets)


def inference(problem: Problem, run: Any = forward) -> Runner:
    """``run``: y and the final state, of a problem and its tensors by name."""
    leaves = tensors(problem)

    def call() -> Any:
        with torch.no_grad():
            return run(problem, leaves)

    return call, lambda result: arrays(problem, *result)


def training(problem: Problem, run: Any = forward) -> Runner:
    leaves = tensors(problem)
    cell = problem.case.of_cell
    wanted = {name: value for name, value in leaves.items() if not name.startswith("inputs.")}
    wanted |= {f"inputs.{name}": leaves[f"inputs.{name}"] for name in cell.differentiable}
    for value in wanted.values():
        value.requires_grad_()
    upstream = [torch.from_numpy(problem.dy), *(torch.from_numpy(part[0]) for part in problem.dstate)]

    def call() -> Any:
        y, final = run(problem, leaves)
        return (y, final), torch.autograd.grad((y, *final), list(wanted.values()), upstream)

    def outputs(result: Any) -> Outputs:
        values, gradients = result
        found = {f"d{name}": value.numpy() for name, value in zip(wanted, gradients, strict=True)}
        return arrays(problem, *values) | found

    return call, outputs


def tensors(problem: Problem) -> dict[str, Tensor]:
    """x, h0 and what else is carried, parameters and inputs by the names of their gradients.

    Raises:
        ValueError: the case has more than one layer or direction, or a projection.
    """
    case = problem.case
    if (case.layers, case.directions, case.projection) != (1, 1, 0):
        raise ValueError(f"it is measured with one layer of one direction, not {case.label}")
    values = {"x": problem.x, **named(case, problem.state, suffix="0"), **problem.params}
    values |= {f"inputs.{name}": value for name, value in problem.inputs.items()}
    return {name: torch.from_numpy(value) for name, value in values.items()}


def arrays(problem: Problem, y: Tensor, final: State) -> Outputs:
    values = {"y": y, **named(problem.case, tuple(part[None] for part in final))}
    return {name: value.detach().numpy() for name, value in values.items()}
