"""Layers of any cell for tests of gpulstm.torch, what they are given, and their loops in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench import torch_loops
from gpulstm.torch import Recurrent

DOUBLE = torch.float64
VARIANTS = [
    pytest.param("peephole", {"bidirectional": True}, id="peephole"),
    pytest.param("time_gap", {"num_layers": 2, "bidirectional": True}, id="time_gap"),
    pytest.param("slstm", {"heads": 2, "batch_first": True}, id="slstm"),
    pytest.param("mingru", {"bias": False}, id="mingru"),
    pytest.param("gru", {"heads": 4, "bidirectional": True}, id="gru"),
    pytest.param("zoneout", {}, id="zoneout"),
    pytest.param("lstm", {"proj_size": 3, "bidirectional": True}, id="projected"),
    pytest.param("variational_dropout", {"bidirectional": True}, id="variational_dropout"),
]
variants = pytest.mark.parametrize(("cell", "options"), VARIANTS)


class Problem:
    """A module in float64 and what it is given."""

    def __init__(
        self,
        cell: str,
        options: dict[str, Any],
        *,
        ragged: bool = False,
        resets: bool = False,
        scalar: bool = False,
        sizes: tuple[int, int, int, int] = (5, 3, 2, 4),
    ) -> None:
        torch.manual_seed(0)
        steps, batch, features, hidden = sizes
        self.module = Recurrent(cell, features, hidden, **options, dtype=DOUBLE)
        config = self.module.config
        order = (batch, steps) if config.batch_first else (steps, batch)
        self.x = torch.randn(*order, features, dtype=DOUBLE, requires_grad=True)
        shapes = config.state_shapes(batch)
        self.state = [torch.randn(shape, dtype=DOUBLE).requires_grad_() for shape in shapes]
        if cell == "slstm":
            self.state[2] = self.state[2].detach().abs().requires_grad_()  # a normaliser
        self.lengths = torch.tensor([2, steps, 0, 4, 1][:batch]) if ragged else None
        self.resets = torch.rand(*order) < 0.4 if resets else None
        if self.resets is not None:  # one at least, within the length of its row
            self.resets[(0, 1) if config.batch_first else (1, 0)] = True
        own = () if scalar else (hidden,)
        self.inputs = {name: torch.rand(*order, *own, dtype=DOUBLE).requires_grad_() for name in config.cell.inputs}

    @property
    def leaves(self) -> list[Tensor]:
        given = [self.inputs[name] for name in self.module.config.cell.differentiable]
        return [self.x, *self.state, *self.module.parameters(), *given]

    def call(self, **options: Any) -> list[Tensor]:
        """The module's results, flat."""
        state = self.state[0] if len(self.state) == 1 else tuple(self.state)
        given = {"lengths": self.lengths, "resets": self.resets, "inputs": self.inputs or None} | options
        return flat(self.module(self.x, state, **given))

    def truth(self) -> list[Tensor]:
        """The same of a loop over each sequence and step."""
        config = self.module.config
        x = self.x.transpose(0, 1) if config.batch_first else self.x
        inputs = {k: v.transpose(0, 1) if config.batch_first else v for k, v in self.inputs.items()}
        inputs = {k: v.unsqueeze(-1) if v.dim() == 2 else v for k, v in inputs.items()}
        resets = self.resets.T if config.batch_first and self.resets is not None else self.resets
        steps, batch, _ = x.shape
        lengths = [steps] * batch if self.lengths is None else self.lengths.tolist()
        finals = []
        for k, ends in enumerate(config.parameters):
            ys = []
            for d, own in enumerate(ends):
                weights = {name: getattr(self.module, full) for name, full, _ in own}
                state = tuple(part[k * config.directions + d] for part in self.state)
                rows = [
                    one_row(config.cell.name, x, state, weights, inputs, resets, b, n, d == 1)
                    for b, n in enumerate(lengths)
                ]
                ys.append(torch.cat([y for y, _ in rows], dim=1))
                finals.append(tuple(torch.cat(parts) for parts in zip(*(last for _, last in rows), strict=True)))
            x = torch.cat(ys, dim=-1)
        final = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        return [x.transpose(0, 1) if config.batch_first else x, *final]


def flat(result: Any) -> list[Tensor]:
    y, state = result
    return [y, *([state] if isinstance(state, Tensor) else state)]


def one_row(
    cell: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: dict[str, Tensor],
    inputs: dict[str, Tensor],
    resets: Tensor | None,
    b: int,
    n: int,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y (T, 1, P), zero from step ``n`` on, and the final state of row ``b``."""

    def of_row(tensor: Tensor) -> Tensor:
        tensor = tensor[:n, b : b + 1]
        return tensor.flip(0) if reverse else tensor

    own = tuple(part[b : b + 1] for part in state)
    if n == 0:
        return x.new_zeros(len(x), 1, own[0].shape[1]), own
    begins = None
    if resets is not None:
        begins = of_row(resets)
        if reverse:  # before step t where resets[t + 1]
            begins = torch.cat([torch.zeros_like(begins[:1]), begins[:-1]])
    weights = dict(weights)
    projection = weights.pop("weight_hr", None)
    if "weight_hh" in weights and weights["weight_hh"].dim() == 3:
        weights["weight_hh"] = dense(weights["weight_hh"])
    for bias, weight in (("bias_ih", "weight_ih"), ("bias_hh", "weight_hh")):
        if weight in weights and bias not in weights:
            weights[bias] = x.new_zeros(len(weights[weight]))
    if projection is None:
        y, last = torch_loops.loop(
            torch_loops.CELLS[cell],
            of_row(x),
            own,
            weights,
            {name: of_row(value) for name, value in inputs.items()},
            begins,
        )
    else:
        y, last = projected(cell, of_row(x), own, weights, projection, begins)
    y = y.flip(0) if reverse else y
    return torch.cat([y, y.new_zeros(len(x) - n, *y.shape[1:])]), last


def projected(
    cell: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: dict[str, Tensor],
    projection: Tensor,
    begins: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    ys, rows = [], torch_loops.of_x(x, weights)
    for t in range(len(x)):
        if begins is not None and begins[t]:
            state = tuple(torch.zeros_like(part) for part in state)
        h, *rest = torch_loops.CELLS[cell](rows[t], state, weights, {})
        state = (h @ projection.T, *rest)
        ys.append(state[0])
    return torch.stack(ys), state


def dense(weight: Tensor) -> Tensor:
    """(N, G·H/N, H/N) as (G·H, H), zero off the blocks of the diagonal."""
    heads, _, units = weight.shape
    gates = weight.reshape(heads, -1, units, units).unbind(1)
    return torch.cat([torch.block_diag(*gate) for gate in gates])


def gradients(outputs: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    loss = sum((value * torch.randn_like(value)).sum() for value in outputs)
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def weights_of(module: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.named_parameters()}
