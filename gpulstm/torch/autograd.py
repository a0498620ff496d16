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
from gpulstm_kernels.cells import Cell

from .. import cells, checks, dispatch
from . import bridge, equations, operator


def layer(
    cell: Cell, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y (T, B, D·P) and the final state, differentiable; the arguments are those of ``gpulstm::layer_forward``.

    Tensors are of one device and dtype: float32 or float64, on a GPU float16 or bfloat16 too.
    """
    backend = _backend_name(bridge.backend_device(x.device), cell.name, x.dtype)
    if _is_transformed() and torch.compiler.is_compiling():  # which takes no autograd.Function inside torch.func
        results = equations.layer(cell.name, x, lengths, state, weights)
    elif _is_recorded((x, *state, *weights)):
        function = Layer if _is_transformed() else PlainLayer
        results = function.apply(cell.name, backend, lengths, len(state), x, *state, *weights)
    else:
        results = operator.forward(x, state, weights, lengths, cell.name, backend, False)
    return results[0], tuple(results[1 : 1 + len(state)])


@torch.compiler.assume_constant_result  # a compiled graph keeps the backend that it was traced with
def _backend_name(device: str, cell: str, dtype: torch.dtype) -> str:
    return dispatch.select(_smallest(cell, dtype), device)[0].name


@functools.cache
def _smallest(cell: str, dtype: torch.dtype) -> LayerShape:
    """Of a call with such a cell and dtype: what a compiler knows when it asks, which may know no sizes."""
    own = checks.dtype(str(dtype).removeprefix("torch."), "cuda")
    return LayerShape(
        cells.get(cell), 1, 1, 1, 1, 1, 1, own, own, training=False, bias=False, projected=False, ragged=False
    )


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


class Layer(torch.autograd.Function):
    """``apply(cell, backend, lengths, number of states, x, *state, *weights)`` gives y, the final state, the tape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str, backend: str, lengths: Tensor | None, n_states: int, x: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        state, weights = rest[:n_states], rest[n_states:]
        ys, *others = operator.forward(x, state, weights, lengths, cell, backend, True)
        return (ys[1:-1], *others[:n_states], ys, *others[n_states:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, ctx.backend, lengths, ctx.n_states, *tensors = inputs
        tape = output[1 + ctx.n_states :]
        ctx.n_weights = len(tensors) - 1 - ctx.n_states
        ctx.mark_non_differentiable(*tape)
        ctx.set_materialize_grads(False)  # the tape's would be as large as the tape
        # y, so that torch notices if it is changed in place: the tape shares its memory
        ctx.save_for_backward(lengths, output[0], *tensors, *tape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths, y, *saved = ctx.saved_tensors
        dstate = rest[: ctx.n_states]
        inputs = saved[: 1 + ctx.n_states + ctx.n_weights]
        upstream = [
            torch.zeros_like(like) if gradient is None else gradient
            for gradient, like in zip((dy, *dstate), (y, *inputs[1 : 1 + ctx.n_states]), strict=True)
        ]
        shape = ctx.cell, ctx.backend, lengths, ctx.n_states, ctx.n_weights
        return None, None, None, None, *_gradients(shape, inputs, saved[len(inputs) :], upstream)


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


Shape = tuple[str, str, Tensor | None, int, int]  # cell, backend, lengths, number of states, number of weights


def _split(shape: Shape, tensors: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """x, state, weights."""
    states = 1 + shape[3]
    return tensors[0], tensors[1:states], tensors[states : states + shape[4]]


def _gradients(
    shape: Shape, inputs: Sequence[Tensor], tape: Sequence[Tensor], upstream: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Those of x, state and weights."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # it will not be differentiated itself
        x, state, weights = _split(shape, inputs)
        return operator.backward(x, state, weights, shape[2], tape, upstream[0], upstream[1:], shape[0], shape[1])
    return LayerGradient.apply(*shape, *inputs, *upstream, *tape)


class LayerGradient(torch.autograd.Function):
    """``apply(*shape, x, *state, *weights, dy, *dstate, *tape)`` gives the gradients of x, state and weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str, backend: str, lengths: Tensor | None, n_states: int, n_weights: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        x, state, weights = _split((cell, backend, lengths, n_states, n_weights), tensors)
        dy, *rest = tensors[1 + n_states + n_weights :]
        dstate, tape = rest[:n_states], rest[n_states:]
        return tuple(operator.backward(x, state, weights, lengths, tape, dy, dstate, cell, backend))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, _, lengths, ctx.n_states, ctx.n_weights, *tensors = inputs
        given = 2 + 2 * ctx.n_states + ctx.n_weights
        ctx.n_tape = len(tensors) - given
        ctx.save_for_backward(lengths, *tensors[:given])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        lengths, *saved = ctx.saved_tensors
        n_states, n_inputs = ctx.n_states, 1 + ctx.n_states + ctx.n_weights

        def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
            return equations.layer(ctx.cell, inputs[0], lengths, inputs[1 : 1 + n_states], inputs[1 + n_states :])

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(outputs, *tensors[:n_inputs])[1](tensors[n_inputs:])

        of_inputs = torch.func.vjp(gradients, *saved)[1](upstream)
        return (None,) * 5 + of_inputs + (None,) * ctx.n_tape


def _setup_for_export(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, state, weights, lengths, cell, backend, training = inputs
    tape = [output[0], *output[1 + len(state) :]] if training else []
    ctx.shape, ctx.training = (cell, backend, len(state), len(weights)), training
    ctx.save_for_backward(lengths, x, *state, *weights, *tape)


def _backward_for_export(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    """The registered gradient of ``gpulstm::layer_forward``."""
    cell, backend, n_states, n_weights = ctx.shape
    lengths, *saved = ctx.saved_tensors
    inputs, tape = saved[: 1 + n_states + n_weights], saved[1 + n_states + n_weights :]
    upstream = list(gradients[: 1 + n_states])
    if ctx.training:
        upstream[0] = upstream[0][1:-1]
    shape = cell, backend, lengths, n_states, n_weights
    dx, dstate, dweights = _split(shape, _gradients(shape, inputs, tape, upstream))
    return dx, list(dstate), list(dweights), None, None, None, None


torch.library.register_autograd(
    "gpulstm::layer_forward", _backward_for_export, setup_context=_setup_for_export, lib=operator.library
)
