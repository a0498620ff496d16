"""What modules are given: tensors, checked, and laid out as a layer takes them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gpulstm_kernels.cells import Cell

from .. import checks, ops
from ..config import StateLayout

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)

States = tuple[Tensor, ...]


def check_dense(tensor: Tensor, name: str) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {tensor.layout}")


def check_dtype(dtype: Any) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in DTYPES):
        raise TypeError(f"dtype: expected None or one of {', '.join(map(str, DTYPES))}, got {checks.shown(dtype)}")


def checked_state(hx: Sequence[Any] | None, x: Tensor, layout: StateLayout, name: str = "hx") -> States:
    """The initial state for the input ``x``, checked, or zeros."""
    if hx is None:
        return tuple([x.new_zeros(shape) for _, shape in layout])
    expected = f"{len(layout)} tensors, ({', '.join([label for label, _ in layout])})"
    parts = ops.state_parts(hx, len(layout), name, expected)
    for k, (_, shape) in enumerate(layout):
        check_part(parts[k], name if len(layout) == 1 else f"{name}[{k}]", x, shape)
    return tuple(parts)


def check_part(part: Any, name: str, x: Tensor, *shapes: tuple[int, ...]) -> None:
    """``part`` must be a tensor of one of these shapes, and of the device and, without autocast, the dtype of the input
    ``x``."""
    if not isinstance(part, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(part).__name__}")
    check_dense(part, name)
    if part.device != x.device:
        raise ValueError(f"{name}: expected a tensor on {x.device}, where the input is, got one on {part.device}")
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if part.dtype not in DTYPES or (part.dtype != x.dtype and not autocast):
        raise TypeError(f"{name}: expected dtype {x.dtype}, that of the input, got {part.dtype}")
    if part.shape not in shapes:
        expected = " or ".join([str(shape) for shape in shapes])
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(part.shape)}")


def padded(packed: PackedSequence, name: str) -> tuple[Tensor, Tensor | None]:
    """The sequences as (T, B, I), longest first, and their lengths, None where all are T; nothing waits for a GPU."""
    data, batch_sizes = packed.data, packed.batch_sizes
    sizes = batch_sizes.tolist()
    if not sizes or sizes != sorted(sizes, reverse=True) or sizes[-1] < 1:
        raise ValueError(f"{name}.batch_sizes: expected positive numbers that do not grow, got {sizes}")
    if data.dim() != 2 or data.shape[0] != sum(sizes):
        raise ValueError(f"{name}.data: expected shape ({sum(sizes)}, I), got {tuple(data.shape)}")
    if sizes[0] == sizes[-1]:
        return data.unflatten(0, (len(sizes), sizes[0])), None
    return pad_packed_sequence(PackedSequence(data, batch_sizes))


def checked_lengths(lengths: Any, steps: int, batch: int) -> Tensor:
    """``lengths`` (B,) as int64 on the CPU; what the numbers are, the operator checks."""
    if not isinstance(lengths, Tensor):
        return torch.from_numpy(checks.lengths(lengths, batch, steps))
    check_dense(lengths, "lengths")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool:
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},), one a sequence, got {tuple(lengths.shape)}")
    return lengths.to("cpu", torch.int64)


def within(lengths: Tensor, x: Tensor) -> Tensor:
    """Which steps and rows (T, B) of ``x`` (T, B, ·) lie within ``lengths``."""
    return torch.arange(x.shape[0], device=x.device)[:, None] < lengths.to(x.device)


class Layout(NamedTuple):
    """How what a call gives for each step and row lies, and how a layer takes it.

    Attributes:
        x: the input (T, B, I).
        lengths: (B,), of the rows of ``x``.
        order: the row of what is given that each row of ``x`` is, or None where they are the same.
        unbatched: whether it has no batch axis.
        batch_first: whether that comes first.
    """

    x: Tensor
    lengths: Tensor | None
    order: Tensor | None
    unbatched: bool
    batch_first: bool

    def _shape(self, *features: int) -> tuple[int, ...]:
        steps, batch, _ = self.x.shape
        if self.unbatched:
            return (steps, *features)
        return (batch, steps, *features) if self.batch_first else (steps, batch, *features)

    def _inside(self, tensor: Tensor) -> Tensor:
        """``tensor`` as (T, B, ·), 0 past a length."""
        if self.unbatched:
            tensor = tensor.unsqueeze(1)
        elif self.batch_first:
            tensor = tensor.transpose(0, 1)
        if self.order is not None:
            tensor = tensor.index_select(1, self.order)
        if self.lengths is None:
            return tensor
        valid = within(self.lengths, self.x)
        return torch.where(valid if tensor.dim() == 2 else valid[:, :, None], tensor, torch.zeros_like(tensor))

    def resets(self, resets: Any) -> Tensor:
        """(T, B) of bool."""
        if not isinstance(resets, Tensor) or resets.dtype is not torch.bool:
            found = resets.dtype if isinstance(resets, Tensor) else type(resets).__name__
            raise TypeError(f"resets: expected a tensor of bools, got {found}")
        check_dense(resets, "resets")
        if resets.shape != self._shape():
            raise ValueError(
                f"resets: expected shape {self._shape()}, a bool a step and sequence, got {tuple(resets.shape)}"
            )
        return self._inside(resets.to(self.x.device))

    def inputs(self, cell: Cell, inputs: Any, hidden: int, drawn: Collection[str]) -> list[Tensor | None]:
        """Those of ``cell`` in its order, (T, B, W) each, W being 1 or ``hidden``; None for one of those that are
        ``drawn`` where it is not given."""
        names = cell.inputs
        if not names:
            raise ValueError(
                f"inputs: expected None, since cell {cell.name!r} declares none, got {checks.shown(inputs)}"
            )
        given = checks.named({} if inputs is None else inputs, "inputs", "tensors")
        missing = [name for name in names if name not in given and name not in drawn]
        extra = [name for name in given if name not in names]
        if missing or extra:
            raise ValueError(
                f"inputs: expected a dict with {', '.join(names)}, which cell {cell.name!r} declares, got "
                f"{'none' if inputs is None else f'missing {missing}, left over {extra}'}"
            )
        values: list[Tensor | None] = []
        shapes = self._shape(), self._shape(1), self._shape(hidden)
        for name in names:
            if name not in given:
                values.append(None)
                continue
            value = given[name]
            if isinstance(value, Tensor) and value.dtype is torch.bool:
                value = value.to(self.x.dtype)
            check_part(value, f"inputs[{name!r}]", self.x, *shapes)
            values.append(self._inside(value.unsqueeze(-1) if value.shape == shapes[0] else value))
        return values
