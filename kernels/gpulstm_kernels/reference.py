"""The truth: recurrent layers in float64 NumPy, written as a textbook prints them.

Every kernel is tested against this module, and this module against central finite differences. It is also the
backend ``reference``, and the one to read first: :class:`gpulstm_kernels.backend.Backend` says what each function does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backend import LayerShape
from .cells import Cell
from .language.cell import TracedCell
from .language.operators import on_rows

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


def _operators(cell: Cell, w: Mapping[str, Array]) -> Mapping[str, Any]:
    """The language's, for a layer of the weights ``w``."""
    return on_rows({name: w[f"weight_{name}"] for name in cell.weights})


def _forward_of(
    cell: Cell, gates: Array, states: tuple[Array, ...], given: tuple[Array, ...], w: Mapping[str, Array]
) -> Any:
    """The textbook's cell where this module prints it; else the trace of the cell, of which the gates are saved; else
    the functions written by hand."""
    if cell.name == "lstm":
        return lstm_forward(gates, states)
    if cell.name == "rnn":
        return rnn_forward(gates, states)
    split = tuple(np.split(gates, len(cell.preactivations), axis=1))
    if isinstance(cell, TracedCell):
        with np.errstate(all="ignore"):
            h, *new = cell.evaluate(_operators(cell, w), split, states, given)
        return h, tuple(new), split
    return cell.module.forward(_copies(split), _copies(states), *[_copies(given)] * bool(given))


def _backward_of(
    cell: Cell,
    dh: Array,
    dstates: Any,
    h: Array,
    saved: Any,
    states: Any,
    previous: Any,
    given: tuple[Array, ...],
    w: Mapping[str, Array],
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...], list[tuple[str, Array, Array]]]:
    """The gradients of the gates, of the states before the step, of the cell's ``given_gradients``, and of each of its
    products the weight's name, the gradient of its value and its operand."""
    if cell.name == "lstm":
        return *lstm_backward(dh, dstates, h, saved, states, previous), (), []
    if cell.name == "rnn":
        return *rnn_backward(dh, dstates, h, saved, states, previous), (), []
    products: list[tuple[str, Array, Array]] = []
    if isinstance(cell, TracedCell):
        with np.errstate(all="ignore"):
            found = cell.gradient(_operators(cell, w), saved, previous, dh, dstates, given)
        values = iter([np.broadcast_to(d, dh.shape) for d in found])  # one that is 0 everywhere is a number
        counts = len(cell.preactivations), len(cell.states), len(cell.given_gradients)
        parts = tuple(list(itertools.islice(values, count)) for count in counts)
        names = [value.detail for value in cell.derivation.products]
        products = list(zip(names, list(itertools.islice(values, len(names))), values, strict=True))
    else:
        parts = cell.module.backward(
            dh.copy(),
            _copies(dstates),
            h.copy(),
            _copies(saved),
            _copies(states),
            _copies(previous),
            *[_copies(given)] * bool(given),
        )
    dgates, dprevious, *dgiven = parts
    return np.concatenate(dgates, axis=1), tuple(dprevious), tuple(dgiven[0]) if dgiven else (), products


def _copies(values: Sequence[Array]) -> tuple[Array, ...]:
    """For a cell's own maths: to kernels its arguments are numbers, so that ``c += i`` changes nobody else's."""
    return tuple(value.copy() for value in values)


class Step(NamedTuple):
    """What one step of one direction saves for backward."""

    t: int
    valid: Array
    begins: Array
    h_previous: Array
    given: tuple[Array, ...]
    hidden: Array
    previous: tuple[Array, ...]
    states: tuple[Array, ...]
    saved: tuple[Array, ...]


class LayerTape(NamedTuple):
    """What :func:`layer_forward` hands to :func:`layer_backward`."""

    cell: Cell
    x: Array
    weights: Sequence[Mapping[str, Array]]
    inputs: Array
    steps: list[list[Step]]
    dtype: np.dtype
    y: Array


def layer_forward(
    shape: LayerShape,
    x: Array,
    state: tuple[Array, ...],
    weights: Sequence[Mapping[str, Array]],
    lengths: Array | None,
    inputs: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, tuple[Array, ...], LayerTape]:
    """One layer over a whole sequence; the tape is empty unless ``shape.training``."""
    cell, hidden_size = shape.cell, shape.hidden
    given, x = x.dtype, x.astype(np.float64)
    weights = [{name: w.astype(np.float64) for name, w in direction.items()} for direction in weights]
    n_steps, batch, _ = x.shape
    inputs = np.empty((0, n_steps, batch, 1)) if inputs is None else inputs.astype(np.float64)
    ys, finals, tapes = [], [], []
    for d, w in enumerate(weights):
        h, *states = (s[d].astype(np.float64) for s in state)
        params = [np.broadcast_to(w[name], (batch, hidden_size)) for name in cell.params]
        y = np.zeros((n_steps, *h.shape))
        tape = []
        for t in range(n_steps) if d == 0 else reversed(range(n_steps)):
            valid = np.full((batch, 1), True) if lengths is None else (t < lengths)[:, None]
            begins = _begins(resets, t, d == 1, batch)
            h_previous, *previous = (np.where(begins, 0, s) for s in (h, *states))
            beside = [np.broadcast_to(value, (batch, hidden_size)) for value in inputs[:, t]]
            own = (*[h_previous] * cell.reads_h, *params, *beside)
            of_x = x[t][:, shape.given_columns(d)] if shape.gates_given else x[t] @ w["weight_ih"].T
            gates = preactivations(cell, w, of_x, h_previous)
            hidden, new, saved = _forward_of(cell, gates, tuple(previous), own, w)
            output = hidden @ w["weight_hr"].T if "weight_hr" in w else hidden
            if shape.training:
                tape.append(Step(t, valid, begins, h_previous, own, hidden, tuple(previous), new, saved))
            h = np.where(valid, output, h)
            states = [np.where(valid, a, b) for a, b in zip(new, states, strict=True)]
            y[t] = h
        ys.append(y)
        finals.append((h, *states))
        tapes.append(tape)
    final = tuple(np.stack(s).astype(given) for s in zip(*finals, strict=True))
    joined = np.concatenate(ys, axis=2).astype(given)
    return joined, final, LayerTape(cell, x, weights, inputs, tapes, given, joined)


def _begins(resets: Array | None, t: int, reverse: bool, batch: int) -> Array:
    """Which rows begin anew before step ``t`` of a direction, (B, 1)."""
    t += reverse
    return np.full((batch, 1), False) if resets is None or t == len(resets) else resets[t].astype(bool)[:, None]


def preactivations(cell: Cell, w: Mapping[str, Array], of_x: Array, h: Array) -> Array:
    """All pre-activations of a step (B, G·H), in the order of ``cell.preactivations``, with those ``of_x``."""
    parts = _by_gate(_biased(of_x, w, "bias_ih"), (*cell.gates, *cell.x_gates))
    if cell.gates_of_h:
        of_h = _by_gate(_biased(_times_heads(h, w["weight_hh"]), w, "bias_hh"), cell.gates_of_h)
        parts |= {gate: parts.get(gate, 0) + value for gate, value in of_h.items()}
    return np.concatenate([parts[gate] for gate in cell.preactivations], axis=1)


def _biased(product: Array, w: Mapping[str, Array], name: str) -> Array:
    return product + w[name] if name in w else product


def _times_heads(h: Array, weight: Array) -> Array:
    """h (B, P) times ``weight`` (Gh·H, P), or times that of each head (N, Gh·H/N, H/N): (B, Gh·H), gate by gate."""
    if weight.ndim == 2:
        return h @ weight.T
    heads, _, units = weight.shape
    by_head = np.einsum("bnj,nguj->bgnu", h.reshape(-1, heads, units), weight.reshape(heads, -1, units, units))
    return by_head.reshape(len(h), -1)


def _heads_gradients(dgates: Array, h: Array, weight: Array) -> tuple[Array, Array]:
    """The gradients of both factors of :func:`_times_heads`."""
    if weight.ndim == 2:
        return dgates @ weight, dgates.T @ h
    heads, _, units = weight.shape
    d = dgates.reshape(len(h), -1, heads, units)
    blocks = weight.reshape(heads, -1, units, units)
    dh = np.einsum("bgnu,nguj->bnj", d, blocks).reshape(h.shape)
    return dh, np.einsum("bgnu,bnj->nguj", d, h.reshape(-1, heads, units)).reshape(weight.shape)


def _by_gate(gates: Array, names: Sequence[str]) -> dict[str, Array]:
    return dict(zip(names, np.split(gates, len(names), axis=1), strict=True))


def layer_backward(
    tape: LayerTape, dy: Array, dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], list[dict[str, Array]]]:
    """The gradient of :func:`layer_forward`."""
    cell, x, inputs = tape.cell, tape.x, tape.inputs
    dx = np.zeros_like(x)
    initials, grads = [], []
    outputs = dy.shape[2] // len(tape.weights)
    for d, w in enumerate(tape.weights):
        grad = {name: np.zeros_like(value) for name, value in w.items()}
        grad |= {f"inputs.{name}": np.zeros(inputs.shape[1:]) for name in cell.differentiable}
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
            dgates, dprevious, dgiven, products = _backward_of(
                cell, dhidden, tuple(dstates), step.hidden, step.saved, step.states, step.previous, step.given, w
            )
            for name, dproduct, operand in products:
                grad[f"weight_{name}"] += np.where(valid, dproduct, 0).T @ operand
            by_gate = _by_gate(np.where(valid, dgates, 0), cell.preactivations)
            of_given = dict(zip(cell.given_gradients, (np.where(valid, value, 0) for value in dgiven), strict=True))
            of_x = np.concatenate([by_gate[gate] for gate in (*cell.gates, *cell.x_gates)], axis=1)
            if "weight_ih" in w:
                grad["weight_ih"] += of_x.T @ x[step.t]
                dx[step.t] += of_x @ w["weight_ih"]
            else:
                dx[step.t][:, d * of_x.shape[1] : (d + 1) * of_x.shape[1]] = of_x
            if "bias_ih" in w:
                grad["bias_ih"] += of_x.sum(axis=0)
            dh_previous = of_given.get("h", np.zeros_like(dh))
            if cell.gates_of_h:
                of_h = np.concatenate([by_gate[gate] for gate in cell.gates_of_h], axis=1)
                through, of_weight = _heads_gradients(of_h, step.h_previous, w["weight_hh"])
                grad["weight_hh"] += of_weight
                dh_previous = dh_previous + through
                if "bias_hh" in w:
                    grad["bias_hh"] += of_h.sum(axis=0)
            for name in cell.params:
                grad[name] += of_given[name].sum(axis=0)
            for name in cell.differentiable:
                shared = inputs.shape[3] == 1
                grad[f"inputs.{name}"][step.t] = of_given[name].sum(axis=1, keepdims=True) if shared else of_given[name]
            dh, *dstates = (
                np.where(valid, np.where(step.begins, 0, a), b)
                for a, b in zip((dh_previous, *dprevious), (dh, *dstates), strict=True)
            )
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
    shape: LayerShape,
    x: Array,
    weights: Sequence[Mapping[str, Array]],
    lengths: Array | None,
    arrays: Sequence[Array],
    inputs: Array | None = None,
    resets: Array | None = None,
) -> LayerTape:
    """The tape that :func:`tape_arrays` took apart, computed again."""
    return layer_forward(shape._replace(training=True), x, tuple(arrays[1:]), weights, lengths, inputs, resets)[2]


def why_not(shape: LayerShape) -> str | None:
    """Narrow weights are for kernels that multiply them."""
    return None if shape.weights == shape.dtype else f"it has no weights in {shape.weights}"


def describe(shape: LayerShape) -> str:
    """How a call is computed."""
    return "NumPy in float64, step by step"


def stream(shape: LayerShape, layers: Any) -> None:
    """It has none: a step is a call."""
