"""The truth: recurrent layers in float64 NumPy, written as a textbook prints them.

Every kernel is tested against this module, and this module against central finite differences. It is also the
backend ``reference`` and states what a backend is: :func:`layer_forward` and :func:`layer_backward` over one layer of
D = 1 or 2 directions. T steps, B batch, I input, H hidden, P output of a direction (H without a projection), G gates.
All arrays that a backend is given are C-contiguous and aligned (:func:`gpulstm_kernels.memory.contiguous`), of the
shapes that are said here; some may be read-only. No array that it returns shares memory with them, or with another; a
tape may refer to what was given and to ``y``.

A framework with an autograd of its own keeps arrays, not tapes: :func:`tape_arrays` takes a tape apart without copying
the large ones, :func:`tape_of` puts it together again, and :func:`tape_layout` says beforehand what the arrays will be.

A backend may have more, which this one has not: ``NARROW``, the kinds of :func:`gpulstm.quantize` whose weights its
``layer_forward`` takes, and ``Stream``, a stack of layers that is stepped in place
(:mod:`gpulstm_kernels.cpu.walks.step`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .cells import Cell

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
    """The textbook's cell where this module prints it; the cell's own maths, run on NumPy arrays, for any other."""
    if cell.name == "lstm":
        return lstm_forward(gates, states)
    if cell.name == "rnn":
        return rnn_forward(gates, states)
    return cell.module.forward(_copies(np.split(gates, len(cell.gates), axis=1)), _copies(states))


def _backward_of(cell: Cell, dh: Array, dstates: Any, h: Array, saved: Any, states: Any, previous: Any) -> Any:
    if cell.name == "lstm":
        return lstm_backward(dh, dstates, h, saved, states, previous)
    if cell.name == "rnn":
        return rnn_backward(dh, dstates, h, saved, states, previous)
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
    """What :func:`layer_forward` keeps for :func:`layer_backward`."""

    cell: Cell
    x: Array
    weights: Sequence[Mapping[str, Array]]
    steps: list[list[Step]]
    dtype: np.dtype
    y: Array


def layer_forward(
    cell: Cell,
    x: Array,
    state: tuple[Array, ...],
    weights: Sequence[Mapping[str, Array]],
    lengths: Array | None,
    keep: bool,
) -> tuple[Array, tuple[Array, ...], LayerTape]:
    """One layer over a whole sequence.

    Args:
        cell: which cell.
        x: input (T, B, I), C-contiguous.
        state: initial h (D, B, P), then each carried state (D, B, H).
        weights: a dict for each direction, forward first: ``weight_ih`` (G·H, I), ``weight_hh`` (G·H, P); where the
            layer has them, ``bias_ih`` and ``bias_hh`` (G·H,), and ``weight_hr`` (P, H).
        lengths: steps of each sequence (B,) int64, or None for all T. A sequence stands still past its length: its
            state is handed on unchanged, and y there is unspecified (the caller clears it).
        keep: whether backward will be called; without it nothing is saved.

    Returns:
        y (T, B, D·P), the final state like ``state``, and a tape for :func:`layer_backward`. Weights and x must not
        change before that call.
    """
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
            if keep:
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
    """The gradient of :func:`layer_forward`.

    Args:
        tape: of a forward pass with ``keep``; not changed, so that it can be used again.
        dy: gradient of y (T, B, D·P), C-contiguous; ignored past a sequence's length.
        dstate: gradients of the final state, shaped like it.

    Returns:
        dx (T, B, I), the gradients of the initial state, and one dict of gradients for each direction.
    """
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


Layout = list[tuple[tuple[int, ...], str]]


def tape_layout(
    cell: Cell, dtype: str, steps: int, batch: int, hidden: int, outputs: int, directions: int, projected: bool
) -> Layout:
    """The shape and the name of the dtype of every array of :func:`tape_arrays`.

    The first is ``ys`` (T+2, B, D·P), whose ``[1:-1]`` is y; what follows is the backend's own. ``steps`` and
    ``batch`` may be symbols: nothing but arithmetic is done with them.
    """
    count = len(cell.states)
    initial = [((directions, batch, outputs), dtype), *[((directions, batch, hidden), dtype)] * count]
    return [((steps + 2, batch, directions * outputs), dtype), *initial]


def tape_arrays(tape: LayerTape) -> list[Array]:
    """The arrays that make ``tape``, no two of which overlap, beside the arguments of :func:`layer_forward`.

    Here they are y and the initial state: the reference would rather compute its steps again than lay them out.
    """
    first = [steps[0] for steps in tape.steps]
    carried = zip(*(step.previous for step in first), strict=True)
    initial = [np.stack([step.h_previous for step in first]), *map(np.stack, carried)]
    return [np.pad(tape.y, ((1, 1), (0, 0), (0, 0))), *(value.astype(tape.dtype) for value in initial)]


def tape_of(
    cell: Cell, x: Array, weights: Sequence[Mapping[str, Array]], lengths: Array | None, arrays: Sequence[Array]
) -> LayerTape:
    """The tape that :func:`tape_arrays` took apart; the other arguments are those of its :func:`layer_forward`."""
    return layer_forward(cell, x, tuple(arrays[1:]), weights, lengths, True)[2]


def describe(cell: Cell, steps: int, batch: int, weights: Sequence[Mapping[str, Array]]) -> str:
    """In words: how :func:`layer_forward` would walk such a call."""
    return "NumPy in float64, step by step"
