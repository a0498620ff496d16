"""A recurrent layer in plain torch operations: the equations as a textbook prints them, differentiable any number of
times. Slow; the gradient of the fast gradient comes from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

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


def _lstm(gates: Tensor, states: States) -> tuple[Tensor, States]:
    """``c' = f∘c + i∘g``, ``h' = o∘tanh(c')``."""
    (c,) = states
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), (c,)


def _rnn(gates: Tensor, states: States) -> tuple[Tensor, States]:
    """``h' = tanh(gates)``."""
    return gates.tanh(), ()


_CELLS: dict[str, Callable[[Tensor, States], tuple[Tensor, States]]] = {"lstm": _lstm, "rnn": _rnn}


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
            y, final = _direction(_CELLS[cell], x, valid, tuple(part[d] for part in state), own, reverse=d == 1)
            ys.append(y)
            finals.append(final)
    return torch.cat(ys, dim=-1), *(torch.stack(parts) for parts in zip(*finals, strict=True))


def _direction(
    cell: Callable[[Tensor, States], tuple[Tensor, States]],
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
        hidden, after = cell(inputs[t] + h @ weights["weight_hh"].mT, tuple(carried))
        new = (hidden @ weights["weight_hr"].mT if "weight_hr" in weights else hidden, *after)
        if valid is None:
            state = new
            outputs.append(new[0])
        else:  # past a sequence's length its state no longer changes
            state = tuple(torch.where(valid[t], a, b) for a, b in zip(new, state, strict=True))
            outputs.append(torch.where(valid[t], new[0], 0))
    return torch.stack(outputs[::-1] if reverse else outputs), state
