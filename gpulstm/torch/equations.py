"""A recurrent layer in plain torch operations: the equations as a textbook prints them, differentiable any number of
times. Slow; the gradient of the fast gradient comes from here."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell
from gpulstm_kernels.language.cell import TracedCell

from .. import cells
from . import known

States = tuple[Tensor, ...]


def _maximum(a: Tensor, b: Any) -> Tensor:
    return torch.where((a > b) | (a != a), a, b)


def _minimum(a: Tensor, b: Any) -> Tensor:
    return torch.where((a < b) | (a != a), a, b)


def _select(a: Tensor, b: Any, x: Any, y: Any) -> Tensor:
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        x = torch.full_like(a, x)  # of two numbers torch would make its default dtype
    return torch.where(a > b, x, y)


# The functions of the cell language. Where two values are equal, the gradient is the language's (torch's own maximum
# and minimum share it), and a NaN of either stays. torch's softplus is x from 20 on, where float64 still differs.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "absolute": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "maximum": _maximum,
    "minimum": _minimum,
    "row_mean": lambda v: v.mean(dim=-1, keepdim=True).expand_as(v),
    "select": _select,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.nn.functional.softplus(x, threshold=40.0),
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}


class _Equations(NamedTuple):
    """What is computed of a cell: of plain values, which torch.compile reads."""

    forward: FunctionType
    x_gates: int
    gates: int
    h_gates: int
    reads_h: bool
    params: tuple[str, ...]
    own: tuple[str, ...]  # params, and matrices of products inside the step
    differentiable: tuple[bool, ...]  # of each input


_equations: dict[str, _Equations] = {}


def prepare(cell: Cell) -> str:
    """The key of ``cell`` (:func:`gpulstm.torch.known.key`), whose equations torch.compile finds from now on."""
    key = known.key(cell)
    if key not in _equations and isinstance(cell, TracedCell):
        module = ModuleType(f"{__name__}.{key}")
        vars(module).update(_FUNCTIONS, __builtins__=builtins)
        sys.modules[module.__name__] = module  # where torch.compile looks for what a function reads
        _equations[key] = _Equations(
            FunctionType(cell.module.forward.__code__, vars(module), cell.name),
            len(cell.x_gates),
            len(cell.gates),
            len(cell.h_gates),
            cell.reads_h,
            cell.params,
            cell.own,
            tuple(name in cell.differentiable for name in cell.inputs),
        )
    return key


for _cell in (cells.lstm, cells.gru, cells.rnn, cells.rnn_relu):
    prepare(_cell)


def _of(key: str) -> _Equations:
    """Those of the cell that ``key`` stands for.

    Raises:
        ValueError: it is written by hand, not in the language.
    """
    if key not in _equations:
        cell = known.cell_of(key)
        prepare(cell)
        if key not in _equations:
            raise ValueError(
                f"cell: {cell.name!r}: expected one written in the language for gradients of gradients and for "
                f"torch.compile of torch.func, got one written by hand, whose maths is no torch"
            )
    return _equations[key]


def layer(
    cell: str,
    x: Tensor,
    lengths: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    gates_given: bool = False,
) -> tuple[Tensor, ...]:
    """One layer: y (T, B, D·P), zero past a sequence's length, and the final h (D, B, P) and carried states (D, B, H).

    Args:
        cell: a cell's key, such as ``"lstm"``.
        x: (T, B, I), or where ``gates_given`` the pre-activations of each direction (T, B, D·Gx·H).
        lengths: (B,), or None for T.
        state: the initial h (D, B, P), then each carried state (D, B, H).
        weights: those of the forward direction in torch's order, the cell's own parameters last, then those of the
            reverse one.
        inputs: those of the cell (N, T, B, W), W being H or 1; None for a cell without any.
        resets: (T, B) of bool, where a sequence begins; None for nowhere.

    Raises:
        ValueError: the cell is written by hand.
    """
    equations = _of(cell)
    directions = state[0].shape[0]
    count = len(weights) // directions
    of_h = equations.gates + equations.h_gates > 0
    valid = begins = None
    if lengths is not None:
        valid = torch.arange(len(x), device=x.device)[:, None, None] < lengths.to(x.device)[:, None]
    ys, finals = [], []
    with torch.autocast(x.device.type, enabled=False):
        for d in range(directions):
            names = known.names(of_h, equations.own, count, gates_given)
            own = dict(zip(names, weights[d * count : (d + 1) * count], strict=True))
            of_x = x.chunk(directions, dim=-1)[d] if gates_given else x @ own["weight_ih"].mT
            if resets is not None:  # a direction that runs back begins anew a step of time later than the border
                begins = torch.cat([resets[1:], torch.zeros_like(resets[:1])]) if d == 1 else resets
            initial = tuple(part[d] for part in state)
            y, final = _direction(equations, of_x, valid, begins, initial, own, inputs, reverse=d == 1)
            ys.append(y)
            finals.append(final)
    return torch.cat(ys, dim=-1), *(torch.stack(parts) for parts in zip(*finals, strict=True))


def _direction(
    cell: _Equations,
    of_x: Tensor,
    valid: Tensor | None,
    begins: Tensor | None,
    state: States,
    weights: Mapping[str, Tensor],
    inputs: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States]:
    if "bias_ih" in weights:
        of_x = of_x + weights["bias_ih"]
    rows = (*of_x.shape[1:-1], of_x.shape[-1] // (cell.gates + cell.x_gates))  # a value a unit
    params = [weights[name].expand(rows) for name in cell.params]
    beside = []
    if inputs is not None:
        split = zip(inputs.unbind(0), cell.differentiable, strict=True)
        beside = [value if differentiable else value.detach() for value, differentiable in split]
    forward: Any = cell.forward
    if len(cell.own) > len(params):  # it calls product(name, value)
        multiply = {"product": lambda name, value: value @ weights[f"weight_{name}"].mT}
        forward = FunctionType(forward.__code__, forward.__globals__ | multiply, forward.__name__)
    steps = range(len(of_x))
    outputs: list[Tensor] = []
    for t in reversed(steps) if reverse else steps:
        before = state
        if begins is not None:
            before = tuple(torch.where(begins[t][:, None], 0, part) for part in state)
        h, *carried = before
        gates = _gates(cell, of_x[t], h, weights)
        given = (*[h] * cell.reads_h, *params, *(value[t].expand(rows) for value in beside))
        hidden, after, _ = forward(gates, tuple(carried), *[given] * bool(given))
        new = (hidden @ weights["weight_hr"].mT if "weight_hr" in weights else hidden, *after)
        if valid is None:
            state = new
            outputs.append(new[0])
        else:  # past a sequence's length its state no longer changes
            state = tuple(torch.where(valid[t], a, b) for a, b in zip(new, state, strict=True))
            outputs.append(torch.where(valid[t], new[0], 0))
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _gates(cell: _Equations, of_x: Tensor, h: Tensor, weights: Mapping[str, Tensor]) -> States:
    """Those of a step, in the order of ``Cell.preactivations``: of x alone, summed ones, of h alone."""
    summed, given = cell.gates, of_x.chunk(cell.gates + cell.x_gates, dim=-1)
    if "weight_hh" not in weights:
        return given
    product = _times_heads(h, weights["weight_hh"])
    if "bias_hh" in weights:
        product = product + weights["bias_hh"]
    of_h = product.chunk(summed + cell.h_gates, dim=-1)
    return (*given[summed:], *(a + b for a, b in zip(given[:summed], of_h[:summed], strict=True)), *of_h[summed:])


def _times_heads(h: Tensor, weight: Tensor) -> Tensor:
    """h (B, P) times ``weight`` (Gh·H, P), or times that of each head (N, Gh·H/N, H/N): (B, Gh·H), gate by gate."""
    if weight.dim() == 2:
        return h @ weight.mT
    heads, _, units = weight.shape
    by_head = (h.unflatten(-1, (heads, 1, units)) @ weight.mT).squeeze(-2)  # (B, N, Gh·H/N)
    return by_head.unflatten(-1, (-1, units)).transpose(-3, -2).flatten(-3)
