"""The truth: recurrent layers in float64 NumPy, written as a textbook prints them.

Every kernel is tested against this module, and this module against central finite differences. It is also the
backend ``reference``, and the one to read first: :class:`gpulstm_kernels.backend.Backend` says what each function does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backend import LayerShape
from .cells import Cell
from .language.cell import TracedCell
from .language.operators import ON_ARRAYS

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    return 1 / (1 + np.exp(-np.abs(x))) * np.where(x < 0, np.exp(-np.abs(x)), 1)


def lstm_forward(gates: Array, states: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """The LSTM cell: gates (B, 4H) in the order i, f, g, o and (c,) to h, (c',), (i, f, g, o)."""
    i, f, g, o = np.split(gates, 4, axis=1)
    (c,) = states
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    return o * np.tanh(c), (c,), (i, f, g, o)


def lstm_backward(
    dh: Array,
    dstates: tuple[Array, ...],
    h: Array,
    saved: tuple[Array, ...],
    states: tuple[Array, ...],
    previous: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...]]:
    """Its gradient: dh and (dc',) to dgates (B, 4H) and (dc,)."""
    i, f, g, o = saved
    (c,), (c_previous,), (dc,) = states, previous, dstates
    do = dh * np.tanh(c)
    dc = dc + dh * o * (1 - np.tanh(c) ** 2)
    di, df, dg = dc * g, dc * c_previous, dc * i
    dgates = (di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o))
    return np.concatenate(dgates, axis=1), (dc * f,)


def rnn_forward(gates: Array, states: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """The vanilla cell: h = tanh(gates)."""
    return np.tanh(gates), (), ()


def rnn_backward(
    dh: Array,
    dstates: tuple[Array, ...],
    h: Array,
    saved: tuple[Array, ...],
    states: tuple[Array, ...],
    previous: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...]]:
    """Its gradient: dgates = dh (1 - h²)."""
    return dh * (1 - h**2), ()


def _forward_of(cell: Cell, gates: Array, states: tuple[Array, ...]) -> Any:
    """The textbook's cell where this module prints it; else the trace of the cell, of which the gates are saved; else
    the functions written by hand."""
    if cell.name == "lstm":
        return lstm_forward(gates, states)
    if cell.name == "rnn":
        return rnn_forward(gates, states)
    split = tuple(np.split(gates, len(cell.gates), axis=1))
    if isinstance(cell, TracedCell):
        with np.errstate(all="ignore"):
            h, *new = cell.evaluate(ON_ARRAYS, split, states)
        return h, tuple(new), split
    return cell.module.forward(_copies(split), _copies(states))


def _backward_of(cell: Cell, dh: Array, dstates: Any, h: Array, saved: Any, states: Any, previous: Any) -> Any:
    if cell.name == "lstm":
        return lstm_backward(dh, dstates, h, saved, states, previous)
    if cell.name == "rnn":
        return rnn_backward(dh, dstates, h, saved, states, previous)
    if isinstance(cell, TracedCell):
        with np.errstate(all="ignore"):
            found = cell.gradient(ON_ARRAYS, saved, previous, dh, dstates)
        gradients = [np.broadcast_to(d, dh.shape) for d in found]  # one that is 0 everywhere is a number
        dgates, dprevious = gradients[: len(cell.gates)], tuple(gradients[len(cell.gates) :])
    else:
        dgates, dprevious = cell.module.backward(
            dh.copy(), _copies(dstates), h.copy(), _copies(saved), _copies(states), _copies(previous)
        )
    return np.concatenate(dgates, axis=1), dprevious


def _copies(values: Sequence[Array]) -> tuple[Array, ...]:
    """For a cell's own maths: to kernels its arguments are numbers, so that ``c += i`` changes nobody else's."""
    return tuple(value.copy() for value in values)


class Step(NamedTuple):
    """What one step of one direction saves for backward."""

    t: int
    valid: Array
    h_previous: Array
    hidden: Array
    previous: tuple[Array, ...]
    states: tuple[Array, ...]
    saved: tuple[Array, ...]


class LayerTape(NamedTuple):
    """What :func:`layer_forward` hands to :func:`layer_backward`."""

    cell: Cell
    x: Array
    weights: Sequence[Mapping[str, Array]]
    steps: list[list[Step]]
    dtype: np.dtype
    y: Array


def layer_forward(
    shape: LayerShape,
    x: Array,
    state: tuple[Array, ...],
    weights: Sequence[Mapping[str, Array]],
    lengths: Array | None,
) -> tuple[Array, tuple[Array, ...], LayerTape]:
    """One layer over a whole sequence; the tape is empty unless ``shape.training``."""
    cell = shape.cell
    given, x = x.dtype, x.astype(np.float64)
    weights = [{name: w.astype(np.float64) for name, w in direction.items()} for direction in weights]
    n_steps, batch, _ = x.shape
    ys, finals, tapes = [], [], []
    for d, w in enumerate(weights):
        h, *states = (s[d].astype(np.float64) for s in state)
        bias = w["bias_ih"] + w["bias_hh"] if "bias_ih" in w else 0
        y = np.zeros((n_steps, *h.shape))
        tape = []
        for t in range(n_steps) if d == 0 else reversed(range(n_steps)):
            valid = np.full((batch, 1), True) if lengths is None else (t < lengths)[:, None]
            gates = x[t] @ w["weight_ih"].T + h @ w["weight_hh"].T + bias
            hidden, new, saved = _forward_of(cell, gates, tuple(states))
            output = hidden @ w["weight_hr"].T if "weight_hr" in w else hidden
            if shape.training:
                tape.append(Step(t, valid, h, hidden, tuple(states), new, saved))
            h = np.where(valid, output, h)
            states = [np.where(valid, a, b) for a, b in zip(new, states, strict=True)]
            y[t] = h
        ys.append(y)
        finals.append((h, *states))
        tapes.append(tape)
    final = tuple(np.stack(s).astype(given) for s in zip(*finals, strict=True))
    joined = np.concatenate(ys, axis=2).astype(given)
    return joined, final, LayerTape(cell, x, weights, tapes, given, joined)


def layer_backward(
    tape: LayerTape, dy: Array, dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], list[dict[str, Array]]]:
    """The gradient of :func:`layer_forward`."""
    cell, x = tape.cell, tape.x
    dx = np.zeros_like(x)
    initials, grads = [], []
    outputs = dy.shape[2] // len(tape.weights)
    for d, w in enumerate(tape.weights):
        grad = {name: np.zeros_like(value) for name, value in w.items()}
        dh, *dstates = (s[d].astype(np.float64) for s in dstate)
        for step in reversed(tape.steps[d]):
            valid = step.valid
            from_output = dy[step.t, :, d * outputs : (d + 1) * outputs].astype(np.float64)
            doutput = np.where(valid, dh + from_output, 0)
            if "weight_hr" in w:
                grad["weight_hr"] += doutput.T @ step.hidden
                dhidden = doutput @ w["weight_hr"]
            else:
                dhidden = doutput
            dgates, dprevious = _backward_of(
                cell, dhidden, tuple(dstates), step.hidden, step.saved, step.states, step.previous
            )
            dgates = np.where(valid, dgates, 0)
            grad["weight_ih"] += dgates.T @ x[step.t]
            grad["weight_hh"] += dgates.T @ step.h_previous
            if "bias_ih" in w:
                grad["bias_ih"] += dgates.sum(axis=0)
                grad["bias_hh"] += dgates.sum(axis=0)
            dx[step.t] += dgates @ w["weight_ih"]
            dh = np.where(valid, dgates @ w["weight_hh"], dh)
            dstates = [np.where(valid, a, b) for a, b in zip(dprevious, dstates, strict=True)]
        initials.append((dh, *dstates))
        grads.append({name: value.astype(tape.dtype) for name, value in grad.items()})
    initial = tuple(np.stack(s).astype(tape.dtype) for s in zip(*initials, strict=True))
    return dx.astype(tape.dtype), initial, grads


def tape_layout(shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
    """The shape and the name of the dtype of every array of :func:`tape_arrays`."""
    steps, batch, outputs, directions, dtype = (
        shape.steps,
        shape.batch,
        shape.outputs,
        shape.directions,
        shape.dtype.name,
    )
    carried = [((directions, batch, shape.hidden), dtype)] * len(shape.cell.states)
    return [((steps + 2, batch, directions * outputs), dtype), ((directions, batch, outputs), dtype), *carried]


def tape_arrays(tape: LayerTape) -> list[Array]:
    """y and the initial state: the reference would rather compute its steps again than lay them out."""
    first = [steps[0] for steps in tape.steps]
    carried = zip(*(step.previous for step in first), strict=True)
    initial = [np.stack([step.h_previous for step in first]), *map(np.stack, carried)]
    return [np.pad(tape.y, ((1, 1), (0, 0), (0, 0))), *(value.astype(tape.dtype) for value in initial)]


def tape_of(
    shape: LayerShape, x: Array, weights: Sequence[Mapping[str, Array]], lengths: Array | None, arrays: Sequence[Array]
) -> LayerTape:
    """The tape that :func:`tape_arrays` took apart, computed again."""
    return layer_forward(shape._replace(training=True), x, tuple(arrays[1:]), weights, lengths)[2]


def why_not(shape: LayerShape) -> str | None:
    """Narrow weights are for kernels that multiply them."""
    return None if shape.weights == shape.dtype else f"it has no weights in {shape.weights}"


def describe(shape: LayerShape) -> str:
    """How a call is computed."""
    return "NumPy in float64, step by step"


def stream(shape: LayerShape, layers: Any) -> None:
    """It has none: a step is a call."""
