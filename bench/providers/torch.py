"""torch: ``torch.nn.LSTM``, ``RNN`` or ``GRU`` in inference mode, and with autograd's gradients of all it is given."""

from __future__ import annotations

from typing import Any

import torch

from ..problem import Outputs, Problem, Runner, alone, named


def setup(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def inference(problem: Problem, modules: Any = torch.nn) -> Runner:
    """``modules``: what has ``LSTM``, ``RNN`` and ``GRU``."""
    lstm = layer(problem, modules).eval()
    x, state = torch.from_numpy(problem.x), alone(tuple(map(torch.from_numpy, problem.state)))

    def call() -> Any:
        with torch.inference_mode():
            return lstm(x, state)

    def outputs(result: Any) -> Outputs:
        y, final = result
        return {name: value.numpy() for name, value in {"y": y, **named(problem.case, final)}.items()}

    return call, outputs


def training(problem: Problem, modules: Any = torch.nn) -> Runner:
    lstm = layer(problem, modules)
    inputs = [torch.from_numpy(value).requires_grad_() for value in (problem.x, *problem.state)]
    upstream = [torch.from_numpy(value) for value in (problem.dy, *problem.dstate)]
    parameters = [parameter for _, parameter in lstm.named_parameters()]
    names = [f"d{name}" for name, _ in lstm.named_parameters()]
    (x, *parts), of_state = inputs, list(named(problem.case, problem.state))
    state = alone(tuple(parts))

    def call() -> Any:
        y, final = lstm(x, state)
        results = (y, *named(problem.case, final).values())
        return results, torch.autograd.grad(results, [*inputs, *parameters], upstream)

    def outputs(result: Any) -> Outputs:
        forward, gradients = result
        keys = ("y", *of_state, "dx", *(f"d{name}0" for name in of_state), *names)
        return {key: value.detach().numpy() for key, value in zip(keys, (*forward, *gradients), strict=True)}

    return call, outputs


def layer(problem: Problem, modules: Any) -> torch.nn.Module:
    case = problem.case
    if case.cell not in ("lstm", "rnn", "gru") or case.heads > 1 or case.resets:
        raise ValueError(f"it has no layer of {case.label}")
    options: dict[str, Any] = {"proj_size": case.projection} if case.cell == "lstm" else {}
    lstm: torch.nn.Module = getattr(modules, case.cell.upper())(
        case.features,
        case.hidden,
        case.layers,
        bias=bool(case.bias),
        bidirectional=case.directions == 2,
        dtype=getattr(torch, case.dtype),
        **options,
    )
    lstm.load_state_dict({name: torch.from_numpy(value) for name, value in problem.params.items()})
    return lstm
