"""What happened inside a call: every gate, state and h by its name. :func:`gpulstm.watch` returns it.

h is what the layer's kernels give. From it come the pre-activations of all steps, two products, and from those and the
cell's trace, step by step, the gates and states: in NumPy, in the layer's dtype (float32 for the half types).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gpulstm_kernels import reference
from gpulstm_kernels.language.cell import TracedCell
from gpulstm_kernels.language.code import FUNCTIONS
from gpulstm_kernels.language.graph import Value, evaluate, is_number, ordered
from gpulstm_kernels.language.operators import on_rows

from . import arrays, checks, ops
from .cells import Cell
from .config import Config

Arrays = dict[str, np.ndarray]
_OF_ONE = {*FUNCTIONS} - {"maximum", "minimum", "select"}


@dataclass(frozen=True, repr=False)
class WatchedLayer:
    """One layer and direction in a call.

    Arrays are NumPy's, laid out like the call's output: (T, B, H), (B, T, H) with ``batch_first``, (T, H) of one
    sequence; P features of h with a projection. Past a sequence's length they are NaN.

    Attributes:
        cell: the layer's cell.
        h: after each step.
        gates: see :meth:`gate`.
        states: what the cell carries beside h, after each step.
        preactivations: what goes into each gate: W·x, R·h or both, and their biases.
    """

    cell: Cell
    h: np.ndarray
    gates: Arrays
    states: Arrays
    preactivations: Arrays

    def gate(self, name: str) -> np.ndarray:
        """The gate ``name`` at each step, or any value that the cell's author named.

        It is what was named so, as in ``named(f=...)``; else the function of the pre-activation that the cell takes,
        such as sigmoid(x.f), where it uses it in no other way; else the pre-activation itself.

        Raises:
            ValueError: the cell has no such gate.
        """
        return self._one("gate", name, self.gates)

    def state(self, name: str) -> np.ndarray:
        """The carried state ``name`` after each step.

        Raises:
            ValueError: the cell has no such state.
        """
        return self._one("state", name, self.states)

    def _one(self, kind: str, name: str, values: Arrays) -> np.ndarray:
        if name not in values:
            known = ", ".join(values) or "none"
            raise ValueError(f"name: expected a {kind} of cell {self.cell.name!r}, {known}, got {name!r}")
        return values[name]

    def changed(self, change: Any) -> WatchedLayer:
        """``change`` of each array."""
        parts = [{name: change(value) for name, value in part.items()} for part in self._parts()]
        return WatchedLayer(self.cell, change(self.h), *parts)

    def _parts(self) -> tuple[Arrays, Arrays, Arrays]:
        return self.gates, self.states, self.preactivations

    def __repr__(self) -> str:
        gates, states, _ = (", ".join(part) or "none" for part in self._parts())
        return f"WatchedLayer({self.cell.name!r}, h {self.h.shape}, gates: {gates}; states: {states})"


class Watched(Mapping[str, WatchedLayer]):
    """What happened in a call, layer by layer: ``t["l0"].gate("f")``.

    Keys are ``l0``, ``l1``, ..., of the reverse direction ``l0_reverse``; of a layer in a model ``1.l0``, with its
    position.

    Attributes:
        y: the output.
        state: the final state.
    """

    def __init__(self, y: Any, state: Any, layers: dict[str, WatchedLayer]) -> None:
        self.y, self.state, self._layers = y, state, layers

    def __getitem__(self, name: str) -> WatchedLayer:
        if name not in self._layers:
            raise KeyError(f"expected one of {', '.join(self._layers) or 'no layers'}, got {name!r}")
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {layer!r}" for name, layer in self._layers.items())


def watch(
    config: Config,
    params: Mapping[str, Any],
    x: Any,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
    *,
    inputs: Any = None,
    backend: str | None = None,
) -> Watched:
    """Run a network and look at it; arguments, and what is raised, as :func:`gpulstm.ops.rnn_forward`."""
    device, dtype = arrays.device_of(next(iter(params.values()))), ops.dtype_of(params)
    library = arrays.library(device)
    x, unbatched = ops.check_input(config, x, dtype, device)
    steps, batch, _ = x.shape
    layout = ops.Layout(steps, batch, unbatched)
    initial = ops.check_state("state", config, state, batch, unbatched, dtype, device)
    given: dict[str, Any] = {}
    if inputs is not None or config.cell.inputs:
        values = ops.check_inputs(config, inputs, layout, None, dtype, device)
        values = ops.with_expectations(config, values, (steps, batch), dtype, library)
        given = dict(zip(config.cell.inputs, values, strict=True))
    if lengths is not None:
        lengths = checks.lengths(lengths, batch, steps)
    if resets is not None:
        resets = ops.check_resets(config, resets, layout, lengths)

    watched: dict[str, WatchedLayer] = {}
    finals = []
    for layer, ends in enumerate(config.suffixes()):
        own = slice(layer * config.directions, (layer + 1) * config.directions)
        before = tuple(part[own] for part in initial)
        one = replace(config, num_layers=1, input_size=config.input_size and x.shape[2], batch_first=False)
        weights = {
            alone[1]: params[named[1]]
            for pair in zip(config.parameters[layer], one.parameters[0], strict=True)
            for named, alone in zip(*pair, strict=True)
        }
        y, final, _ = ops.rnn_forward(one, weights, x, before, lengths, resets, inputs=given or None, backend=backend)
        finals.append(final)
        for d, end in enumerate(ends):
            call = _Call(
                config.cell,
                {name: _host(params[full]) for name, full, _ in config.parameters[layer][d]},
                _host(x) if config.input_size else np.split(_host(x), config.directions, axis=2)[d],
                _host(y)[..., d * config.output_size : (d + 1) * config.output_size],
                [_host(part[d]) for part in before],
                np.full(batch, steps) if lengths is None else lengths,
                np.zeros((steps, batch), bool) if resets is None else resets,
                [_host(value) for value in given.values()],
                d == 1,
            )
            watched[end[1:]] = _look(call).changed(lambda value: ops.outside(config, value, unbatched))
        x = y
    states = tuple(library.concatenate(parts) for parts in zip(*finals, strict=True))
    return Watched(ops.outside(config, x, unbatched), ops.states_outside(states, unbatched), watched)


def _host(value: Any) -> np.ndarray:
    """On the host, in a type that NumPy computes in."""
    value = arrays.on_host(value, "value")
    return value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)


class _Call(NamedTuple):
    """One direction of a layer's call; arrays time-major on the host, x as that direction takes it."""

    cell: Cell
    weights: Arrays
    x: np.ndarray
    h: np.ndarray
    initial: list[np.ndarray]
    lengths: np.ndarray
    resets: np.ndarray
    inputs: list[np.ndarray]
    reverse: bool


def _look(call: _Call) -> WatchedLayer:
    """The values of every step. Only what the states after a step are made of is computed step by step."""
    cell, h, (steps, batch, _) = call.cell, call.h, call.h.shape
    before, begins = _before(call)
    x, rows = (value.reshape(steps * batch, -1) for value in (call.x, before))
    of_x = x @ call.weights["weight_ih"].T if "weight_ih" in call.weights else x
    whole = reference.preactivations(cell, call.weights, of_x, rows).reshape(steps, batch, len(cell.preactivations), -1)
    preactivations = {name: whole[:, :, k] for k, name in enumerate(cell.preactivations)}
    params = [call.weights[name] for name in cell.params]
    shape = steps, batch, whole.shape[3]
    given = [np.broadcast_to(value, shape) for value in (*[before] * cell.reads_h, *params, *call.inputs)]

    own: _Traced | _ByHand
    if isinstance(cell, TracedCell):
        own = _Traced(cell, call.weights, list(preactivations.values()), given)
    else:
        own = _ByHand(cell, list(preactivations.values()), given)
    olds, news = ([np.empty(shape, whole.dtype) for _ in cell.states] for _ in range(2))
    states = call.initial[1:]
    for t in range(steps)[:: -1 if call.reverse else 1] if states else ():
        states = [np.where(begins[t], part.dtype.type(0), part) for part in states]
        new = own.step(t, states)
        for k, value in enumerate(states):
            olds[k][t] = value
            news[k][t] = np.where((t < call.lengths)[:, None], new[k], value)
        states = [part[t] for part in news]
    layer = WatchedLayer(cell, h, own.gates(olds), dict(zip(cell.states, news, strict=True)), preactivations)
    ended = (np.arange(steps)[:, None] >= call.lengths)[..., None]
    return layer.changed(lambda value: np.where(ended, value.dtype.type(np.nan), value)) if ended.any() else layer


def _before(call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """h before each step (T, B, P), and which rows begin anew there (T, B, 1)."""
    h, initial, begins = call.h, call.initial[0], call.resets
    if call.reverse:
        first = np.arange(len(h))[:, None] == call.lengths - 1
        before = np.where(first[..., None], initial, np.concatenate([h[1:], initial[None]]))
        begins = np.concatenate([begins[1:], np.zeros_like(begins[:1])])
    else:
        before = np.concatenate([initial[None], h[:-1]])
    return np.where(begins[..., None], h.dtype.type(0), before), begins[..., None]


class _Traced:
    """A cell's trace, on the pre-activations of all steps and what the cell is given there, (T, B, H) each."""

    def __init__(
        self, cell: TracedCell, weights: Arrays, split: Sequence[np.ndarray], given: Sequence[np.ndarray]
    ) -> None:
        self._cell, d = cell, cell.derivation
        self._operators = on_rows({name: weights[f"weight_{name}"] for name in cell.weights})
        self._shape = split[0].shape
        self._leaves = dict(zip([*d.gates, *d.given], [*split, *given], strict=True))
        late = {value.index for value in d.old}
        early: dict[int, Value] = {}  # what the new states are made of, but for the old ones
        for value in ordered(d.new):
            if any(argument.index in late for argument in value.arguments):
                late.add(value.index)
                early |= {one.index: one for one in value.arguments if one.index not in late and not is_number(one)}
        early |= {value.index: value for value in d.new if value.index not in late}
        self._early = dict(zip(early.values(), self._whole(list(early.values()), self._leaves), strict=True))

    def _whole(self, roots: Sequence[Value], leaves: Mapping[Value, np.ndarray]) -> list[np.ndarray]:
        """Of all steps; rows are told apart by nothing, so that they may be those of all of time."""
        rows = {value: array.reshape(-1, self._shape[2]) for value, array in leaves.items()}
        with np.errstate(all="ignore"):
            return [value.reshape(self._shape) for value in evaluate(roots, rows, self._operators)]

    def step(self, t: int, states: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The states after step ``t``, of those before it."""
        d = self._cell.derivation
        leaves = {value: array[t] for value, array in self._early.items()} | dict(zip(d.old, states, strict=True))
        with np.errstate(all="ignore"):
            return evaluate(d.new, leaves, self._operators)

    def gates(self, olds: Sequence[np.ndarray]) -> Arrays:
        """Of the states before each step."""
        found = _gates(self._cell)
        leaves = self._leaves | dict(zip(self._cell.derivation.old, olds, strict=True))
        return dict(zip(found, self._whole(list(found.values()), leaves), strict=True))


class _ByHand:
    """The same of a cell whose maths is written by hand: its gates are the pre-activations."""

    def __init__(self, cell: Cell, split: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> None:
        self._cell, self._split, self._given = cell, split, given

    def step(self, t: int, states: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        given = [tuple([value[t].copy() for value in self._given])] * bool(self._given)  # the cell may change them
        split = tuple([value[t].copy() for value in self._split])
        with np.errstate(all="ignore"):
            return self._cell.module.forward(split, tuple([value.copy() for value in states]), *given)[1]

    def gates(self, olds: Sequence[np.ndarray]) -> Arrays:
        return dict(zip(self._cell.preactivations, self._split, strict=True))


def _gates(cell: TracedCell) -> dict[str, Value]:
    """What :meth:`WatchedLayer.gate` gives, by name."""
    d = cell.derivation
    users: dict[int, list[Value]] = {}
    for value in ordered([d.h, *d.new]):
        for argument in value.arguments:
            users.setdefault(argument.index, []).append(value)
    found: dict[str, Value] = {}
    for name, leaf in zip(cell.preactivations, d.gates, strict=True):
        first, *others = users[leaf.index]
        found[name] = leaf if others or first.operator not in _OF_ONE else first
    return found | dict(cell.names)
