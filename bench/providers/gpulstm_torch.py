"""gpulstm.torch: ``gpulstm.torch.LSTM`` where :mod:`bench.providers.torch` has ``torch.nn.LSTM``, all else alike."""

from __future__ import annotations

import gpulstm
import gpulstm.torch

from ..problem import Problem, Runner
from . import torch


def setup(threads: int) -> None:
    torch.setup(threads)
    gpulstm.set_num_threads(threads)


def inference(problem: Problem) -> Runner:
    return torch.inference(problem, gpulstm.torch)


def training(problem: Problem) -> Runner:
    return torch.training(problem, gpulstm.torch)
