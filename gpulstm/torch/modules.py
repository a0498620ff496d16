"""``LSTM``, ``RNN`` and ``LSTMCell`` as ``torch.nn`` has them: constructor, parameters, state dict, forward.

``LSTM`` and ``RNN`` are ``torch.nn.RNNBase`` but not ``torch.nn.LSTM``, which torch.compile refuses by its type. The
weights are read by name at every call, so parametrizations, ``functional_call`` and replicas work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gpulstm_kernels.cells import Cell

from .. import cells, checks, ops
from ..config import StateLayout, state_layout
from .autograd import layer

_HALVES = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *_HALVES)

States = tuple[Tensor, ...]


class _Recurrent(torch.nn.RNNBase):
    """What the modules share: a stack of layers of one cell."""

    _cell: ClassVar[Cell]

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
        _check_dtype(dtype)
        sizes = input_size, hidden_size, num_layers
        super().__init__(mode, *sizes, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels read every weight in place. (torch's moves them together for cuDNN.)"""

    def _run(self, input: Any, hx: Sequence[Any] | None) -> tuple[Any, States]:
        """The output, like ``input``, and the final state of the stack."""
        if isinstance(input, PackedSequence):
            x, lengths = _padded(input)
            if x.shape[-1] != self.input_size:
                raise ValueError(f"input.data: expected shape (N, {self.input_size}), got {tuple(input.data.shape)}")
            batch, order = x.shape[1], input.sorted_indices
            state = self._state(hx, x, (batch,))
            if order is not None:
                state = tuple(part.index_select(1, order) for part in state)
            y, final = self._stack(x, state, lengths)
            data = y.flatten(0, 1) if lengths is None else pack_padded_sequence(y, lengths).data
            if input.unsorted_indices is not None:
                final = tuple(part.index_select(1, input.unsorted_indices) for part in final)
            return PackedSequence(data, input.batch_sizes, order, input.unsorted_indices), final
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a tensor or a PackedSequence, got {type(input).__name__}")
        _check_dense(input, "input")
        self._check_input(input)
        if input.dim() == 2:
            x = input.unsqueeze(1)
            state = tuple(part.unsqueeze(1) for part in self._state(hx, x, ()))
            y, final = self._stack(x, state, None)
            return y.squeeze(1), tuple(part.squeeze(1) for part in final)
        x = input.transpose(0, 1) if self.batch_first else input
        y, final = self._stack(x, self._state(hx, x, (x.shape[1],)), None)
        return y.transpose(0, 1) if self.batch_first else y, final

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            order = "B, T" if self.batch_first else "T, B"
            expected = f"({order}, {self.input_size}) or (T, {self.input_size})"
            raise ValueError(f"input: expected shape {expected}, got {tuple(x.shape)}")
        if x.shape[1 if self.batch_first and x.dim() == 3 else 0] == 0:
            raise ValueError(f"input: expected at least one step, got shape {tuple(x.shape)}")

    def _state(self, hx: Sequence[Any] | None, x: Tensor, rows: tuple[int, ...]) -> States:
        """The initial state, checked, or zeros; ``rows`` is (B,), or () for one sequence."""
        leading = (self.num_layers * (2 if self.bidirectional else 1), *rows)
        layout = state_layout(self._cell, leading, self.proj_size or self.hidden_size, self.hidden_size)
        return _checked_state(hx, x, layout)

    def _stack(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        """x (T, B, I) through all layers; y past a length is unspecified."""
        directions = 2 if self.bidirectional else 1
        names = self._all_weights
        finals = []
        for k in range(self.num_layers):
            own = slice(k * directions, (k + 1) * directions)
            weights = [getattr(self, name) for part in names[own] for name in part]
            initial = state if self.num_layers == 1 else tuple(part[own] for part in state)
            x, final = _run_layer(self._cell, x, initial, weights, lengths)
            finals.append(final)
            if self.training and self.dropout and k + 1 < self.num_layers:
                x = torch.nn.functional.dropout(x, self.dropout)
        if len(finals) == 1:
            return x, finals[0]
        return x, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


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

    _cell = cells.lstm

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

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """``output, (h_n, c_n)``; see the class."""
        output, (h, c) = self._run(input, hx)
        return output, (h, c)


class RNN(_Recurrent):
    """``torch.nn.RNN`` with ``nonlinearity="tanh"`` over gpulstm's kernels: ``output, h_n = rnn(input, h_0)``.

    See :class:`LSTM` for shapes, dtypes and errors.

    Raises:
        ValueError: ``nonlinearity`` is not ``"tanh"``: no kernel computes another.
    """

    _cell = cells.rnn

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
        if not isinstance(nonlinearity, str) or nonlinearity != "tanh":
            raise ValueError(
                f"nonlinearity: expected 'tanh', the one that kernels compute, got {checks.shown(nonlinearity)}"
            )
        self.nonlinearity = nonlinearity
        super().__init__(
            "RNN_TANH",
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

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """``output, h_n``; see the class."""
        output, (h,) = self._run(input, None if hx is None else (hx,))
        return output, h


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` over gpulstm's kernels: ``h, c = cell(input, (h, c))``, one step.

    ``input`` (B, I) or (I,); ``h`` and ``c`` (B, H) or (H,). A loop of steps costs a call each: where the inputs are
    known beforehand, :class:`LSTM` takes them at once. Raises as :class:`LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        input_size = checks.integer(input_size, "input_size", 0)  # torch's has sizes of 0 too
        hidden_size = checks.integer(hidden_size, "hidden_size", 0)
        _check_dtype(dtype)
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``h, c``; see the class."""
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a tensor, got {type(input).__name__}")
        _check_dense(input, "input")
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            expected = f"(B, {self.input_size}) or ({self.input_size},)"
            raise ValueError(f"input: expected shape {expected}, got {tuple(input.shape)}")
        layout = state_layout(cells.lstm, input.shape[:-1], self.hidden_size, self.hidden_size)
        h, c = _checked_state(hx, input, layout)
        if self.hidden_size == 0:  # which torch's takes
            return h.clone(), c.clone()
        given = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        weights = [weight for weight in given if weight is not None]
        lead = (1,) * (3 - input.dim())
        state = tuple(part.reshape(*lead, *part.shape) for part in (h, c))
        _, final = _run_layer(cells.lstm, input.reshape(*lead, *input.shape), state, weights, None)
        return final[0].reshape(h.shape), final[1].reshape(c.shape)


def _run_layer(
    cell: Cell, x: Tensor, state: States, weights: list[Tensor], lengths: Tensor | None
) -> tuple[Tensor, States]:
    """One layer in the dtype that autocast or the weights ask for; x (T, B, I)."""
    first = weights[0]
    if x.device != first.device:
        raise ValueError(f"input: expected a tensor on {first.device}, where the weights are, got one on {x.device}")
    result = first.dtype
    kind = x.device.type
    if (
        kind != "meta"
        and torch.is_autocast_enabled(kind)
        and x.dtype in _DTYPES
        and torch.float64 not in (x.dtype, result)
    ):
        result = torch.get_autocast_dtype(kind)
    elif x.dtype != result or result not in _DTYPES:
        raise TypeError(f"input: expected dtype {result}, that of the weights, got {x.dtype}")
    dtype = torch.float32 if kind != "cuda" and result in _HALVES else result
    state, weights = tuple(_cast(part, dtype) for part in state), [_cast(weight, dtype) for weight in weights]
    y, final = layer(cell, _cast(x, dtype).contiguous(), state, weights, lengths)
    return _cast(y, result), tuple(_cast(part, result) for part in final)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _check_dense(tensor: Tensor, name: str) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {tensor.layout}")


def _check_dtype(dtype: Any) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in _DTYPES):
        raise TypeError(f"dtype: expected None or one of {', '.join(map(str, _DTYPES))}, got {checks.shown(dtype)}")


def _checked_state(hx: Sequence[Any] | None, x: Tensor, layout: StateLayout) -> States:
    """The initial state for the input ``x``, checked, or zeros."""
    if hx is None:
        return tuple([x.new_zeros(shape) for _, shape in layout])
    expected = f"{len(layout)} tensors, ({', '.join([label for label, _ in layout])})"
    parts = ops.state_parts(hx, len(layout), "hx", expected)
    for k, (_, shape) in enumerate(layout):
        _check_part(parts[k], "hx" if len(layout) == 1 else f"hx[{k}]", x, shape)
    return tuple(parts)


def _check_part(part: Any, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """``part`` must be a tensor of this shape and of the device and, without autocast, the dtype of the input ``x``."""
    if not isinstance(part, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(part).__name__}")
    _check_dense(part, name)
    if part.device != x.device:
        raise ValueError(f"{name}: expected a tensor on {x.device}, where the input is, got one on {part.device}")
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if part.dtype not in _DTYPES or (part.dtype != x.dtype and not autocast):
        raise TypeError(f"{name}: expected dtype {x.dtype}, that of the input, got {part.dtype}")
    if part.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(part.shape)}")


def _padded(packed: PackedSequence) -> tuple[Tensor, Tensor | None]:
    """The sequences as (T, B, I), longest first, and their lengths, None where all are T; nothing waits for a GPU."""
    data, batch_sizes = packed.data, packed.batch_sizes
    sizes = batch_sizes.tolist()
    if not sizes or sizes != sorted(sizes, reverse=True) or sizes[-1] < 1:
        raise ValueError(f"input.batch_sizes: expected positive numbers that do not grow, got {sizes}")
    if data.dim() != 2 or data.shape[0] != sum(sizes):
        raise ValueError(f"input.data: expected shape ({sum(sizes)}, I), got {tuple(data.shape)}")
    if sizes[0] == sizes[-1]:
        return data.unflatten(0, (len(sizes), sizes[0])), None
    return pad_packed_sequence(PackedSequence(data, batch_sizes))
