"""A small task for the tests of training, and what they compare of its runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gpulstm import nn, optim, train
from gpulstm.data import Batch, Lanes
from gpulstm.train import Trainer
from gpulstm.train.stored import flatten

TEXT = [bytes(range(65, 91)) * 4, b"hello world, hello lanes. " * 5, b"0123456789" * 9]


class Task(train.Task):
    """A small language model; ``failures`` maps the number of a loss to what is returned in its place."""

    metric = "perplexity"

    def __init__(self, *, optimizer: str = "adam", hidden: int = 6, dropout: float = 0.3, **failures: Any) -> None:
        rng = np.random.default_rng(1)
        self.config = {"hidden": hidden, "optimizer": optimizer}
        self.model = nn.Sequential(
            nn.Embedding(256, 5, seed=rng),
            nn.LSTM(5, hidden, 2, dropout=dropout, seed=rng),
            nn.RNN(hidden, hidden, seed=rng),
            nn.Dropout(dropout),
            nn.EveryStepHead(hidden, 256, seed=rng),
        )
        self.batches = Lanes(TEXT, batch=3, seq_len=7, seed=5)
        self.optimizer = optim.create(optimizer, lr=0.01)
        self.losses = 0
        self.on_loss: Any = None
        self.validations: list[float] = []

    def loss(self, output: Any, batch: Batch) -> tuple[float, Any]:
        self.losses += 1
        loss, gradient = nn.cross_entropy(output, batch["targets"])
        return (loss, gradient) if self.on_loss is None else self.on_loss(self.losses, loss, gradient)

    def validate(self) -> dict[str, float]:
        if self.validations:
            loss = self.validations.pop(0)
        else:
            ids = np.frombuffer(TEXT[1], np.uint8)[:, None]
            loss, _ = nn.cross_entropy(self.model(ids[:-1])[0], ids[1:])
        return {"loss": loss, "perplexity": math.exp(loss)}


def make(out: Path | None = None, task: Task | None = None, schedule: Any = None, **options: Any) -> Trainer:
    task = task or Task()
    if schedule is None:
        schedule = optim.Plateau(0.01, patience=0)
    return Trainer(task, task.optimizer, schedule, seed=3, out=out, **{"shown": False, **options})


def everything(trainer: Trainer) -> dict[str, np.ndarray]:
    """All arrays that a run ends with."""
    arrays = {f"model.{name}": value.copy() for name, value in trainer.task.model.params.items()}
    arrays |= {f"optimizer.{name}": value for name, value in trainer.optimizer.state_dict().items()}
    arrays |= {f"schedule.{name}": value for name, value in trainer.schedule.state_dict().items()}
    return arrays | flatten(trainer.state, "state")


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
