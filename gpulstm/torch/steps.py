"""``LSTMCell``, ``GRUCell`` and ``RNNCell`` as ``torch.nn`` has them: one step of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell

from .. import cells, checks
from ..config import state_layout
from .modules import NONLINEARITIES
from .stack import run_layer
from .tensors import States, check_dense, check_dtype, checked_state


def _checked_sizes(input_size: Any, hidden_size: Any, dtype: Any) -> tuple[int, int]:
    check_dtype(dtype)
    # torch's have sizes of 0 too
    return checks.integer(input_size, "input_size", 0), checks.integer(hidden_size, "hidden_size", 0)


def _step(module: torch.nn.RNNCellBase, cell: Cell, input: Any, hx: Sequence[Any] | None) -> States:
    """The state of ``module`` after one step."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a tensor, got {type(input).__name__}")
    check_dense(input, "input")
    if input.dim() not in (1, 2) or input.shape[-1] != module.input_size:
        expected = f"(B, {module.input_size}) or ({module.input_size},)"
        raise ValueError(f"input: expected shape {expected}, got {tuple(input.shape)}")
    state = checked_state(hx, input, state_layout(cell, input.shape[:-1], module.hidden_size, module.hidden_size))
    if module.hidden_size == 0:  # which torch's take
        return tuple(part.clone() for part in state)
    given = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    weights = [weight for weight in given if weight is not None]
    lead = (1,) * (3 - input.dim())
    initial = tuple(part.reshape(*lead, *part.shape) for part in state)
    _, final = run_layer(cell.name, input.reshape(*lead, *input.shape), initial, weights, None)
    return tuple(part.reshape(before.shape) for part, before in zip(final, state, strict=True))


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` over gpulstm's kernels: ``h, c = cell(input, (h, c))``, one step.

    ``input`` (B, I) or (I,); ``h`` and ``c`` (B, H) or (H,). A loop of steps costs a call each: where the inputs are
    known beforehand, :class:`~gpulstm.torch.LSTM` takes them at once. Raises as that.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(*_checked_sizes(input_size, hidden_size, dtype), bias, device, dtype)

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``h, c``; see the class."""
        h, c = _step(self, cells.lstm, input, hx)
        return h, c


class GRUCell(torch.nn.GRUCell):
    """``torch.nn.GRUCell`` over gpulstm's kernels: ``h = cell(input, h)``. See :class:`LSTMCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(*_checked_sizes(input_size, hidden_size, dtype), bias, device, dtype)

    def forward(self, input: Any, hx: Tensor | None = None) -> Tensor:
        """``h``; see the class."""
        return _step(self, cells.gru, input, None if hx is None else (hx,))[0]


class RNNCell(torch.nn.RNNCell):
    """``torch.nn.RNNCell`` over gpulstm's kernels: ``h = cell(input, h)``. See :class:`LSTMCell`.

    Raises:
        ValueError: ``nonlinearity`` is neither ``"tanh"`` nor ``"relu"``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.choice(nonlinearity, "nonlinearity", NONLINEARITIES)
        super().__init__(*_checked_sizes(input_size, hidden_size, dtype), bias, nonlinearity, device, dtype)

    def forward(self, input: Any, hx: Tensor | None = None) -> Tensor:
        """``h``; see the class."""
        cell = NONLINEARITIES[checks.choice(self.nonlinearity, "nonlinearity", NONLINEARITIES)]
        return _step(self, cell, input, None if hx is None else (hx,))[0]
