"""A stack of recurrent layers of one cell, over whole sequences: what the modules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from gpulstm_kernels.cells import Cell

from ..config import state_layout
from ..noise import Setting
from . import masks, tensors
from .autograd import layer
from .tensors import DTYPES, HALVES, States


class Stack(torch.nn.Module):
    """``num_layers`` layers, each of one or two directions, with the attributes that ``torch.nn.RNNBase`` has."""

    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    _all_weights: list[list[str]]  # the names of each layer and direction, forward first
    _gates_given = False  # whether the input holds pre-activations
    _noise: tuple[Setting, ...] = ()  # what is drawn for the cell's inputs
    _words: ClassVar[tuple[str, str]] = ("input", "hx")  # what the input and the state are called

    def _cell(self) -> Cell:
        raise NotImplementedError

    def _key(self) -> str:
        """What stands for the cell: see :func:`gpulstm.torch.known.key`."""
        return self._cell().name

    def _features(self) -> int:
        """Of the input."""
        return self.input_size

    def _run(
        self, input: Any, hx: Any, lengths: Any = None, resets: Any = None, inputs: Any = None
    ) -> tuple[Any, States]:
        """The output, like ``input``, and the final state of the stack."""
        word = self._words[0]
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths: expected None with a PackedSequence, which has its own")
            x, limits = tensors.padded(input, word)
            if x.shape[-1] != self._features():
                raise ValueError(f"{word}.data: expected shape (N, {self._features()}), got {tuple(input.data.shape)}")
            batch, order = x.shape[1], input.sorted_indices
            state = self._state(hx, x, (batch,))
            given = self._given(inputs, resets, x, limits, order)
            if order is not None:
                state = tuple(part.index_select(1, order) for part in state)
            y, final = self._stack(x, state, limits, *given)
            data = y.flatten(0, 1) if limits is None else pack_padded_sequence(y, limits).data
            if input.unsorted_indices is not None:
                final = tuple(part.index_select(1, input.unsorted_indices) for part in final)
            return PackedSequence(data, input.batch_sizes, order, input.unsorted_indices), final
        if not isinstance(input, Tensor):
            raise TypeError(f"{word}: expected a tensor or a PackedSequence, got {type(input).__name__}")
        tensors.check_dense(input, word)
        self._check_input(input)
        unbatched = input.dim() == 2
        if unbatched:
            x = input.unsqueeze(1)
            state = tuple(part.unsqueeze(1) for part in self._state(hx, x, ()))
        else:
            x = input.transpose(0, 1) if self.batch_first else input
            state = self._state(hx, x, (x.shape[1],))
        limits = valid = None
        if lengths is not None:
            limits = tensors.checked_lengths(lengths, *x.shape[:2])
            valid = tensors.within(limits, x)[:, :, None]
            x = torch.where(valid, x, 0)
        y, final = self._stack(x, state, limits, *self._given(inputs, resets, x, limits, None, unbatched))
        if valid is not None:
            y = torch.where(valid, y, 0)
        if unbatched:
            return y.squeeze(1), tuple(part.squeeze(1) for part in final)
        return y.transpose(0, 1) if self.batch_first else y, final

    def _check_input(self, x: Tensor) -> None:
        features = self._features()
        if x.dim() not in (2, 3) or x.shape[-1] != features:
            order = "B, T" if self.batch_first else "T, B"
            expected = f"({order}, {features}) or (T, {features})"
            raise ValueError(f"{self._words[0]}: expected shape {expected}, got {tuple(x.shape)}")
        if x.shape[1 if self.batch_first and x.dim() == 3 else 0] == 0:
            raise ValueError(f"{self._words[0]}: expected at least one step, got shape {tuple(x.shape)}")

    def _state(self, hx: Sequence[Any] | None, x: Tensor, rows: tuple[int, ...]) -> States:
        """The initial state, checked, or zeros; ``rows`` is (B,), or () for one sequence."""
        leading = (self.num_layers * (2 if self.bidirectional else 1), *rows)
        layout = state_layout(self._cell(), leading, self.proj_size or self.hidden_size, self.hidden_size)
        return tensors.checked_state(hx, x, layout, self._words[1])

    def _given(
        self,
        inputs: Any,
        resets: Any,
        x: Tensor,
        lengths: Tensor | None,
        order: Tensor | None,
        unbatched: bool = False,
    ) -> tuple[list[Tensor | None] | None, Tensor | None]:
        """``inputs`` (T, B, W) each, None for noise, and ``resets`` (T, B) as layers take them, zero and False past
        ``lengths``; ``order`` is the one that a PackedSequence has its rows in."""
        cell = self._cell()
        if inputs is None and resets is None and not cell.inputs:
            return None, None
        _result_dtype(x, getattr(self, self._all_weights[0][0]), self._words[0])  # before what is compared with x
        layout = tensors.Layout(x, lengths, order, unbatched, self.batch_first)
        values = None
        if inputs is not None or cell.inputs:
            values = layout.inputs(cell, inputs, self.hidden_size, [one.input for one in self._noise])
        return values, None if resets is None else layout.resets(resets)

    def _stack(
        self,
        x: Tensor,
        state: States,
        lengths: Tensor | None,
        values: list[Tensor | None] | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, States]:
        """x (T, B, I) through all layers; y past a length is unspecified."""
        directions = 2 if self.bidirectional else 1
        names, key = self._all_weights, self._key()
        finals, inputs = [], None
        if values is not None:
            sizes = self.hidden_size, self.num_layers
            inputs = masks.of_layers(self._cell(), self._noise, values, x, *sizes, self.training)
        for k in range(self.num_layers):
            own = slice(k * directions, (k + 1) * directions)
            weights = [getattr(self, name) for part in names[own] for name in part]
            initial = state if self.num_layers == 1 else tuple(part[own] for part in state)
            own_inputs = None if inputs is None else inputs[k]
            given = own_inputs, resets, self._words[0], self._gates_given
            x, final = run_layer(key, x, initial, weights, lengths, *given)
            finals.append(final)
            if self.training and self.dropout and k + 1 < self.num_layers:
                x = torch.nn.functional.dropout(x, self.dropout)
        if len(finals) == 1:
            return x, finals[0]
        return x, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def run_layer(
    cell: str,
    x: Tensor,
    state: States,
    weights: list[Tensor],
    lengths: Tensor | None,
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    name: str = "input",
    gates_given: bool = False,
) -> tuple[Tensor, States]:
    """One layer of the cell with that key in the dtype that autocast or the weights ask for; x (T, B, I), or where
    ``gates_given`` pre-activations (T, B, D·Gx·H)."""
    result = _result_dtype(x, weights[0] if weights else x, name)
    dtype = torch.float32 if x.device.type != "cuda" and result in HALVES else result
    state, weights = tuple(cast(part, dtype) for part in state), [cast(weight, dtype) for weight in weights]
    if inputs is not None:
        inputs = cast(inputs, dtype)
    y, final = layer(cell, cast(x, dtype).contiguous(), state, weights, lengths, inputs, resets, gates_given)
    return cast(y, result), tuple(cast(part, result) for part in final)


def _result_dtype(x: Tensor, weight: Tensor, name: str) -> torch.dtype:
    """That of what is computed from ``x``, which must fit a layer with this ``weight``."""
    if x.device != weight.device:
        raise ValueError(f"{name}: expected a tensor on {weight.device}, where the weights are, got one on {x.device}")
    result, kind = weight.dtype, x.device.type
    if (
        kind != "meta"
        and torch.is_autocast_enabled(kind)
        and x.dtype in DTYPES
        and torch.float64 not in (x.dtype, result)
    ):
        return torch.get_autocast_dtype(kind)
    if x.dtype != result or result not in DTYPES:
        raise TypeError(f"{name}: expected dtype {result}, that of the weights, got {x.dtype}")
    return result


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
