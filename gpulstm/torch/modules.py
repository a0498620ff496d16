"""``LSTM``, ``GRU`` and ``RNN`` as ``torch.nn`` has them: constructor, parameters, state dict, forward.

They are ``torch.nn.RNNBase`` but not ``torch.nn.LSTM`` and so on, which torch.compile refuses by their type. The
weights are read by name at every call, so parametrizations, ``functional_call`` and replicas work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell

from .. import cells, checks
from .stack import Stack
from .tensors import check_dtype


class _Recurrent(Stack, torch.nn.RNNBase):
    """What the modules share: the parameters of torch's."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        input_size, hidden_size = checks.integer(input_size, "input_size"), checks.integer(hidden_size, "hidden_size")
        num_layers, proj_size = checks.integer(num_layers, "num_layers"), checks.integer(proj_size, "proj_size", 0)
        if proj_size >= hidden_size:
            raise ValueError(f"proj_size: expected less than hidden_size = {hidden_size}, got {proj_size}")
        dropout = checks.real(dropout, "dropout", "[0, 1]")
        check_dtype(dtype)
        sizes = input_size, hidden_size, num_layers
        super().__init__(mode, *sizes, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels read every weight in place. (torch's moves them together for cuDNN.)"""


class LSTM(_Recurrent):
    """``torch.nn.LSTM`` over gpulstm's kernels.

    Arguments, parameters, state-dict keys, initial values and the results of ``forward`` are torch's::

        output, (h_n, c_n) = lstm(input, (h_0, c_0))

    Shapes, with T steps, B batch, D directions, L layers, P = ``proj_size`` or ``hidden_size``: ``input`` (T, B, I),
    (B, T, I) with ``batch_first``, (T, I) for one sequence, or a ``PackedSequence``; ``output`` like it, with D·P
    features; ``h`` (L·D, B, P), ``c`` (L·D, B, H). float32 and float64; float16 and bfloat16 too, which a CPU computes
    in float32; under autocast the results have its dtype. CPU tensors are computed by Numba, on gpulstm's own threads
    (:func:`gpulstm.set_num_threads`); CUDA tensors on torch's current stream. The results do not depend on the number
    of threads, and are the same in every run.

    Raises:
        TypeError: ``input`` or ``hx`` is no tensor, or not of the weights' dtype.
        ValueError: a shape or device that does not fit, or a ``PackedSequence`` whose batch sizes are not sorted; the
            message names the argument.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )

    def _cell(self) -> Cell:
        return cells.lstm

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """``output, (h_n, c_n)``; see the class."""
        output, (h, c) = self._run(input, hx)
        return output, (h, c)


class GRU(_Recurrent):
    """``torch.nn.GRU`` over gpulstm's kernels: ``output, h_n = gru(input, h_0)``.

    See :class:`LSTM` for shapes, dtypes and errors.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )

    def _cell(self) -> Cell:
        return cells.gru

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """``output, h_n``; see the class."""
        output, (h,) = self._run(input, None if hx is None else (hx,))
        return output, h


NONLINEARITIES = {"tanh": cells.rnn, "relu": cells.rnn_relu}


class RNN(_Recurrent):
    """``torch.nn.RNN`` over gpulstm's kernels: ``output, h_n = rnn(input, h_0)``.

    See :class:`LSTM` for shapes, dtypes and errors.

    Raises:
        ValueError: ``nonlinearity`` is neither ``"tanh"`` nor ``"relu"``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", NONLINEARITIES)
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )

    def _cell(self) -> Cell:
        return NONLINEARITIES[self.nonlinearity]

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """``output, h_n``; see the class."""
        output, (h,) = self._run(input, None if hx is None else (hx,))
        return output, h
