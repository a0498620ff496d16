"""torch.compile with its own compiler, inductor: needs g++, so a lane of its own (``-m inductor``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_dropin_operator import check_compiled, functional, twins

pytestmark = [
    pytest.mark.inductor,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),  # torch's
]


@pytest.mark.parametrize("dynamic", [None, True])
@functional
def test_compile_without_a_graph_break(kind: str, options: dict[str, Any], dynamic: bool | None) -> None:
    ours, _, _ = twins(kind, **options)
    check_compiled(ours, "inductor", dynamic)


def test_a_model_around_it() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = twins("LSTM", batch_first=True)[0]
            self.head = torch.nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, (h, _) = self.lstm(torch.tanh(x) * 2)
            return torch.relu(self.head(y)), h

    check_compiled(Model(), "inductor", None)
