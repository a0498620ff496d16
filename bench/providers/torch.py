"""torch: ``torch.nn.LSTM`` in inference mode, and with autograd's gradients of every input and parameter."""

from __future__ import annotations

from typing import Any

import torch

from ..problem import Outputs, Problem, Runner


def setup(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def inference(problem: Problem, kind: type[torch.nn.Module] = torch.nn.LSTM) -> Runner:
    lstm = layer(problem, kind).eval()
    x, h0, c0 = map(torch.from_numpy, (problem.x, problem.h0, problem.c0))

    def call() -> Any:
        with torch.inference_mode():
            return lstm(x, (h0, c0))

    def outputs(result: Any) -> Outputs:
        y, (h, c) = result
        return {"y": y.numpy(), "h": h.numpy(), "c": c.numpy()}

    return call, outputs


def training(problem: Problem, kind: type[torch.nn.Module] = torch.nn.LSTM) -> Runner:
    lstm = layer(problem, kind)
    inputs = [torch.from_numpy(value).requires_grad_() for value in (problem.x, problem.h0, problem.c0)]
    upstream = [torch.from_numpy(value) for value in (problem.dy, problem.dh, problem.dc)]
    names, parameters = zip(*lstm.named_parameters(), strict=True)
    x, h0, c0 = inputs

    def call() -> Any:
        y, (h, c) = lstm(x, (h0, c0))
        return (y, h, c), torch.autograd.grad((y, h, c), [*inputs, *parameters], upstream)

    def outputs(result: Any) -> Outputs:
        forward, gradients = result
        keys = ("y", "h", "c", "dx", "dh0", "dc0", *(f"d{name}" for name in names))
        return {key: value.detach().numpy() for key, value in zip(keys, (*forward, *gradients), strict=True)}

    return call, outputs


def layer(problem: Problem, kind: type[torch.nn.Module]) -> torch.nn.Module:
    lstm = kind(problem.case.hidden, problem.case.hidden, dtype=getattr(torch, problem.case.dtype))
    lstm.load_state_dict({name: torch.from_numpy(value) for name, value in problem.params.items()})
    return lstm
