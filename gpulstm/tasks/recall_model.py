"""What the task ``recall`` trains, torch modules: an LSTM that attends to its own past, and a plain one beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.recall import TOKENS, VALUES
from ..torch import LSTM
from ..train.torch_model import TorchModel, seeded


class Memory(torch.nn.Module):
    """Tokens (T, B) to the logits (B, 8) of the value that is asked for with the last of them.

    With ``attends`` the state at the last step is compared with every state before, and what is read is the state that
    came next, as in the continuous cache of Grave, Joulin and Usunier (2017, "Improving neural language models with a
    continuous cache"), here with a projection that is learnt: ``w_t ∝ exp(⟨M h_t, M h_T⟩ / √H)``, ``Σ w_t h_{t+1}``.
    """

    def __init__(self, embed: int, hidden: int, attends: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(len(TOKENS), embed)
        self.lstm = LSTM(embed, hidden)
        self.match = torch.nn.Linear(hidden, hidden, bias=False) if attends else None
        self.head = torch.nn.Linear(hidden * (2 if attends else 1), len(VALUES))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.look(tokens)[0]

    def look(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and how much is read of each state (T - 1, B) from the second on; None without attention."""
        h, _ = self.lstm(self.embedding(tokens))
        if self.match is None:
            return self.head(h[-1]), None
        matched = self.match(h)
        scores = (matched[:-1] * matched[-1]).sum(2) / math.sqrt(h.shape[2])
        weights = torch.softmax(scores, 0)
        read = (weights[:, :, None] * h[1:]).sum(0)
        return self.head(torch.cat([h[-1], read], 1)), weights


class Both(torch.nn.Module):
    """The two, which share nothing: logits of the one that attends, and of the plain one."""

    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__()
        self.attentive = Memory(embed, hidden, attends=True)
        self.plain = Memory(embed, hidden, attends=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.attentive(tokens), self.plain(tokens)


def build(config: Mapping[str, Any]) -> TorchModel:
    """The model that ``config`` describes."""
    with seeded(config["seed"]):
        return TorchModel(Both(config["embed"], config["hidden"]), threads=1)
