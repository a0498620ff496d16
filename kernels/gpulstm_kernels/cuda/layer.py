"""The backend ``cupy``: one layer, both directions, as :mod:`gpulstm_kernels.backend` has it, on a CUDA device.

A layer is one product of all inputs with ``weight_ih``, a walk through time, and for the gradient three more products
over all steps. Which walk is :mod:`.select`'s choice; all of them share the arrays of :class:`.buffers.Buffers`, so
forward and backward may walk differently. Everything is enqueued on the caller's stream; nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import LayerShape
from . import select
from .buffers import Buffers
from .device import source
from .device.kernel import Kernel
from .device.precision import tf32_allowed
from .device.process import current
from .device.runtime import Runtime
from .walks import WALKS, Walk

_THREADS = 256
_COLUMNS, _ROWS = 32, 8  # the block of sum_rows


class LayerTape(NamedTuple):
    """What :func:`layer_forward` hands to :func:`layer_backward`."""

    runtime: Runtime
    shape: LayerShape
    x: Any
    weights: Sequence[Mapping[str, Any]]
    buffers: Buffers


def layer_forward(
    shape: LayerShape,
    x: Any,
    state: tuple[Any, ...],
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    runtime: Runtime | None = None,
) -> tuple[Any, tuple[Any, ...], LayerTape | None]:
    """See :class:`gpulstm_kernels.backend.Backend`; arrays on the device, ``lengths`` there or on the host.

    ``y`` is a view of the tape's ``ys``.
    """
    runtime = runtime or current()
    shape = _on_cuda(shape)
    cell, steps, batch, inputs, training = shape.cell, shape.steps, shape.batch, shape.inputs, shape.training
    dtype, sums, directions = shape.dtype, shape.accumulate, shape.directions
    hidden, outputs, rows = shape.hidden, shape.outputs, shape.rows

    slots, saves = steps + 1 if training else 1, training and cell.saved > 0
    buffers = Buffers(
        weight_hh=_stacked(runtime, [w["weight_hh"] for w in weights]),
        weight_hr=_stacked(runtime, [w["weight_hr"] for w in weights]) if shape.projected else None,
        lengths=_on_device(runtime, lengths),
        ys=runtime.empty((steps + 2, batch, directions * outputs), dtype),
        states=runtime.empty((len(cell.states), directions, slots, batch, hidden), sums) if cell.states else None,
        saved=runtime.empty((directions, steps, batch, cell.saved * hidden), dtype) if saves else None,
        hidden=runtime.empty((directions, steps if training else 1, batch, hidden), dtype) if shape.projected else None,
        gates=runtime.empty((directions, steps, batch, rows), sums),
    )
    for d, w in enumerate(weights):
        first = steps + 1 if d else 0
        runtime.copy(buffers.ys[first, :, d * outputs : (d + 1) * outputs], state[0][d])
        for k, initial in enumerate(state[1:]):
            _convert(runtime, dtype, initial[d], buffers.states[k, d, steps if d and training else 0])
        gates = buffers.gates[d].reshape(steps * batch, rows)
        runtime.gemm(x.reshape(steps * batch, inputs), w["weight_ih"], gates, transpose_b=True, tf32=shape.tf32)
    if shape.bias:
        buffers.bias = runtime.empty((directions, rows), sums)
        for d, w in enumerate(weights):
            arguments = (w["bias_ih"], w["bias_hh"], buffers.bias[d], rows)
            _elementwise(runtime, "add_biases", dtype, rows, arguments)

    walk = _walk(runtime, shape, backward=False)
    walk.forward(runtime, shape, buffers)
    buffers.gates = buffers.bias = None  # backward has no use for them

    final = runtime.empty((directions, batch, outputs), dtype)
    for d in range(directions):
        runtime.copy(final[d], buffers.ys[1 if d else steps, :, d * outputs : (d + 1) * outputs])
    finals = [final]
    for k in range(len(cell.states)):
        last = runtime.empty((directions, batch, hidden), dtype)
        for d in range(directions):
            _convert(runtime, dtype, buffers.states[k, d, steps if training and not d else 0], last[d])
        finals.append(last)
    tape = LayerTape(runtime, shape, x, weights, buffers) if training else None
    return buffers.ys[1:-1], tuple(finals), tape


def layer_backward(
    tape: LayerTape, dy: Any, dstate: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...], list[dict[str, Any]]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    runtime, shape, x, forward = tape.runtime, tape.shape, tape.x, tape.buffers
    cell, dtype, sums = shape.cell, shape.dtype, shape.accumulate
    steps, batch, inputs = shape.steps, shape.batch, shape.inputs
    directions, hidden, outputs = shape.directions, shape.hidden, shape.outputs
    rows, count = shape.rows, steps * batch

    buffers = Buffers(
        forward.weight_hh,
        forward.weight_hr,
        forward.lengths,
        forward.ys,
        forward.states,
        forward.saved,
        forward.hidden,
        dy=dy,
        dh=runtime.empty((directions, batch, outputs), sums),
        dstates=runtime.empty((len(cell.states), directions, batch, hidden), sums) if cell.states else None,
        dgates=runtime.empty((directions, steps, batch, rows), dtype),
        dprojected=runtime.empty((directions, steps, batch, outputs), dtype) if shape.projected else None,
    )
    _convert(runtime, dtype, dstate[0], buffers.dh)
    for k, gradient in enumerate(dstate[1:]):
        _convert(runtime, dtype, gradient, buffers.dstates[k])
    _walk(runtime, shape, backward=True).backward(runtime, shape, buffers)

    dx = runtime.empty((count, inputs), dtype)
    grads = []
    for d, w in enumerate(tape.weights):
        dgates = buffers.dgates[d].reshape(count, rows)
        runtime.gemm(dgates, w["weight_ih"], dx, accumulate=d > 0, tf32=shape.tf32)
        before = forward.ys[2:] if d else forward.ys[:steps]
        before = before.reshape(count, directions * outputs)[:, d * outputs : (d + 1) * outputs]
        grad = {name: runtime.empty(value.shape, dtype) for name, value in w.items()}
        flat = x.reshape(count, inputs)
        runtime.gemm(dgates, flat, grad["weight_ih"], transpose_a=True, tf32=shape.tf32)
        runtime.gemm(dgates, before, grad["weight_hh"], transpose_a=True, tf32=shape.tf32)
        if shape.bias:
            sum_rows(runtime, dgates, grad["bias_ih"])
            runtime.copy(grad["bias_hh"], grad["bias_ih"])
        if shape.projected:
            dprojected = buffers.dprojected[d].reshape(count, outputs)
            through = forward.hidden[d].reshape(count, hidden)
            runtime.gemm(dprojected, through, grad["weight_hr"], transpose_a=True, tf32=shape.tf32)
        grads.append(grad)
    initials = [runtime.empty(value.shape, dtype) for value in dstate]
    for value, initial in zip(
        (buffers.dh, *(buffers.dstates[k] for k in range(len(cell.states)))), initials, strict=True
    ):
        _convert(runtime, dtype, value, initial)
    return dx.reshape(x.shape), tuple(initials), grads


def tape_layout(shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    cell, steps, batch, hidden, directions = shape.cell, shape.steps, shape.batch, shape.hidden, shape.directions
    dtype, sums = shape.dtype.name, shape.accumulate.name
    layout: list[tuple[tuple[int, ...], str]] = [((steps + 2, batch, directions * shape.outputs), dtype)]
    if cell.states:
        layout.append(((len(cell.states), directions, steps + 1, batch, hidden), sums))
    if cell.saved:
        layout.append(((directions, steps, batch, cell.saved * hidden), dtype))
    if shape.projected:
        layout.append(((directions, steps, batch, hidden), dtype))
    return layout


def tape_arrays(tape: LayerTape) -> list[Any]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    buffers = tape.buffers
    return [array for array in (buffers.ys, buffers.states, buffers.saved, buffers.hidden) if array is not None]


def tape_of(
    shape: LayerShape,
    x: Any,
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    arrays: Sequence[Any],
    runtime: Runtime | None = None,
) -> LayerTape:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    runtime = runtime or current()
    shape, cell = _on_cuda(shape), shape.cell
    rest = list(arrays)
    buffers = Buffers(
        weight_hh=_stacked(runtime, [w["weight_hh"] for w in weights]),
        weight_hr=_stacked(runtime, [w["weight_hr"] for w in weights]) if shape.projected else None,
        lengths=_on_device(runtime, lengths),
        ys=rest.pop(0),
        states=rest.pop(0) if cell.states else None,
        saved=rest.pop(0) if cell.saved else None,
        hidden=rest.pop(0) if shape.projected else None,
    )
    return LayerTape(runtime, shape, x, weights, buffers)


def sum_rows(runtime: Runtime, values: Any, sums: Any) -> None:
    """``sums`` (N,) = the sum of the rows of ``values`` (M, N), in one order always."""
    rows, columns = values.shape
    kernel = Kernel("kernels/layer", "sum_rows", (values.dtype,))
    runtime.launch(kernel, (-(-columns // _COLUMNS), 1, 1), (_COLUMNS, _ROWS, 1), (values, sums, rows, columns))


def why_not(shape: LayerShape) -> str | None:
    """See :class:`gpulstm_kernels.backend.Backend`: the step walk takes any shape of a cell that is in CUDA C++."""
    if shape.weights != shape.dtype:
        return f"it has no weights in {shape.weights}"
    return source.why_not(shape.cell)


def describe(shape: LayerShape, runtime: Runtime | None = None) -> str:
    """See :class:`gpulstm_kernels.backend.Backend`, and how :func:`layer_backward` would compute the gradient."""
    runtime = runtime or current()
    lines = []
    for backward in (False, True):
        of_pass = _on_cuda(shape._replace(training=backward))
        choice = select.choose(runtime.device(), of_pass, backward, walks=runtime.walks)
        lines.append(f"{'training, backward' if backward else 'inference'}: {choice.walk} walk, {choice.reason}")
    return "; ".join(lines)


def stream(shape: LayerShape, layers: Any) -> None:
    """It has no kernels for streams: a step is a call."""


def _on_cuda(shape: LayerShape) -> LayerShape:
    """``shape`` with what is decided on the device: whether products may use TF32."""
    return shape._replace(tf32=True) if shape.dtype == np.float32 and tf32_allowed() else shape


def _on_device(runtime: Runtime, lengths: Any) -> Any:
    if isinstance(lengths, np.ndarray) and type(lengths) is np.ndarray:
        return runtime.to_device(lengths.astype(np.int32))
    return lengths


def _walk(runtime: Runtime, shape: LayerShape, backward: bool) -> Walk:
    choice = select.choose(runtime.device(), shape, backward, walks=runtime.walks)
    return WALKS[choice.walk]


def _stacked(runtime: Runtime, parts: Sequence[Any]) -> Any:
    """The directions' arrays as one (D, ...), without a copy where there is one direction."""
    if len(parts) == 1:
        return parts[0][None]
    whole = runtime.empty((len(parts), *parts[0].shape), parts[0].dtype)
    for target, part in zip(whole, parts, strict=True):
        runtime.copy(target, part)
    return whole


def _convert(runtime: Runtime, dtype: np.dtype, values: Any, target: Any) -> None:
    """Copy between an array of ``dtype`` and one of the type of sums, either way; both contiguous."""
    if values.dtype == target.dtype:
        runtime.copy(target, values)
        return
    name = "to_accumulate" if values.dtype == dtype else "from_accumulate"
    _elementwise(runtime, name, dtype, target.size, (values, target, target.size))


def _elementwise(runtime: Runtime, name: str, dtype: np.dtype, count: int, arguments: tuple[Any, ...]) -> None:
    kernel = Kernel("kernels/layer", name, (dtype,))
    runtime.launch(kernel, (-(-count // _THREADS), 1, 1), (_THREADS, 1, 1), arguments)
