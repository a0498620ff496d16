"""A few epochs of Lightning's Trainer with torch's LSTM and with gpulstm's; prints their losses as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytorch_lightning
import torch

import gpulstm.torch


class Model(pytorch_lightning.LightningModule):
    def __init__(self, library: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = library.LSTM(3, 8, batch_first=True, num_layers=2)
        self.head = torch.nn.Linear(8, 1)
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.head(self.lstm(x)[0][:, -1]), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(precision: Any) -> None:
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # its LSTM fails on CPUs without bfloat16
    x = torch.randn(64, 10, 3, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(x, x.mean((1, 2))[:, None])
    losses = []
    for library in (torch.nn, gpulstm.torch):
        model = Model(library)
        trainer = pytorch_lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8))
        losses.append(model.losses)
    print(json.dumps(losses))


if __name__ == "__main__":
    main(sys.argv[1])
