"""A recurrent layer in plain torch operations: the equations as a textbook prints them, differentiable any number of
times. Slow; the gradient of the fast gradient comes from here."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType

import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell

from .. import cells

States = tuple[Tensor, ...]

# torch's order, by how many weights a direction has: without and with biases, and a projection
_NAMES = {
    2: ("weight_ih", "weight_hh"),
    3: ("weight_ih", "weight_hh", "weight_hr"),
    4: ("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
    5: ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
}


def names(count: int) -> tuple[str, ...]:
    """The names of the ``count`` weights of a direction, in torch's order."""
    return _NAMES[count]


# The functions of the cell language. Where two values are equal, the gradient is the language's: torch's own maximum
# and minimum share it.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "absolute": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "maximum": lambda a, b: torch.where(a > b, a, b),
    "minimum": lambda a, b: torch.where(a < b, a, b),
    "select": lambda a, b, x, y: torch.where(a > b, x, y),
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}


def _of_tensors(cell: Cell) -> FunctionType:
    """The forward that is derived of ``cell``, for tensors."""
    module = ModuleType(f"{__name__}.{cell.name}")
    vars(module).update(_FUNCTIONS, __builtins__=builtins)
    sys.modules[module.__name__] = module  # where torch.compile looks for what a function reads
    return FunctionType(cell.module.forward.__code__, vars(module), cell.name)


_CELLS = {cell.name: (_of_tensors(cell), len(cell.gates)) for cell in (cells.lstm, cells.rnn)}


def layer(
    cell: str, x: Tensor, lengths: Tensor | None, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One layer: y (T, B, D·P), zero past a sequence's length, and the final h (D, B, P) and carried states (D, B, H).

    Args:
        cell: ``"lstm"`` or ``"rnn"``.
        x: (T, B, I).
        lengths: (B,), or None for T.
        state: the initial h (D, B, P), then each carried state (D, B, H).
        weights: those of the forward direction in torch's order, then those of the reverse one.
    """
    directions = state[0].shape[0]
    count = len(weights) // directions
    if lengths is None:
        valid = None
    else:
        valid = torch.arange(len(x), device=x.device)[:, None, None] < lengths.to(x.device)[:, None]
    ys, finals = [], []
    with torch.autocast(x.device.type, enabled=False):
        for d in range(directions):
            own = dict(zip(names(count), weights[d * count : (d + 1) * count], strict=True))
            y, final = _direction(*_CELLS[cell], x, valid, tuple(part[d] for part in state), own, reverse=d == 1)
            ys.append(y)
            finals.append(final)
    return torch.cat(ys, dim=-1), *(torch.stack(parts) for parts in zip(*finals, strict=True))


def _direction(
    cell: FunctionType,
    count: int,
    x: Tensor,
    valid: Tensor | None,
    state: States,
    weights: Mapping[str, Tensor],
    reverse: bool,
) -> tuple[Tensor, States]:
    inputs = x @ weights["weight_ih"].mT
    if "bias_ih" in weights:
        inputs = inputs + (weights["bias_ih"] + weights["bias_hh"])
    steps = range(len(x))
    outputs: list[Tensor] = []
    for t in reversed(steps) if reverse else steps:
        h, *carried = state
        gates = inputs[t] + h @ weights["weight_hh"].mT
        hidden, after, _ = cell(gates.chunk(count, dim=-1), tuple(carried))
        new = (hidden @ weights["weight_hr"].mT if "weight_hr" in weights else hidden, *after)
        if valid is None:
            state = new
            outputs.append(new[0])
        else:  # past a sequence's length its state no longer changes
            state = tuple(torch.where(valid[t], a, b) for a, b in zip(new, state, strict=True))
            outputs.append(torch.where(valid[t], new[0], 0))
    return torch.stack(outputs[::-1] if reverse else outputs), state
