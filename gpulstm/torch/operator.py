"""The operator: one recurrent layer, both directions, over a whole sequence, registered with ``torch.library``.

``gpulstm::layer_forward``
    x (T, B, I), state [h (D, B, P), each carried state (D, B, H)], weights (those of a direction in torch's order, and
    the cell's own parameters, forward first), lengths (B,) int64 on the CPU or None, the key of the cell
    (:mod:`.known`), the name of the backend, ``training``, the cell's inputs (N, T, B, H or 1) or None, and resets
    (T, B) of bool or None, False past a sequence's length.
    ``gates_given``: x holds pre-activations (T, B, D·Gx·H), and there is no ``weight_ih``.
    Gives [y (T, B, D·P), final h, final carried states]; y past a length is unspecified. In training the tape follows,
    and in place of y comes ``ys`` (T+2, B, D·P), a part of it, whose ``[1:-1]`` is y: outputs may not overlap.
``gpulstm::layer_backward``
    the same, the tape (where it is empty, it is computed again), dy and the gradients of the final state. Gives
    [dx, gradients of the initial state, gradients of the weights], and for a cell with differentiable inputs that of
    all inputs, which is zero for the others.

Their gradients are in :mod:`.autograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpulstm_kernels.backend import Backend, LayerShape
from gpulstm_kernels.cells import Cell

from .. import checks, dispatch
from . import bridge, known

library = torch.library.Library("gpulstm", "DEF")
_CALL = "Tensor x, Tensor[] state, Tensor[] weights, Tensor? lengths"
_GIVEN = "Tensor? inputs=None, Tensor? resets=None, bool gates_given=False"
library.define(
    f"layer_forward({_CALL}, str cell, str backend, bool training, {_GIVEN}) -> Tensor[]",
    tags=[torch.Tag.pt2_compliant_tag],
)
library.define(
    f"layer_backward({_CALL}, Tensor[] tape, Tensor dy, Tensor[] dstate, str cell, str backend, {_GIVEN}) -> Tensor[]",
    tags=[torch.Tag.pt2_compliant_tag],
)
forward = torch.ops.gpulstm.layer_forward.default
backward = torch.ops.gpulstm.layer_backward.default


# --- what runs


class _Call:
    """The arguments of a call as arrays. Kernels go by addresses and sizes: each is checked."""

    def __init__(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        weights: Sequence[Tensor],
        lengths: Tensor | None,
        cell: str,
        inputs: Tensor | None,
        resets: Tensor | None,
        gates_given: bool,
    ) -> None:
        steps, batch, _ = x.shape
        self.cell = known.cell_of(cell)
        (self.x,), initial, own = (bridge.to_arrays(tensors) for tensors in ((x,), state, weights))
        self.state = tuple(initial)
        self.weights, hidden = _named(self.cell, self.x, initial, own, gates_given)
        self.lengths = self.inputs = self.resets = None
        if lengths is not None:
            self.lengths = checks.lengths(bridge.to_arrays([lengths.cpu()])[0], batch, steps)
        if self.cell.inputs or inputs is not None:
            shapes = ((len(self.cell.inputs), steps, batch, width) for width in (1, hidden))
            (self.inputs,) = bridge.to_arrays([_checked(inputs, "inputs", x.dtype, *shapes)])
        if resets is not None:
            (self.resets,) = bridge.to_arrays([_checked(resets, "resets", torch.bool, (steps, batch))])

    def backend(self, name: str, training: bool) -> tuple[Backend, LayerShape]:
        """The backend of that name, which computes the call: else it says why not before anything runs."""
        shape = LayerShape.of(self.cell, self.x, self.weights, self.lengths, training, self.resets)
        return dispatch.module_for(dispatch.check_backend(name), shape), shape

    def forward(self, module: Backend, shape: LayerShape) -> Any:
        return module.layer_forward(shape, self.x, self.state, self.weights, self.lengths, self.inputs, self.resets)


def _named(
    cell: Cell, x: Any, state: Sequence[Any], weights: Sequence[Any], gates_given: bool
) -> tuple[list[dict[str, Any]], int]:
    """The arrays ``weights`` of each direction by name, checked, and H."""
    directions, _, outputs = state[0].shape
    count = len(weights) // directions
    names = known.names(bool(cell.gates_of_h), cell.own, count, gates_given)
    named = [dict(zip(names, weights[d * count :], strict=False)) for d in range(directions)]
    first = named[0]
    hidden = first["weight_hr"].shape[1] if "weight_hr" in first else outputs
    rows_of_x, rows_of_h = len(cell.gates_of_x) * hidden, len(cell.gates_of_h) * hidden
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(cell.params, (hidden,))
    shapes |= {f"weight_{name}": (hidden, hidden) for name in cell.weights}
    shapes |= {"weight_ih": (rows_of_x, x.shape[2]), "weight_hh": (rows_of_h, outputs), "weight_hr": (outputs, hidden)}
    shapes |= {"bias_ih": (rows_of_x,), "bias_hh": (rows_of_h,)}
    if "weight_hh" in first and first["weight_hh"].ndim == 3:
        heads = max(1, len(first["weight_hh"]))
        shapes["weight_hh"] = (heads, rows_of_h // heads, hidden // heads)
    if gates_given and x.shape[2] != directions * rows_of_x:
        raise ValueError(f"x: expected {directions * rows_of_x} pre-activations of a step, got shape {x.shape}")
    for d, own in enumerate(named):
        for name, value in own.items():
            if value.shape != shapes[name] or value.dtype != x.dtype:
                raise ValueError(
                    f"{name}{'_reverse' if d else ''}: expected {x.dtype} of shape {shapes[name]}, got {value.dtype} "
                    f"of shape {value.shape}"
                )
    return named, hidden


def _checked(tensor: Tensor | None, name: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> Tensor:
    if tensor is None or tensor.dtype != dtype or tensor.shape not in shapes:
        found = "None" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{name}: expected {dtype} of shape {' or '.join(map(str, shapes))}, got {found}")
    return tensor


def _forward(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    cell: str,
    backend: str,
    training: bool,
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    gates_given: bool = False,
) -> list[Tensor]:
    if x.shape[1] == 0:  # no sequence at all
        return _forward_shapes(x, state, weights, lengths, cell, backend, training, inputs, resets, gates_given)
    with bridge.on_stream_of(x):
        call = _Call(x, state, weights, lengths, cell, inputs, resets, gates_given)
        module, shape = call.backend(backend, training)
        y, final, tape = call.forward(module, shape)
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
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    gates_given: bool = False,
) -> list[Tensor]:
    if x.shape[1] == 0:
        return [torch.zeros_like(tensor) for tensor in _with_gradients(x, state, weights, cell, inputs)]
    with bridge.on_stream_of(x):
        call = _Call(x, state, weights, lengths, cell, inputs, resets, gates_given)
        (upstream,), arrays, of_final = (bridge.to_arrays(tensors) for tensors in ((dy,), tape, dstate))
        module, shape = call.backend(backend, True)
        if arrays:
            taken = module.tape_of(shape, call.x, call.weights, call.lengths, arrays, call.inputs, call.resets)
        else:
            taken = call.forward(module, shape)[2]
        dx, dinitial, grads = module.layer_backward(taken, upstream, tuple(of_final))
        of_weights = [grad[name] for grad, w in zip(grads, call.weights, strict=True) for name in w]
        found = bridge.to_tensors([dx, *dinitial, *of_weights])
        if call.cell.differentiable:
            assert inputs is not None
            found.append(_of_inputs(call.cell, grads, inputs))
        return found


def _of_inputs(cell: Cell, grads: Sequence[dict[str, Any]], inputs: Tensor) -> Tensor:
    """The gradient of all ``inputs`` by those of each direction, to which they are the same."""
    of_each = []
    for k, name in enumerate(cell.inputs):
        if name in cell.differentiable:
            first, *others = bridge.to_tensors([grad[f"inputs.{name}"] for grad in grads])
            of_each.append(first + others[0] if others else first)
        else:
            of_each.append(torch.zeros_like(inputs[k]))
    return torch.stack(of_each)


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
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    gates_given: bool = False,
) -> list[Tensor]:
    steps, batch, features = x.shape
    directions, _, outputs = state[0].shape
    final = [x.new_empty(part.shape) for part in state]
    if not training:
        return [x.new_empty((steps, batch, directions * outputs)), *final]
    kind = known.cell_of(cell)
    dtype = checks.dtype(str(x.dtype).removeprefix("torch."), "cuda")
    rows = features // directions if gates_given else weights[0].shape[0]
    hidden, of_h = rows // len(kind.gates_of_x), bool(kind.gates_of_h)
    hh = weights[0 if gates_given else 1] if of_h else x
    heads = hh.shape[0] if of_h and hh.dim() == 3 else 1
    bias, projected = known.features(of_h, len(kind.own), len(weights) // directions + gates_given)
    own = True, bias, projected, lengths is not None, resets is not None, heads, False, gates_given
    shape = LayerShape(kind, steps, batch, features, hidden, outputs, directions, dtype, dtype, *own)
    layout = dispatch.check_backend(backend).module.tape_layout(shape)
    first, *rest = (x.new_empty(shape, dtype=getattr(torch, name)) for shape, name in layout)
    return [first, *final, *rest]


def _with_gradients(
    x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], cell: str, inputs: Tensor | None
) -> list[Tensor]:
    """What backward gives gradients of."""
    differentiable = inputs is not None and known.cell_of(cell).differentiable
    return [x, *state, *weights, *([inputs] if differentiable and inputs is not None else [])]


@torch.library.register_fake("gpulstm::layer_backward", lib=library)
def _backward_shapes(
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    tape: Sequence[Tensor],
    dy: Tensor,
    dstate: Sequence[Tensor],
    cell: str,
    backend: str,
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    gates_given: bool = False,
) -> list[Tensor]:
    return [x.new_empty(tensor.shape) for tensor in _with_gradients(x, state, weights, cell, inputs)]


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
    """Sequences that share their weights become one batch; else, in training, and with inputs or resets one by one."""
    x, state, weights, lengths, cell, backend, training, *beside = args
    given, gates_given = beside[:2], beside[2:]
    x_dim, state_dims, weight_dims, lengths_dim, *_ = in_dims
    shared = lengths_dim is None and all(dim is None for dim in weight_dims)
    if training or not shared or any(one is not None for one in given):
        return _each(info, in_dims, *args)
    count = info.batch_size

    def joined(tensor: Tensor, dim: int | None) -> Tensor:
        """(·, N, B, ·) as (·, N·B, ·)."""
        parts = tensor.unsqueeze(1).expand(-1, count, -1, -1) if dim is None else tensor.movedim(dim, 1)
        return parts.flatten(1, 2)

    states = [joined(part, dim) for part, dim in zip(state, state_dims, strict=True)]
    limits = None if lengths is None else lengths.repeat(count)
    results = forward(joined(x, x_dim), states, weights, limits, cell, backend, training, None, None, *gates_given)
    return [part.unflatten(1, (count, part.shape[1] // count)) for part in results], [1] * len(results)


torch.library.register_vmap("gpulstm::layer_forward", _forward_vmap, lib=library)
torch.library.register_vmap("gpulstm::layer_backward", _one_by_one(backward), lib=library)
