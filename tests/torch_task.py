"""A small torch module for the tests of TorchModel, and a task that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpulstm import optim, parsing, train
from gpulstm.data import Batch
from gpulstm.torch import LSTM
from gpulstm.train import TorchModel, Trainer

TYPES = {"float32": torch.float32, "float64": torch.float64}


class Attention(torch.nn.Module):
    """An LSTM whose outputs (T, B, 5) are read by attention, then normalized by batch, dropped and mapped to (B, 2)."""

    def __init__(self, dtype: str = "float32", dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = LSTM(3, 5)
        self.query = torch.nn.Linear(5, 1, bias=False)
        self.norm = torch.nn.BatchNorm1d(5) if norm else torch.nn.Identity()
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(5, 2)
        self.to(TYPES[dtype])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        read = (torch.softmax(self.query(h), 0) * h).sum(0)
        result: torch.Tensor = self.head(self.dropout(self.norm(read)))
        return result


class Numbers:
    """Batches of numbers (6, 4, 3) and targets (4, 2), whose position is the number of the next one."""

    steps_per_epoch = 5

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype, self.position = dtype, 0

    @property
    def epoch(self) -> int:
        return self.position // self.steps_per_epoch

    def next(self) -> Batch:
        x = np.random.default_rng(self.position).standard_normal((6, 4, 3)).astype(self.dtype)
        self.position += 1
        return Batch({"inputs": x, "targets": x[:2, :, 0].T.copy()})

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = parsing.Fields(state, "state").integer("position")


def squares(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, batch["targets"])


class ModuleTask(train.Task):
    """Trains a module by the mean of squares."""

    metric = "rmse"

    def __init__(self, module: torch.nn.Module, dtype: str = "float32") -> None:
        self.config = {"kind": "module"}
        self.model = TorchModel(module, squares)
        self.batches = Numbers(dtype)

    def loss(self, output: Any, batch: Batch) -> Any:
        return self.model.loss(output, batch)

    def validate(self) -> dict[str, float]:
        batch = Numbers(self.batches.dtype).next()
        loss = float(np.mean((self.model(batch["inputs"]) - batch["targets"]) ** 2))
        return {"loss": loss, "rmse": loss**0.5}


def trainer(task: train.Task, optimizer: optim.Optimizer, out: Path | None = None, **options: Any) -> Trainer:
    return Trainer(task, optimizer, seed=3, out=out, shown=False, **options)
