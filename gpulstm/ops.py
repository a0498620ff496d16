"""Recurrent networks on arrays: the one place where shapes, dtypes, states and lengths are checked.

:func:`rnn_forward` and :func:`rnn_backward` stack layers, with dropout between them; one layer is the backend's.
Inside everything is time-major, (T, B, features).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gpulstm_kernels.backend import NARROW, Backend, LayerShape

from . import arrays, checks, dispatch
from .cells import Cell

_ARRAY = 512  # bytes that an array takes beside its numbers, with its name in a dict


@dataclass(frozen=True)
class Config:
    """The shape of a recurrent network, with the arguments and names of ``torch.nn.LSTM``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a size below 1, dropout outside [0, 1), ``proj_size`` not below ``hidden_size``, unknown cell.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers"):
            checks.integer(getattr(self, name), name)
        checks.integer(self.proj_size, "proj_size", 0)
        checks.real(self.dropout, "dropout", "[0, 1)")
        for name in ("bias", "batch_first", "bidirectional"):
            checks.flag(getattr(self, name), name)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size: expected less than hidden_size = {self.hidden_size}, got {self.proj_size}")

    def memory(self, itemsize: int) -> int:
        """Bytes that the parameters take, of ``itemsize`` bytes a number; however many layers, none is listed."""

        def size(layers: int) -> int:
            shapes = replace(self, num_layers=layers).shapes().values()
            return sum(math.prod(shape) * itemsize + _ARRAY for shape in shapes)

        first = size(1)
        return first if self.num_layers == 1 else first + (self.num_layers - 1) * (size(2) - first)

    def check_memory(self, itemsize: int) -> None:
        """Refuse sizes whose parameters, of ``itemsize`` bytes a number, this machine cannot hold."""
        sizes = self.input_size, self.hidden_size, self.num_layers
        checks.fits(self.memory(itemsize), "input_size, hidden_size, num_layers", sizes)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of h in one direction: the projection's where there is one."""
        return self.proj_size or self.hidden_size

    @property
    def input_shapes(self) -> tuple[checks.Shape, checks.Shape]:
        """The shapes of x: of a batch, and of one sequence."""
        outer = ("B", "T") if self.batch_first else ("T", "B")
        return (*outer, self.input_size), ("T", self.input_size)

    def suffixes(self) -> list[list[str]]:
        """For each layer, what its directions' parameter names end in."""
        ends = ["", "_reverse"][: self.directions]
        return [[f"_l{layer}{end}" for end in ends] for layer in range(self.num_layers)]

    @functools.cached_property
    def parameters(self) -> list[list[list[tuple[str, str, tuple[int, ...]]]]]:
        """For each layer and direction its parameters, in torch's order: (name in it, torch's name, shape)."""
        rows, inputs = len(self.cell.gates) * self.hidden_size, self.input_size
        layers = []
        for ends in self.suffixes():
            own: dict[str, tuple[int, ...]] = {"weight_ih": (rows, inputs), "weight_hh": (rows, self.output_size)}
            if self.bias:
                own |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if self.proj_size:
                own["weight_hr"] = (self.proj_size, self.hidden_size)
            layers.append([[(name, name + end, shape) for name, shape in own.items()] for end in ends])
            inputs = self.output_size * self.directions
        return layers

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, under torch's names and in torch's order."""
        return {name: shape for layer in self.parameters for own in layer for _, name, shape in own}

    def layer_shape(
        self, layer: int, steps: int, batch: int, dtype: np.dtype, weights: np.dtype, training: bool, ragged: bool
    ) -> LayerShape:
        """Of a call of one layer; ``weights`` is the dtype of its matrices, which quantized ones have of their own."""
        outputs, directions = self.proj_size or self.hidden_size, 2 if self.bidirectional else 1
        inputs = outputs * directions if layer else self.input_size
        return LayerShape(
            self.cell,
            steps,
            batch,
            inputs,
            self.hidden_size,
            outputs,
            directions,
            dtype,
            weights,
            training,
            self.bias,
            self.proj_size > 0,
            ragged,
        )

    def state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """The shapes of h and of each carried state."""
        count = self.num_layers * self.directions
        sizes = state_sizes(self.cell, self.output_size, self.hidden_size)
        return [(count, batch, size) for size in sizes]


State = tuple[np.ndarray, ...]


class Tape(NamedTuple):
    """What :func:`rnn_forward` keeps for :func:`rnn_backward` in training."""

    config: Config
    backend: Backend
    device: str
    dtype: np.dtype
    unbatched: bool
    steps: int
    batch: int
    layers: list[Any]
    masks: list[np.ndarray | None]


def rnn_forward(
    config: Config,
    params: Mapping[str, np.ndarray],
    x: Any,
    state: Any = None,
    lengths: Any = None,
    *,
    training: bool = False,
    rng: Any = None,
    backend: str | None = None,
) -> tuple[np.ndarray, State, Tape | None]:
    """Run a network over sequences.

    Args:
        config: its shape.
        params: its parameters, with the names and shapes of ``config.shapes()``; their dtype is that of the call.
        x: (T, B, I), (B, T, I) with ``batch_first``, or one sequence (T, I).
        state: the initial h, or (h, c, ...) for a cell that carries more, with the shapes of
            ``config.state_shapes(B)`` (without B for one sequence); None for zeros.
        lengths: steps of each sequence, whole numbers (B,) in 1 .. T; None for T. Past them the output is zero.
        training: whether :func:`rnn_backward` will be called; only then does dropout act.
        rng: generator or seed for dropout's masks.
        backend: name of the backend, see :mod:`gpulstm.dispatch`.

    Returns:
        The output (T, B, D·P), laid out like ``x``; the final state, always a tuple; in training, the tape. The
        tape refers to ``x`` and ``params``: call backward before they change.

    Raises:
        TypeError: a dtype that is not that of the parameters, floats as lengths, something that is no array.
        ValueError: a shape, length or size that does not fit; the message names the argument.
    """
    like = next(iter(params.values()))
    device, dtype = arrays.device_of(like), dtype_of(params)
    library = arrays.library(device)
    x, unbatched = _check_input(config, x, dtype, device)
    steps, batch, _ = x.shape
    state = check_state("state", config, state, batch, unbatched, dtype, device)
    if lengths is not None:
        lengths = library.lengths(checks.lengths(lengths, batch, steps))
    matrices = _dtype_of_matrices(params, dtype, training)
    shape = config.layer_shape(0, steps, batch, dtype, matrices, training, lengths is not None)
    chosen = _select(params, shape, device, backend)[0].module
    if lengths is not None:
        x = library.clear_padding(x, lengths)
    if rng is not None:
        library.check_rng(rng)
    generator = library.generator(rng) if training and config.dropout else None

    tapes: list[Any] = []
    masks: list[np.ndarray | None] = []
    finals: list[State] = []
    for layer in range(config.num_layers):
        own = slice(layer * config.directions, (layer + 1) * config.directions)
        weights = weights_of(config, params, layer, dtype, matrices)
        if layer == 1:
            shape = shape._replace(inputs=x.shape[2])
        y, final, tape = chosen.layer_forward(shape, x, tuple(s[own] for s in state), weights, lengths)
        mask = None
        if generator is not None and layer + 1 < config.num_layers:
            mask = library.dropout_mask(generator, y.shape, config.dropout)
            y = library.drop(y, mask, config.dropout)
        tapes.append(tape)
        masks.append(mask)
        finals.append(final)
        x = y
    if lengths is not None:
        y = library.clear_padding(y, lengths)
    elif training:
        y = library.copy(y)  # backward reads the tape: what the caller does with the output must not reach it
    states = tuple(library.concatenate(parts) for parts in zip(*finals, strict=True))
    tape = Tape(config, chosen, device, dtype, unbatched, steps, batch, tapes, masks) if training else None
    return _outside(config, y, unbatched), _states_outside(states, unbatched), tape


def rnn_backward(tape: Tape, dy: Any = None, dstate: Any = None) -> tuple[np.ndarray, State, dict[str, np.ndarray]]:
    """The gradient of :func:`rnn_forward`.

    Args:
        tape: of a forward pass in training; not changed, so that it can be used again.
        dy: gradient of the output, of its shape; None for zeros. Ignored past a sequence's length.
        dstate: gradients of the final state, of its form; None, or None in place of a part, for zeros.

    Returns:
        The gradients of x, of the initial state (always a tuple), and a dict of those of the parameters.

    Raises:
        TypeError, ValueError: an argument whose dtype or shape is not that of the output or the state.
    """
    config, device, dtype = tape.config, tape.device, tape.dtype
    library = arrays.library(device)
    features = config.output_size * config.directions
    if dy is None:
        gradient = library.zeros((tape.steps, tape.batch, features), dtype)
    else:
        shape = _outside_shape(config, tape.steps, tape.batch, features, tape.unbatched)
        gradient = _inside(config, checks.array(dy, "dy", dtype, shape, device=device), tape.unbatched, library)
    dstate = check_state("dstate", config, dstate, tape.batch, tape.unbatched, dtype, device)

    initials: list[State] = []
    grads: dict[str, np.ndarray] = {}
    for layer, ends in reversed(list(enumerate(config.suffixes()))):
        own = slice(layer * config.directions, (layer + 1) * config.directions)
        mask = tape.masks[layer]
        if mask is not None:
            gradient = library.drop(gradient, mask, config.dropout)
        gradient, initial, of_weights = tape.backend.layer_backward(
            tape.layers[layer], gradient, tuple(s[own] for s in dstate)
        )
        initials.insert(0, initial)
        for end, part in zip(ends, of_weights, strict=True):
            grads |= {name + end: value for name, value in part.items()}
    states = tuple(library.concatenate(parts) for parts in zip(*initials, strict=True))
    ordered = {name: grads[name] for name in config.shapes()}
    return _outside(config, gradient, tape.unbatched), _states_outside(states, tape.unbatched), ordered


def explain(config: Config, params: Mapping[str, np.ndarray], x: Any, backend: str | None = None) -> str:
    """In words: which backend and kernel compute ``x``, why, and why the others do not.

    Raises:
        TypeError, ValueError: as :func:`rnn_forward`.
    """
    like = next(iter(params.values()))
    device, dtype = arrays.device_of(like), dtype_of(params)
    checked, _ = _check_input(config, x, dtype, device)
    steps, batch, _ = checked.shape
    matrices = _dtype_of_matrices(params, dtype)
    weights_of(config, params, 0, dtype, matrices)
    shape = config.layer_shape(0, steps, batch, dtype, matrices, False, False)
    chosen, why = _select(params, shape, device, backend)
    how = chosen.module.describe(shape)
    lines = [f"{chosen.name}: {why}", f"  cell {config.cell.name}, {dtype.name}, first layer: {how}"]
    for name, reason in dispatch.backends().items():
        if name != chosen.name:
            lines.append(f"{name}: not used{f'; cannot run here: {reason}' if reason else ''}")
    if device == "cpu" and (case := _benchmark_case(config, steps, batch, dtype)) is not None:
        lines.append(f"measure it: python -m bench run cpu --case {case}")
    return "\n".join(lines)


def _select(
    params: Mapping[str, Any], shape: LayerShape, device: str, backend: str | None
) -> tuple[dispatch.Registered, str]:
    """See :func:`gpulstm.dispatch.select`.

    Raises:
        TypeError: the parameters are quantized, and the backend for others has no kernels for them.
    """
    if shape.weights == shape.dtype:
        return dispatch.select(shape, device, backend)
    chosen, why = dispatch.select(None, device, backend)
    if chosen.module.why_not(shape) is not None:
        raise TypeError(f"{next(iter(params))}: expected floating-point parameters, got {shape.weights}")
    return chosen, why


def _benchmark_case(config: Config, steps: int, batch: int, dtype: np.dtype) -> str | None:
    """Such a call as the benchmark's ``--case`` takes it; None for a cell that others have not."""
    if config.cell.name not in ("lstm", "rnn") or (config.proj_size and config.cell.name != "lstm"):
        return None
    features = {
        "dtype": (dtype.name, "float32"),
        "inputs": (config.input_size, config.hidden_size),
        "cell": (config.cell.name, "lstm"),
        "layers": (config.num_layers, 1),
        "directions": (config.directions, 1),
        "projection": (config.proj_size, 0),
        "bias": (int(config.bias), 1),
    }
    given = [f"{name}={value}" for name, (value, usual) in features.items() if value != usual]
    return ",".join([str(batch), str(steps), str(config.hidden_size), *given])


def weights_of(
    config: Config, params: Mapping[str, Any], layer: int, dtype: np.dtype, matrices: np.dtype
) -> list[dict[str, np.ndarray]]:
    """The parameters of each direction of one layer, without the end of their names, as backends take them: of
    ``dtype``, and ``weight_ih`` and ``weight_hh`` of that of ``matrices``.

    Kernels go by addresses and sizes, and a user may have put any array in the place of a parameter: each is checked
    at every call. A copy is made only of what is not C-contiguous and aligned.

    Raises:
        TypeError, ValueError: a parameter that is missing, of another dtype or shape.
    """
    like = next(iter(params.values()))
    device, narrow = arrays.device_of(like), matrices != dtype
    kind = type(like) if device == "cuda" else np.ndarray
    contiguous = arrays.library(device).contiguous
    directions = []
    for parameters in config.parameters[layer]:
        if narrow:
            parameters = _narrow(parameters, matrices)
        own = {}
        for name, full, shape in parameters:
            value = params.get(full)
            expected = matrices if name in _MATRICES else dtype
            if type(value) is not kind or value.shape != shape or value.dtype != expected:
                value = checks.array(value, full, expected, shape, device=device)
            own[name] = contiguous(value)
        directions.append(own)
    return directions


_MATRICES = ("weight_ih", "weight_hh")  # what a quantized layer has in fewer bits


def _narrow(parameters: list[tuple[str, str, Any]], dtype: np.dtype) -> list[tuple[str, str, Any]]:
    """The ``parameters`` of a direction, and of int8 the scale of each row of its narrow weights."""
    if dtype != np.int8:
        return parameters
    return parameters + [
        (name.replace("weight", "scale"), full.replace("weight", "scale"), shape[:1])
        for name, full, shape in parameters
        if name in _MATRICES
    ]


def stack_to_step(
    config: Config, params: Mapping[str, Any], batch: int
) -> tuple[LayerShape, list[dict[str, np.ndarray]]]:
    """What :meth:`gpulstm_kernels.backend.Backend.stream` takes of a unidirectional network.

    Raises:
        TypeError, ValueError: as :func:`weights_of`.
    """
    dtype = dtype_of(params)
    matrices = _dtype_of_matrices(params, dtype)
    shape = config.layer_shape(0, 1, batch, dtype, matrices, False, False)
    return shape, [weights_of(config, params, layer, dtype, matrices)[0] for layer in range(config.num_layers)]


def _dtype_of_matrices(params: Mapping[str, Any], dtype: np.dtype, training: bool = False) -> np.dtype:
    """The dtype of ``weight_ih`` and ``weight_hh`` for calls in ``dtype``: that, or a narrow one, which is not trained.

    Raises:
        TypeError: of a dtype that no kernel has.
    """
    name, like = next(iter(params.items()))
    if checks.is_float(like.dtype):
        if dtype not in checks.FLOATS:
            checks.dtype(dtype, arrays.device_of(like))
        return dtype
    if training or like.dtype not in NARROW.values():
        raise TypeError(f"{name}: expected floating-point parameters, got {like.dtype}")
    return like.dtype


def dtype_of(params: Mapping[str, Any]) -> np.dtype:
    """The dtype of calls with such parameters: theirs in the machine's byte order, or float32 for quantized ones.

    Raises:
        TypeError: the first of them is no array.
    """
    name, like = next(iter(params.items()))
    dtype = getattr(like, "dtype", None)
    if dtype is None:
        raise TypeError(f"{name}: expected an array, got {type(like).__name__}")
    if not checks.is_float(dtype):
        return np.dtype(np.float32)
    return dtype if dtype.isnative else dtype.newbyteorder("=")


# --- checks, and the way in and out -----------------------------------------------------------------------------


def _check_input(config: Config, x: Any, dtype: np.dtype, device: str) -> tuple[np.ndarray, bool]:
    """x as (T, B, I), and whether it was one sequence without a batch axis."""
    array = checks.array(x, "x", dtype, *config.input_shapes, device=device)
    unbatched = array.ndim == 2
    return _inside(config, array, unbatched, arrays.library(device)), unbatched


def state_sizes(cell: Cell, outputs: int, hidden: int) -> list[int]:
    """Features of h and of each carried state."""
    return [outputs, *[hidden] * len(cell.states)]


def state_parts(state: Any, count: int, name: str, expected: str) -> Sequence[Any]:
    """``state`` as its ``count`` parts, in a tuple or a list; ``name`` and ``expected`` are for the message.

    Raises:
        TypeError: it is neither, or has another number of parts.
    """
    if not isinstance(state, (tuple, list)) or len(state) != count:
        found = f"{len(state)} parts" if isinstance(state, (tuple, list)) else type(state).__name__
        raise TypeError(f"{name}: expected {expected}, got {found}")
    return state


def check_state(
    name: str, config: Config, state: Any, batch: int, unbatched: bool, dtype: np.dtype, device: str
) -> State:
    """The state, or gradients of one, as a tuple of C-contiguous (L·D, B, ·), zeros in place of None."""
    shapes = config.state_shapes(batch)
    library = arrays.library(device)
    if state is None:
        return tuple([library.zeros(shape, dtype) for shape in shapes])
    labels = [f"{name} {label}" for label in ("h", *config.cell.states)]
    if len(shapes) == 1 and not isinstance(state, (tuple, list)):
        state = (state,)
    parts = state_parts(state, len(shapes), name, f"({', '.join(labels)})")
    checked = []
    for label, part, shape in zip(labels, parts, shapes, strict=True):
        if part is None:
            checked.append(library.zeros(shape, dtype))
            continue
        outside = (shape[0], shape[2]) if unbatched else shape
        array = checks.array(part, label, dtype, outside, device=device)
        checked.append(library.contiguous(array).reshape(shape))
    return tuple(checked)


def _inside(config: Config, array: np.ndarray, unbatched: bool, library: arrays.Arrays) -> np.ndarray:
    """As the kernels take it: (T, B, features), contiguous and aligned."""
    if unbatched:
        array = array[:, None]
    elif config.batch_first:
        array = array.swapaxes(0, 1)
    return library.contiguous(array)


def _outside(config: Config, array: np.ndarray, unbatched: bool) -> np.ndarray:
    if unbatched:
        return array[:, 0]
    return array.swapaxes(0, 1) if config.batch_first else array


def _outside_shape(config: Config, steps: int, batch: int, features: int, unbatched: bool) -> tuple[int, ...]:
    if unbatched:
        return (steps, features)
    return (batch, steps, features) if config.batch_first else (steps, batch, features)


def _states_outside(states: State, unbatched: bool) -> State:
    return tuple(s[:, 0] for s in states) if unbatched else states
