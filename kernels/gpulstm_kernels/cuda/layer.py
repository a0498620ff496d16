"""The backend ``cupy``: one layer, both directions, as :mod:`gpulstm_kernels.backend` has it, on a CUDA device.

A layer is one product of all inputs with ``weight_ih``, a walk through time, and for the gradient three more products
over all steps; where x holds pre-activations, gates begin as a copy of it. Which walk is :mod:`.select`'s choice; all
of them share the arrays of :class:`.buffers.Buffers`, so forward and backward may walk differently. Everything is
enqueued on the caller's stream; nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import LayerShape
from . import heads, select
from .buffers import Buffers
from .cell_stages import stacked_weights, stages_of, weight_gradients
from .device import source
from .device.kernel import Kernel
from .device.precision import tf32_allowed
from .device.process import current
from .device.runtime import Runtime
from .walks import WALKS, Walk

_THREADS = 256
_COLUMNS, _ROWS = 32, 8  # the block of sum_rows and sum_columns


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
    inputs: Any = None,
    resets: Any = None,
    runtime: Runtime | None = None,
) -> tuple[Any, tuple[Any, ...], LayerTape | None]:
    """See :class:`gpulstm_kernels.backend.Backend`; arrays on the device, ``lengths`` there or on the host.

    ``y`` is a view of the tape's ``ys``.
    """
    runtime = runtime or current()
    shape = _on_cuda(shape)
    cell, steps, batch, features, training = shape.cell, shape.steps, shape.batch, shape.inputs, shape.training
    dtype, sums, directions = shape.dtype, shape.accumulate, shape.directions
    hidden, outputs, rows = shape.hidden, shape.outputs, shape.rows

    slots, saves = steps + 1 if training else 1, training and cell.saved > 0
    of_row = stages_of(cell).saved_of_row
    buffers = Buffers(
        **_of_call(runtime, shape, weights, lengths, inputs, resets),
        ys=runtime.empty((steps + 2, batch, directions * outputs), dtype),
        states=runtime.empty((len(cell.states), directions, slots, batch, hidden), sums) if cell.states else None,
        saved=runtime.empty((directions, steps, batch, cell.saved * hidden), dtype) if saves else None,
        hidden=runtime.empty((directions, steps if training else 1, batch, hidden), dtype) if shape.projected else None,
        rows=runtime.empty((directions, steps, batch, of_row), sums) if training and of_row else None,
        gates=runtime.empty((directions, steps, batch, rows), sums),
    )
    for d, w in enumerate(weights):
        first = steps + 1 if d else 0
        runtime.copy(buffers.ys[first, :, d * outputs : (d + 1) * outputs], state[0][d])
        for k, initial in enumerate(state[1:]):
            _convert(runtime, dtype, initial[d], buffers.states[k, d, steps if d and training else 0])
        gates, flat = buffers.gates[d].reshape(steps * batch, rows), x.reshape(steps * batch, features)
        if shape.gates_given:
            _fill_gates(runtime, shape, flat[:, shape.given_columns(d)], gates)
            continue
        for of_weight, of_gates in _runs(shape):
            runtime.gemm(flat, w["weight_ih"][of_weight], gates[:, of_gates], transpose_b=True, tf32=shape.tf32)
    if shape.bias:
        buffers.bias = runtime.empty((directions, rows), sums)
        for d, w in enumerate(weights):
            _biases(runtime, shape, w, buffers.bias[d])

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
    steps, batch, features = shape.steps, shape.batch, shape.inputs
    directions, hidden, outputs = shape.directions, shape.hidden, shape.outputs
    rows, count = shape.rows, steps * batch
    own = rows + (len(cell.params) + len(cell.differentiable)) * hidden
    of_h, stages = slice(len(cell.x_gates) * hidden, rows), stages_of(cell)
    each = directions, steps, batch

    buffers = Buffers(
        forward.weight_hh,
        forward.weight_hr,
        forward.lengths,
        forward.ys,
        forward.states,
        forward.saved,
        forward.hidden,
        forward.params,
        forward.inputs,
        forward.resets,
        dy=dy,
        dh=runtime.empty((directions, batch, outputs), sums),
        dstates=runtime.empty((len(cell.states), directions, batch, hidden), sums) if cell.states else None,
        dgates=runtime.empty((directions, steps, batch, own), dtype),
        dprojected=runtime.empty((directions, steps, batch, outputs), dtype) if shape.projected else None,
        own=forward.own,
        rows=forward.rows,
        dproducts=runtime.empty((*each, len(stages.weights) * hidden), dtype) if stages.weights else None,
        operands=runtime.empty((*each, stages.distinct * hidden), dtype) if stages.weights else None,
    )
    _convert(runtime, dtype, dstate[0], buffers.dh)
    for k, gradient in enumerate(dstate[1:]):
        _convert(runtime, dtype, gradient, buffers.dstates[k])
    _walk(runtime, shape, backward=True).backward(runtime, shape, buffers)

    dx = runtime.empty((count, features), dtype)
    grads = []
    for d, w in enumerate(tape.weights):
        dgates, flat = buffers.dgates[d].reshape(count, own), x.reshape(count, features)
        grad = {name: runtime.empty(value.shape, dtype) for name, value in w.items()}
        for k, (of_weight, of_gates) in enumerate(_runs(shape)):
            part = dgates[:, of_gates]
            if shape.gates_given:
                runtime.copy(dx[:, shape.given_columns(d)][:, of_weight], part)
                continue
            into = grad["weight_ih"][of_weight]
            runtime.gemm(part, w["weight_ih"][of_weight], dx, accumulate=d + k > 0, tf32=shape.tf32)
            runtime.gemm(part, flat, into, transpose_a=True, tf32=shape.tf32)
        if cell.gates_of_h:
            before = _before(runtime, shape, forward, d)
            if shape.heads > 1:
                heads.weight_gradient(runtime, shape, dgates, before, grad["weight_hh"])
            else:
                runtime.gemm(dgates[:, of_h], before, grad["weight_hh"], transpose_a=True, tf32=shape.tf32)
        if stages.weights:
            weight_gradients(runtime, shape, buffers.dproducts[d], buffers.operands[d], grad)
        if shape.bias or cell.params:
            _sums(runtime, shape, dgates, grad)
        for k, name in enumerate(cell.differentiable):
            first = rows + (len(cell.params) + k) * hidden
            grad[f"inputs.{name}"] = runtime.empty((steps, batch, forward.inputs.shape[-1]), dtype)
            _of_input(runtime, dgates, grad[f"inputs.{name}"].reshape(count, -1), first, hidden)
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
    if of_row := stages_of(cell).saved_of_row:
        layout.append(((directions, steps, batch, of_row), sums))
    return layout


def tape_arrays(tape: LayerTape) -> list[Any]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    buffers = tape.buffers
    arrays = buffers.ys, buffers.states, buffers.saved, buffers.hidden, buffers.rows
    return [array for array in arrays if array is not None]


def tape_of(
    shape: LayerShape,
    x: Any,
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    arrays: Sequence[Any],
    inputs: Any = None,
    resets: Any = None,
    runtime: Runtime | None = None,
) -> LayerTape:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    runtime = runtime or current()
    shape, cell = _on_cuda(shape), shape.cell
    rest = list(arrays)
    buffers = Buffers(
        **_of_call(runtime, shape, weights, lengths, inputs, resets),
        ys=rest.pop(0),
        states=rest.pop(0) if cell.states else None,
        saved=rest.pop(0) if cell.saved else None,
        hidden=rest.pop(0) if shape.projected else None,
        rows=rest.pop(0) if stages_of(cell).saved_of_row else None,
    )
    return LayerTape(runtime, shape, x, weights, buffers)


def sum_rows(runtime: Runtime, values: Any, sums: Any) -> None:
    """``sums`` (N,) = the sum of the rows of ``values`` (M, N or more), in one order always."""
    rows, width = values.shape
    kernel, columns = Kernel("kernels/layer", "sum_rows", (values.dtype,)), sums.size
    runtime.launch(kernel, (-(-columns // _COLUMNS), 1, 1), (_COLUMNS, _ROWS, 1), (values, sums, rows, columns, width))


def sum_columns(runtime: Runtime, values: Any, sums: Any, first: int = 0, columns: int | None = None) -> None:
    """``sums`` (M, 1) = the sums of ``columns`` (all) of each row of ``values`` from ``first``, in one order always."""
    rows, width = values.shape
    arguments = (values, sums, rows, first, width if columns is None else columns, width)
    kernel = Kernel("kernels/layer", "sum_columns", (values.dtype,))
    runtime.launch(kernel, (-(-rows // _ROWS), 1, 1), (_COLUMNS, _ROWS, 1), arguments)


def why_not(shape: LayerShape) -> str | None:
    """See :class:`gpulstm_kernels.backend.Backend`: the step walk takes any shape of a cell that is in CUDA C++."""
    return refused(shape) or source.why_not(shape.cell)


def refused(shape: LayerShape) -> str | None:
    """In words, what of a shape no walk on CUDA takes, in whatever language its kernels are."""
    if shape.cell.stages > 1 and shape.projected:
        return "its walk of cells with stages has no projection"
    if shape.weights != shape.dtype:
        return f"it has no weights in {shape.weights}"
    return None


def describe(shape: LayerShape, runtime: Runtime | None = None) -> str:
    """See :class:`gpulstm_kernels.backend.Backend`, and how :func:`layer_backward` would compute the gradient."""
    runtime = runtime or current()
    lines = []
    for backward in (False, True):
        of_pass = _on_cuda(shape._replace(training=backward))
        choice = select.choose(runtime.device(), of_pass, backward, walks=runtime.walks_of(shape.cell))
        walk = f"{choice.walk} walk" if shape.heads == 1 else f"{choice.walk} walk of {shape.heads} heads"
        lines.append(f"{'training, backward' if backward else 'inference'}: {walk}, {choice.reason}")
    return "; ".join(lines)


def stream(shape: LayerShape, layers: Any) -> None:
    """It has no kernels for streams: a step is a call."""


def _on_cuda(shape: LayerShape) -> LayerShape:
    """``shape`` with what is decided on the device: whether products may use TF32."""
    return shape._replace(tf32=True) if shape.dtype == np.float32 and tf32_allowed() else shape


def _of_call(
    runtime: Runtime, shape: LayerShape, weights: Any, lengths: Any, inputs: Any, resets: Any
) -> dict[str, Any]:
    """The buffers that hold what a call is given."""
    cell = shape.cell
    if isinstance(lengths, np.ndarray) and type(lengths) is np.ndarray:
        lengths = runtime.to_device(lengths.astype(np.int32))
    return {
        "weight_hh": _stacked(runtime, [w["weight_hh"] for w in weights]) if cell.gates_of_h else None,
        "weight_hr": _stacked(runtime, [w["weight_hr"] for w in weights]) if shape.projected else None,
        "lengths": lengths,
        "params": _parameters(runtime, shape, weights) if cell.params else None,
        "own": stacked_weights(runtime, shape, weights) if cell.weights else None,
        "inputs": inputs,
        "resets": resets,
    }


def _parameters(runtime: Runtime, shape: LayerShape, weights: Sequence[Mapping[str, Any]]) -> Any:
    """All of the cell's parameters (D, their number, H)."""
    names = shape.cell.params
    whole = runtime.empty((len(weights), len(names), shape.hidden), shape.dtype)
    for target, w in zip(whole, weights, strict=True):
        for row, name in zip(target, names, strict=True):
            runtime.copy(row, w[name])
    return whole


def _runs(shape: LayerShape) -> list[tuple[slice, slice]]:
    """The rows of ``weight_ih``, and where among the pre-activations they lie: rows of ``x_gates`` come last in the one
    and first in the other."""
    own, both, hidden = len(shape.cell.x_gates), len(shape.cell.gates), shape.hidden
    runs = [(both, own, 0), (0, both, own)]  # first row, rows, first gate
    return [
        (slice(row * hidden, (row + count) * hidden), slice(gate * hidden, (gate + count) * hidden))
        for row, count, gate in runs
        if count
    ]


def _fill_gates(runtime: Runtime, shape: LayerShape, given: Any, gates: Any) -> None:
    """Fill the input's part of ``gates`` (T·B, G·H) of the type of sums with pre-activations (T·B, Gx·H)."""
    if given.dtype != gates.dtype:  # of half a type's bits: kernels convert whole arrays
        part, wide = runtime.empty(given.shape, given.dtype), runtime.empty(given.shape, gates.dtype)
        runtime.copy(part, given)
        _convert(runtime, shape.dtype, part, wide)
        given = wide
    for of_weight, of_gates in _runs(shape):
        runtime.copy(gates[:, of_gates], given[:, of_weight])


def _biases(runtime: Runtime, shape: LayerShape, w: Mapping[str, Any], bias: Any) -> None:
    """Fill ``bias`` (G·H,) in the order of the pre-activations."""
    cell, dtype = shape.cell, shape.dtype
    own, both = len(cell.x_gates) * shape.hidden, len(cell.gates) * shape.hidden
    if own:
        _convert(runtime, dtype, w["bias_ih"][both:], bias[:own])
    if both:
        arguments = (w["bias_ih"][:both], w["bias_hh"][:both], bias[own : own + both], both)
        _elementwise(runtime, "add_biases", dtype, both, arguments)
    if cell.h_gates:
        _convert(runtime, dtype, w["bias_hh"][both:], bias[own + both :])


def _sums(runtime: Runtime, shape: LayerShape, dgates: Any, grad: dict[str, Any]) -> None:
    """Fill the gradients of biases and of the cell's parameters, sums of the rows of ``dgates``."""
    cell, rows, hidden, runs = shape.cell, shape.rows, shape.hidden, _runs(shape)
    in_order = shape.bias and len(runs) == 1 and not (cell.h_gates or cell.params)
    total = grad["bias_ih"] if in_order else runtime.empty((rows + len(cell.params) * hidden,), shape.dtype)
    sum_rows(runtime, dgates, total)
    if shape.bias:
        for of_weight, of_gates in () if in_order else runs:
            runtime.copy(grad["bias_ih"][of_weight], total[of_gates])
        if cell.gates_of_h:
            runtime.copy(grad["bias_hh"], total[len(cell.x_gates) * hidden : rows])
    for k, name in enumerate(cell.params):
        runtime.copy(grad[name], total[rows + k * hidden : rows + (k + 1) * hidden])


def _before(runtime: Runtime, shape: LayerShape, buffers: Buffers, d: int) -> Any:
    """h before each step of direction ``d``, (T·B, P)."""
    steps, batch, outputs, directions = shape.steps, shape.batch, shape.outputs, shape.directions
    if not shape.resets:
        before = buffers.ys[2:] if d else buffers.ys[:steps]
        return before.reshape(steps * batch, directions * outputs)[:, d * outputs : (d + 1) * outputs]
    before = runtime.empty((steps * batch, outputs), shape.dtype)
    arguments = (buffers.ys, buffers.resets, before, d, directions, steps, batch, outputs)
    _elementwise(runtime, "h_before", shape.dtype, before.size, arguments)
    return before


def _of_input(runtime: Runtime, dgates: Any, gradient: Any, first: int, hidden: int) -> None:
    """``gradient`` (T·B, W) of an input whose units' gradients lie in ``dgates`` (T·B, ·) from column ``first``."""
    if gradient.shape[1] == hidden:
        runtime.copy(gradient, dgates[:, first : first + hidden])
        return
    sum_columns(runtime, dgates, gradient, first, hidden)


def _walk(runtime: Runtime, shape: LayerShape, backward: bool) -> Walk:
    choice = select.choose(runtime.device(), shape, backward, walks=runtime.walks_of(shape.cell))
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
