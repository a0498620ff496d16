"""One process of DistributedDataParallel on gloo: ``ddp_worker.py RANK FOLDER``; see test_dropin_training.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import gpulstm
from gpulstm import optim, train
from gpulstm.data import Batch
from gpulstm.torch import LSTM

WORLD = 2


class Model(torch.nn.Module):
    """Two layers, both directions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = LSTM(3, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = torch.nn.Linear(16, 2)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.lstm(x)[0])
        return y


def batch() -> torch.Tensor:
    """The whole batch; each process takes its share."""
    return torch.randn(2 * WORLD, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Task(train.Task):
    """Trains a model on one share of each batch."""

    metric = "loss"

    def __init__(self, model: torch.nn.Module, share: slice) -> None:
        self.config = {}
        self.model = train.TorchModel(model, lambda output, batch: output.sin().mean())
        self.batches: Any = SimpleNamespace(steps_per_epoch=1, epoch=0, next=lambda: Batch({"inputs": x}))
        x = batch().numpy()[share]

    def loss(self, output: Any, batch: Batch) -> Any:
        return self.model.loss(output, batch)


def trained(model: torch.nn.Module, share: slice) -> dict[str, np.ndarray]:
    """The parameters after some steps, by their names in the module that processes share."""
    task = Task(model, share)
    train.Trainer(task, optim.Adam(0.01), clip=0.1, shown=False).run(steps=5)
    return {name.removeprefix("module."): value for name, value in task.model.params.items()}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    gpulstm.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), WORLD)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    model = DistributedDataParallel(Model())
    for _ in range(2):  # the buckets are built anew after the first pass
        model.zero_grad()
        model(batch().chunk(WORLD)[rank]).sin().mean().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.module.named_parameters()}
    np.savez(folder / f"{rank}.npz", **gradients)
    model = DistributedDataParallel(Model())
    np.savez(folder / f"trained-{rank}.npz", **trained(model, slice(2 * rank, 2 * rank + 2)))
    os._exit(0)  # what tears gloo down sometimes waits for the process that went first


if __name__ == "__main__":
    main()
