"""torch: ``torch.nn.LSTM``, which is cuDNN's, in the case's own dtype, with gradients of x and every parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...problem import Runner
from ...registry import Case
from ..grid import Contender
from ..problem import Arrays, Problem, element

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}


def misfit(case: Case, mode: str, contender: Contender) -> str | None:
    return None


def inference(problem: Problem, contender: Contender) -> Runner:
    lstm, x = _layer(problem).eval(), tensor(problem.x)

    def call() -> Any:
        with torch.inference_mode():
            return lstm(x)

    def outputs(result: Any) -> Arrays:
        y, (h, c) = result
        return {name: array(value, problem) for name, value in {"y": y, "h": h, "c": c}.items()}

    return call, outputs


def training(problem: Problem, contender: Contender) -> Runner:
    lstm, x, dy = _layer(problem), tensor(problem.x).requires_grad_(), tensor(problem.dy)
    names, parameters = zip(*lstm.named_parameters(), strict=True)

    def call() -> Any:
        y, (h, c) = lstm(x)
        return (y, h, c), torch.autograd.grad(y, [x, *parameters], dy)

    def outputs(result: Any) -> Arrays:
        forward, gradients = result
        keys = ("y", "h", "c", "dx", *(f"d{name}" for name in names))
        return {key: array(value, problem) for key, value in zip(keys, (*forward, *gradients), strict=True)}

    return call, outputs


def use_tf32(case: Case) -> None:
    """Let torch round to TF32 where the case says so, and only there."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = case.dtype == "tf32"


def tensor(value: Any) -> torch.Tensor:
    """An array of the device (or NumPy's) as a tensor on the same memory."""
    if value.dtype.name == "bfloat16":
        return torch.from_dlpack(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(value)


def array(value: torch.Tensor, problem: Problem) -> Any:
    """A tensor as an array of the library that the problem's are of."""
    value = value.detach().contiguous()
    if value.dtype == torch.bfloat16:
        return _from_dlpack(problem)(value.view(torch.int16)).view(element("bfloat16"))
    return _from_dlpack(problem)(value)


def _from_dlpack(problem: Problem) -> Any:
    if isinstance(problem.x, np.ndarray):
        return np.from_dlpack
    import cupy

    return cupy.from_dlpack


def _layer(problem: Problem) -> torch.nn.LSTM:
    use_tf32(problem.case)
    case = problem.case
    with torch.device(tensor(problem.x).device):
        lstm = torch.nn.LSTM(case.hidden, case.hidden, dtype=_DTYPES[case.dtype])
    lstm.load_state_dict({name: tensor(value) for name, value in problem.params.items()})
    return lstm
