"""Gradients of the operator: :func:`layer` is what modules call.

It is an ``autograd.Function`` over the operator rather than the operator with its registered gradient, because that can
be neither transformed by ``torch.func`` nor differentiated twice; the registered one serves exported programs. The
gradient of the gradient comes from :mod:`.equations`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpulstm_kernels.backend import LayerShape

from .. import checks, dispatch
from . import bridge, equations, known, operator


def layer(
    cell: str,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    inputs: Tensor | None = None,
    resets: Tensor | None = None,
    gates_given: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y (T, B, D·P) and the final state, differentiable; the arguments are those of ``gpulstm::layer_forward``.

    Tensors are of one device and dtype: float32 or float64, on a GPU float16 or bfloat16 too.
    """
    heads = any(weight.dim() == 3 for weight in weights[:2])
    features = heads, resets is not None, gates_given
    backend = _backend_name(bridge.backend_device(x.device), cell, x.dtype, *features)
    leaves = (x, *state, *weights, *([] if inputs is None else [inputs]))
    if _is_transformed() and torch.compiler.is_compiling():  # which takes no autograd.Function inside torch.func
        results = equations.layer(cell, x, lengths, state, weights, inputs, resets, gates_given)
    elif _is_recorded(leaves):
        function = Layer if _is_transformed() else PlainLayer
        results = function.apply(cell, backend, lengths, resets, gates_given, len(state), len(weights), *leaves)
    else:
        results = operator.forward(x, state, weights, lengths, cell, backend, False, inputs, resets, gates_given)
    return results[0], tuple(results[1 : 1 + len(state)])


@torch.compiler.assume_constant_result  # a compiled graph keeps the backend that it was traced with
def _backend_name(device: str, cell: str, dtype: torch.dtype, heads: bool, resets: bool, gates_given: bool) -> str:
    return dispatch.select(_smallest(cell, dtype, heads, resets, gates_given), device)[0].name


@torch.compiler.assume_constant_result
def computes_heads(device: str, cell: str, dtype: torch.dtype) -> bool:
    """Whether the backend of calls on ``device`` computes layers with heads, whose x are pre-activations."""
    shape = _smallest(cell, dtype, True, False, True)
    return dispatch.select(None, device)[0].module.why_not(shape) is None


@functools.cache
def _smallest(cell: str, dtype: torch.dtype, heads: bool, resets: bool, gates_given: bool) -> LayerShape:
    """Of a call with such a cell and dtype: what a compiler knows when it asks, which may know no sizes."""
    own, units = checks.dtype(str(dtype).removeprefix("torch."), "cuda"), 2 if heads else 1
    features, kind = (False, False, False, False, resets, units, False, gates_given), known.cell_of(cell)
    inputs = len(kind.gates_of_x) * units if gates_given else 1
    return LayerShape(kind, 1, 1, inputs, units, units, 1, own, own, *features)


def _is_recorded(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd records what is computed from ``tensors``, so that the tape must be kept."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False  # a program that leaves Python holds the operator alone
    if _is_transformed():
        return True  # a tensor under vmap does not show whether its gradient is asked for outside
    return any(tensor.requires_grad for tensor in tensors)


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is under way."""
    return torch._C._are_functorch_transforms_active()


# Of the tensors of a call the leaves are those that may have a gradient: x, *state, *weights, and the cell's inputs
# where it has any. What an autograd.Function is given is flat, since it looks into no tuple.


def _split(
    n_states: int, n_weights: int, leaves: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None]:
    """x, state, weights, inputs."""
    states, end = 1 + n_states, 1 + n_states + n_weights
    return leaves[0], leaves[1:states], leaves[states:end], leaves[end] if len(leaves) > end else None


class Layer(torch.autograd.Function):
    """``apply(cell, backend, lengths, resets, gates_given, number of states, of weights, *leaves)`` gives y, the final
    state, the tape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str,
        backend: str,
        lengths: Tensor | None,
        resets: Tensor | None,
        gates_given: bool,
        n_states: int,
        n_weights: int,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        x, state, weights, inputs = _split(n_states, n_weights, leaves)
        given = inputs, resets, gates_given
        ys, *others = operator.forward(x, state, weights, lengths, cell, backend, True, *given)
        return (ys[1:-1], *others[:n_states], ys, *others[n_states:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, ctx.backend, lengths, resets, ctx.gates_given, ctx.n_states, ctx.n_weights, *leaves = inputs
        ctx.n_leaves = len(leaves)
        tape = output[1 + ctx.n_states :]
        ctx.mark_non_differentiable(*tape)
        ctx.set_materialize_grads(False)  # the tape's would be as large as the tape
        # y, so that torch notices if it is changed in place: the tape shares its memory
        ctx.save_for_backward(lengths, resets, output[0], *leaves, *tape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths, resets, y, *saved = ctx.saved_tensors
        dstate = rest[: ctx.n_states]
        leaves = saved[: ctx.n_leaves]
        upstream = [
            torch.zeros_like(like) if gradient is None else gradient
            for gradient, like in zip((dy, *dstate), (y, *leaves[1 : 1 + ctx.n_states]), strict=True)
        ]
        shape = ctx.cell, ctx.backend, lengths, resets, ctx.gates_given, ctx.n_states, ctx.n_weights
        found = _gradients(shape, leaves, saved[len(leaves) :], upstream)
        return (None,) * 7 + (*found, *[None] * (len(leaves) - len(found)))  # inputs may be constants to the gradient


class PlainLayer(torch.autograd.Function):
    """:class:`Layer` in the older form, which costs half as much a call but which ``torch.func`` does not take."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = Layer.forward(*inputs)
        if not torch.compiler.is_compiling():  # no view in torch's eyes: it may be changed in place, short of backward
            output = (output[0].data, *output[1:])
        Layer.setup_context(ctx, inputs, output)
        return output

    backward = Layer.backward


# cell, backend, lengths, resets, gates_given, number of states, number of weights
Shape = tuple[str, str, Tensor | None, Tensor | None, bool, int, int]


def _gradients(
    shape: Shape, leaves: Sequence[Tensor], tape: Sequence[Tensor], upstream: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Those of the leaves, of inputs where the cell says so."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # it will not be differentiated itself
        cell, backend, lengths, resets, gates_given, n_states, n_weights = shape
        x, state, weights, inputs = _split(n_states, n_weights, leaves)
        dy, *dstate = upstream
        given = inputs, resets, gates_given
        return operator.backward(x, state, weights, lengths, tape, dy, dstate, cell, backend, *given)
    return LayerGradient.apply(*shape, len(leaves), *leaves, *upstream, *tape)


class LayerGradient(torch.autograd.Function):
    """``apply(*shape, number of leaves, *leaves, dy, *dstate, *tape)`` gives the gradients of the leaves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str,
        backend: str,
        lengths: Tensor | None,
        resets: Tensor | None,
        gates_given: bool,
        n_states: int,
        n_weights: int,
        n_leaves: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        x, state, weights, inputs = _split(n_states, n_weights, tensors[:n_leaves])
        dy, *rest = tensors[n_leaves:]
        dstate, tape = rest[:n_states], rest[n_states:]
        given = x, state, weights, lengths, tape, dy, dstate, cell, backend, inputs, resets, gates_given
        return tuple(operator.backward(*given))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, _, lengths, resets, ctx.gates_given, ctx.n_states, ctx.n_weights, ctx.n_leaves, *tensors = inputs
        given = ctx.n_leaves + 1 + ctx.n_states
        ctx.n_tape = len(tensors) - given
        ctx.save_for_backward(lengths, resets, *tensors[:given])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        lengths, resets, *saved = ctx.saved_tensors

        def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
            x, state, weights, inputs = _split(ctx.n_states, ctx.n_weights, leaves)
            return equations.layer(ctx.cell, x, lengths, state, weights, inputs, resets, ctx.gates_given)

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = torch.func.vjp(outputs, *tensors[: ctx.n_leaves])[1](tensors[ctx.n_leaves :])
            return found[: len(upstream)]

        of_inputs = torch.func.vjp(gradients, *saved)[1](upstream)
        return (None,) * 8 + of_inputs + (None,) * ctx.n_tape


def _setup_for_export(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, state, weights, lengths, cell, backend, training, beside, resets, ctx.gates_given = inputs
    tape = [output[0], *output[1 + len(state) :]] if training else []
    ctx.shape, ctx.training, ctx.given = (cell, backend, len(state), len(weights)), training, beside is not None
    ctx.save_for_backward(lengths, resets, x, *state, *weights, *([beside] if ctx.given else []), *tape)


def _backward_for_export(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    """The registered gradient of ``gpulstm::layer_forward``."""
    cell, backend, n_states, n_weights = ctx.shape
    lengths, resets, *saved = ctx.saved_tensors
    n_leaves = 1 + n_states + n_weights + ctx.given
    leaves, tape = saved[:n_leaves], saved[n_leaves:]
    upstream = list(gradients[: 1 + n_states])
    if ctx.training:
        upstream[0] = upstream[0][1:-1]
    shape = cell, backend, lengths, resets, ctx.gates_given, n_states, n_weights
    found = _gradients(shape, leaves, tape, upstream)
    dx, dstate, dweights, dinputs = _split(n_states, n_weights, found)
    of_arguments = dx, list(dstate), list(dweights), None, None, None, None, dinputs, None, None
    return of_arguments[: len(ctx.needs_input_grad)]  # torch leaves out arguments that have their defaults


torch.library.register_autograd(
    "gpulstm::layer_forward", _backward_for_export, setup_context=_setup_for_export, lib=operator.library
)
