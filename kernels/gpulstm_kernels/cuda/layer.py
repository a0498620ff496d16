"""The backend ``cupy``: one layer, both directions, as :mod:`gpulstm_kernels.reference` describes it, on a CUDA device.

A layer is one product of all inputs with ``weight_ih``, a walk through time, and for the gradient three more products
over all steps. Which walk is :mod:`.select`'s choice; all of them share the arrays of :class:`.problem.Buffers`, so
forward and backward may walk differently. Everything is enqueued on the caller's stream; nothing here waits for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from . import select
from .buffers import Buffers, Problem
from .device.precision import tf32_allowed
from .device.runtime import Kernel, Runtime, current
from .device.source import type_name

_THREADS = 256
_COLUMNS, _ROWS = 32, 8  # the block of sum_rows


class LayerTape(NamedTuple):
    """What :func:`layer_forward` keeps for :func:`layer_backward`."""

    runtime: Runtime
    problem: Problem
    x: Any
    weights: Sequence[Mapping[str, Any]]
    buffers: Buffers


def layer_forward(
    cell: Cell,
    x: Any,
    state: tuple[Any, ...],
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    keep: bool,
    runtime: Runtime | None = None,
) -> tuple[Any, tuple[Any, ...], LayerTape]:
    """See :func:`gpulstm_kernels.reference.layer_forward`; arrays on the device, ``lengths`` there or on the host.

    ``y`` is a view of the tape's ``ys``.
    """
    runtime = runtime or current()
    problem = _problem(cell, x, weights, lengths is not None, keep)
    steps, batch, inputs = x.shape
    dtype, sums, directions = problem.dtype, problem.accumulate, problem.directions
    hidden, outputs, rows = problem.hidden, problem.outputs, len(cell.gates) * problem.hidden

    slots = steps + 1 if keep else 1
    buffers = Buffers(
        weight_hh=_stacked(runtime, [w["weight_hh"] for w in weights]),
        weight_hr=_stacked(runtime, [w["weight_hr"] for w in weights]) if problem.projected else None,
        lengths=_on_device(runtime, lengths),
        ys=runtime.empty((steps + 2, batch, directions * outputs), dtype),
        states=runtime.empty((len(cell.states), directions, slots, batch, hidden), sums) if cell.states else None,
        saved=runtime.empty((directions, steps, batch, cell.saved * hidden), dtype) if keep and cell.saved else None,
        hidden=runtime.empty((directions, steps if keep else 1, batch, hidden), dtype) if problem.projected else None,
        gates=runtime.empty((directions, steps, batch, rows), sums),
    )
    for d, w in enumerate(weights):
        first = steps + 1 if d else 0
        runtime.copy(buffers.ys[first, :, d * outputs : (d + 1) * outputs], state[0][d])
        for k, initial in enumerate(state[1:]):
            _convert(runtime, dtype, initial[d], buffers.states[k, d, steps if d and keep else 0])
        gates = buffers.gates[d].reshape(steps * batch, rows)
        runtime.gemm(x.reshape(steps * batch, inputs), w["weight_ih"], gates, transpose_b=True, tf32=problem.tf32)
    if "bias_ih" in weights[0]:
        buffers.bias = runtime.empty((directions, rows), sums)
        for d, w in enumerate(weights):
            arguments = (w["bias_ih"], w["bias_hh"], buffers.bias[d], rows)
            _elementwise(runtime, f"add_biases<{type_name(dtype)}>", rows, arguments)

    walk = _walk(runtime, problem, backward=False)
    walk.forward(runtime, problem, buffers)
    buffers.gates = buffers.bias = None  # backward has no use for them

    final = runtime.empty((directions, batch, outputs), dtype)
    for d in range(directions):
        runtime.copy(final[d], buffers.ys[1 if d else steps, :, d * outputs : (d + 1) * outputs])
    finals = [final]
    for k in range(len(cell.states)):
        last = runtime.empty((directions, batch, hidden), dtype)
        for d in range(directions):
            _convert(runtime, dtype, buffers.states[k, d, steps if keep and not d else 0], last[d])
        finals.append(last)
    return buffers.ys[1:-1], tuple(finals), LayerTape(runtime, problem, x, weights, buffers)


def layer_backward(
    tape: LayerTape, dy: Any, dstate: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...], list[dict[str, Any]]]:
    """See :func:`gpulstm_kernels.reference.layer_backward`."""
    runtime, problem, x, kept = tape.runtime, tape.problem, tape.x, tape.buffers
    cell, dtype, sums = problem.cell, problem.dtype, problem.accumulate
    steps, batch, inputs = x.shape
    directions, hidden, outputs = problem.directions, problem.hidden, problem.outputs
    rows, count = len(cell.gates) * hidden, steps * batch

    buffers = Buffers(
        kept.weight_hh,
        kept.weight_hr,
        kept.lengths,
        kept.ys,
        kept.states,
        kept.saved,
        kept.hidden,
        dy=dy,
        dh=runtime.empty((directions, batch, outputs), sums),
        dstates=runtime.empty((len(cell.states), directions, batch, hidden), sums) if cell.states else None,
        dgates=runtime.empty((directions, steps, batch, rows), dtype),
        dprojected=runtime.empty((directions, steps, batch, outputs), dtype) if problem.projected else None,
    )
    _convert(runtime, dtype, dstate[0], buffers.dh)
    for k, gradient in enumerate(dstate[1:]):
        _convert(runtime, dtype, gradient, buffers.dstates[k])
    _walk(runtime, problem, backward=True).backward(runtime, problem, buffers)

    dx = runtime.empty((count, inputs), dtype)
    grads = []
    for d, w in enumerate(tape.weights):
        dgates = buffers.dgates[d].reshape(count, rows)
        runtime.gemm(dgates, w["weight_ih"], dx, accumulate=d > 0, tf32=problem.tf32)
        before = kept.ys[2:] if d else kept.ys[:steps]
        before = before.reshape(count, directions * outputs)[:, d * outputs : (d + 1) * outputs]
        grad = {name: runtime.empty(value.shape, dtype) for name, value in w.items()}
        flat = x.reshape(count, inputs)
        runtime.gemm(dgates, flat, grad["weight_ih"], transpose_a=True, tf32=problem.tf32)
        runtime.gemm(dgates, before, grad["weight_hh"], transpose_a=True, tf32=problem.tf32)
        if "bias_ih" in w:
            sum_rows(runtime, dgates, grad["bias_ih"])
            runtime.copy(grad["bias_hh"], grad["bias_ih"])
        if problem.projected:
            dprojected = buffers.dprojected[d].reshape(count, outputs)
            through = kept.hidden[d].reshape(count, hidden)
            runtime.gemm(dprojected, through, grad["weight_hr"], transpose_a=True, tf32=problem.tf32)
        grads.append(grad)
    initials = [runtime.empty(value.shape, dtype) for value in dstate]
    for value, initial in zip(
        (buffers.dh, *(buffers.dstates[k] for k in range(len(cell.states)))), initials, strict=True
    ):
        _convert(runtime, dtype, value, initial)
    return dx.reshape(x.shape), tuple(initials), grads


def tape_layout(
    cell: Cell, dtype: str, steps: int, batch: int, hidden: int, outputs: int, directions: int, projected: bool
) -> list[tuple[tuple[int, ...], str]]:
    """See :func:`gpulstm_kernels.reference.tape_layout`."""
    sums = "float64" if dtype == "float64" else "float32"
    layout: list[tuple[tuple[int, ...], str]] = [((steps + 2, batch, directions * outputs), dtype)]
    if cell.states:
        layout.append(((len(cell.states), directions, steps + 1, batch, hidden), sums))
    if cell.saved:
        layout.append(((directions, steps, batch, cell.saved * hidden), dtype))
    if projected:
        layout.append(((directions, steps, batch, hidden), dtype))
    return layout


def tape_arrays(tape: LayerTape) -> list[Any]:
    """See :func:`gpulstm_kernels.reference.tape_arrays`."""
    kept = tape.buffers
    return [array for array in (kept.ys, kept.states, kept.saved, kept.hidden) if array is not None]


def tape_of(
    cell: Cell,
    x: Any,
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    arrays: Sequence[Any],
    runtime: Runtime | None = None,
) -> LayerTape:
    """See :func:`gpulstm_kernels.reference.tape_of`."""
    runtime = runtime or current()
    problem = _problem(cell, x, weights, lengths is not None, True)
    rest = list(arrays)
    buffers = Buffers(
        weight_hh=_stacked(runtime, [w["weight_hh"] for w in weights]),
        weight_hr=_stacked(runtime, [w["weight_hr"] for w in weights]) if problem.projected else None,
        lengths=_on_device(runtime, lengths),
        ys=rest.pop(0),
        states=rest.pop(0) if cell.states else None,
        saved=rest.pop(0) if cell.saved else None,
        hidden=rest.pop(0) if problem.projected else None,
    )
    return LayerTape(runtime, problem, x, weights, buffers)


def sum_rows(runtime: Runtime, values: Any, sums: Any) -> None:
    """``sums`` (N,) = the sum of the rows of ``values`` (M, N), in one order always."""
    rows, columns = values.shape
    kernel = Kernel("kernels/layer", f"sum_rows<{type_name(values.dtype)}>", None)
    runtime.launch(kernel, (-(-columns // _COLUMNS), 1, 1), (_COLUMNS, _ROWS, 1), (values, sums, rows, columns))


def describe(
    cell: Cell, steps: int, batch: int, weights: Sequence[Mapping[str, Any]], runtime: Runtime | None = None
) -> str:
    """In words: how :func:`layer_forward` would walk such a call, and :func:`layer_backward` after it."""
    runtime = runtime or current()
    dtype = weights[0]["weight_hh"].dtype
    lines = []
    for backward in (False, True):
        problem = _sizes(cell, dtype, steps, batch, weights, False, backward)
        choice = select.choose(runtime.device(), problem, backward, walks=runtime.walks)
        lines.append(f"{'training, backward' if backward else 'inference'}: {choice.walk} walk, {choice.reason}")
    return "; ".join(lines)


def _problem(cell: Cell, x: Any, weights: Sequence[Mapping[str, Any]], ragged: bool, keep: bool) -> Problem:
    return _sizes(cell, x.dtype, x.shape[0], x.shape[1], weights, ragged, keep)


def _sizes(
    cell: Cell, dtype: np.dtype, steps: int, batch: int, weights: Sequence[Mapping[str, Any]], ragged: bool, keep: bool
) -> Problem:
    rows, outputs = weights[0]["weight_hh"].shape
    hidden = rows // len(cell.gates)
    tf32 = dtype == np.float32 and tf32_allowed()
    return Problem(
        cell,
        np.dtype(dtype),
        tf32,
        steps,
        batch,
        hidden,
        outputs,
        len(weights),
        "weight_hr" in weights[0],
        ragged,
        keep,
    )


def _on_device(runtime: Runtime, lengths: Any) -> Any:
    if isinstance(lengths, np.ndarray) and type(lengths) is np.ndarray:
        return runtime.to_device(lengths.astype(np.int32))
    return lengths


def _walk(runtime: Runtime, problem: Problem, backward: bool) -> Any:
    choice = select.choose(runtime.device(), problem, backward, walks=runtime.walks)
    return importlib.import_module(f".walks.{choice.walk}.host", __package__)


def _stacked(runtime: Runtime, parts: Sequence[Any]) -> Any:
    """The directions' arrays as one (D, ...), without a copy where there is one direction."""
    if len(parts) == 1:
        return parts[0][None]
    whole = runtime.empty((len(parts), *parts[0].shape), parts[0].dtype)
    for place, part in zip(whole, parts, strict=True):
        runtime.copy(place, part)
    return whole


def _convert(runtime: Runtime, dtype: np.dtype, source: Any, target: Any) -> None:
    """Copy between an array of ``dtype`` and one of the type of sums, either way; both contiguous."""
    if source.dtype == target.dtype:
        runtime.copy(target, source)
        return
    name = "to_accumulate" if source.dtype == dtype else "from_accumulate"
    _elementwise(runtime, f"{name}<{type_name(dtype)}>", target.size, (source, target, target.size))


def _elementwise(runtime: Runtime, expression: str, count: int, arguments: tuple[Any, ...]) -> None:
    runtime.launch(
        Kernel("kernels/layer", expression, None), (-(-count // _THREADS), 1, 1), (_THREADS, 1, 1), arguments
    )
