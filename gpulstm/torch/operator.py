"""The operator: one recurrent layer, both directions, over a whole sequence, registered with ``torch.library``.

``gpulstm::layer_forward``
    x (T, B, I), state [h (D, B, P), each carried state (D, B, H)], weights (those of a direction in torch's order,
    forward first), lengths (B,) int64 on the CPU or None, the names of cell and backend, and ``training``.
    Gives [y (T, B, D·P), final h, final carried states]; y past a length is unspecified. In training the tape follows,
    and in place of y comes ``ys`` (T+2, B, D·P), a part of it, whose ``[1:-1]`` is y: outputs may not overlap.
``gpulstm::layer_backward``
    the same, the tape (where it is empty, it is computed again), dy and the gradients of the final state. Gives
    [dx, gradients of the initial state, gradients of the weights].

Their gradients are in :mod:`.autograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpulstm_kernels.backend import Backend, LayerShape
from gpulstm_kernels.cells import Cell

from .. import cells, checks, dispatch
from . import bridge, equations

library = torch.library.Library("gpulstm", "DEF")
_CALL = "Tensor x, Tensor[] state, Tensor[] weights, Tensor? lengths"
library.define(
    f"layer_forward({_CALL}, str cell, str backend, bool training) -> Tensor[]", tags=[torch.Tag.pt2_compliant_tag]
)
library.define(
    f"layer_backward({_CALL}, Tensor[] tape, Tensor dy, Tensor[] dstate, str cell, str backend) -> Tensor[]",
    tags=[torch.Tag.pt2_compliant_tag],
)
forward = torch.ops.gpulstm.layer_forward.default
backward = torch.ops.gpulstm.layer_backward.default


# --- what runs


def _named(cell: Cell, x: Any, state: Sequence[Any], weights: Sequence[Any]) -> list[dict[str, Any]]:
    """The arrays ``weights`` of each direction by name. Kernels go by addresses and sizes: each is checked."""
    directions, _, outputs = state[0].shape
    count = len(weights) // directions
    named = [dict(zip(equations.names(count), weights[d * count :], strict=False)) for d in range(directions)]
    hidden = named[0]["weight_hr"].shape[1] if "weight_hr" in named[0] else outputs
    rows = len(cell.gates) * hidden
    shapes = {"weight_ih": (rows, x.shape[2]), "weight_hh": (rows, outputs), "weight_hr": (outputs, hidden)}
    for d, own in enumerate(named):
        for name, value in own.items():
            shape = shapes.get(name, (rows,))
            if value.shape != shape or value.dtype != x.dtype:
                raise ValueError(
                    f"{name}{'_reverse' if d else ''}: expected {x.dtype} of shape {shape}, got {value.dtype} of shape "
                    f"{value.shape}"
                )
    return named


def _module(name: str, shape: LayerShape) -> Backend:
    """The backend called ``name``, which computes calls of such a shape: else it says why not before anything runs."""
    return dispatch.module_for(dispatch.check_backend(name), shape)


def _forward(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    cell: str,
    backend: str,
    training: bool,
) -> list[Tensor]:
    if x.shape[1] == 0:  # no sequence at all
        return _forward_shapes(x, state, weights, lengths, cell, backend, training)
    with bridge.on_stream_of(x):
        (given,), initial, own = (bridge.to_arrays(tensors) for tensors in ((x,), state, weights))
        limits = None if lengths is None else bridge.to_arrays([lengths])[0]
        kind = cells.get(cell)
        named = _named(kind, given, initial, own)
        shape = LayerShape.of(kind, given, named, limits, training)
        module = _module(backend, shape)
        y, final, tape = module.layer_forward(shape, given, tuple(initial), named, limits)
        first, *rest = module.tape_arrays(tape) if training else [y]
        return bridge.to_tensors([first, *final, *rest])


def _backward(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    tape: Sequence[Tensor],
    dy: Tensor,
    dstate: Sequence[Tensor],
    cell: str,
    backend: str,
) -> list[Tensor]:
    if x.shape[1] == 0:
        return [torch.zeros_like(tensor) for tensor in (x, *state, *weights)]
    with bridge.on_stream_of(x):
        (given, upstream), initial, own, arrays, of_final = (
            bridge.to_arrays(tensors) for tensors in ((x, dy), state, weights, tape, dstate)
        )
        limits = None if lengths is None else bridge.to_arrays([lengths])[0]
        kind = cells.get(cell)
        named = _named(kind, given, initial, own)
        shape = LayerShape.of(kind, given, named, limits, True)
        module = _module(backend, shape)
        if arrays:
            taken = module.tape_of(shape, given, named, limits, arrays)
        else:
            taken = module.layer_forward(shape, given, tuple(initial), named, limits)[2]
        dx, dinitial, grads = module.layer_backward(taken, upstream, tuple(of_final))
        of_weights = [grad[name] for grad, w in zip(grads, named, strict=True) for name in w]
        return bridge.to_tensors([dx, *dinitial, *of_weights])


library.impl("layer_forward", _forward, "CompositeExplicitAutograd")
library.impl("layer_backward", _backward, "CompositeExplicitAutograd")


# --- what the compiler must know: shapes


@torch.library.register_fake("gpulstm::layer_forward", lib=library)
def _forward_shapes(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    cell: str,
    backend: str,
    training: bool,
) -> list[Tensor]:
    steps, batch, _ = x.shape
    directions, _, outputs = state[0].shape
    final = [x.new_empty(part.shape) for part in state]
    if not training:
        return [x.new_empty((steps, batch, directions * outputs)), *final]
    kind, count = cells.get(cell), len(weights) // directions
    dtype = checks.dtype(str(x.dtype).removeprefix("torch."), "cuda")
    hidden = weights[1].shape[0] // len(kind.gates)
    features = True, count in (4, 5), count in (3, 5), lengths is not None  # count may be a symbol, which no dict takes
    shape = LayerShape(kind, steps, batch, x.shape[2], hidden, outputs, directions, dtype, dtype, *features)
    layout = dispatch.check_backend(backend).module.tape_layout(shape)
    first, *rest = (x.new_empty(shape, dtype=getattr(torch, name)) for shape, name in layout)
    return [first, *final, *rest]


@torch.library.register_fake("gpulstm::layer_backward", lib=library)
def _backward_shapes(
    x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], lengths: Tensor | None, *_: Any
) -> list[Tensor]:
    return [x.new_empty(tensor.shape) for tensor in (x, *state, *weights)]


# --- vmap


def _member(value: Any, dim: Any, index: int) -> Any:
    """Number ``index`` of an argument that is batched along ``dim``, or of each in a list."""
    if isinstance(value, (list, tuple)):
        return [_member(part, d, index) for part, d in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, index)


def _one_by_one(op: Callable[..., list[Tensor]]) -> Callable[..., Any]:
    """The rule that calls ``op`` for each member of the batch: an ensemble's weights are read anyway."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
        results = []
        for index in range(info.batch_size):
            results.append(op(*(_member(value, dim, index) for value, dim in zip(args, in_dims, strict=True))))
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


_each = _one_by_one(forward)


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
    """Sequences that share their weights become one batch; else, and in training, one by one."""
    x, state, weights, lengths, cell, backend, training = args
    x_dim, state_dims, weight_dims, lengths_dim, *_ = in_dims
    if training or any(dim is not None for dim in weight_dims) or lengths_dim is not None:
        return _each(info, in_dims, *args)
    count = info.batch_size

    def joined(tensor: Tensor, dim: int | None) -> Tensor:
        """(·, N, B, ·) as (·, N·B, ·)."""
        parts = tensor.unsqueeze(1).expand(-1, count, -1, -1) if dim is None else tensor.movedim(dim, 1)
        return parts.flatten(1, 2)

    states = [joined(part, dim) for part, dim in zip(state, state_dims, strict=True)]
    limits = None if lengths is None else lengths.repeat(count)
    results = forward(joined(x, x_dim), states, weights, limits, cell, backend, training)
    return [part.unflatten(1, (count, part.shape[1] // count)) for part in results], [1] * len(results)


torch.library.register_vmap("gpulstm::layer_forward", _forward_vmap, lib=library)
torch.library.register_vmap("gpulstm::layer_backward", _one_by_one(backward), lib=library)
