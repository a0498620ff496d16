"""Recurrent networks on arrays: the one place where shapes, dtypes, states and lengths are checked.

:func:`rnn_forward` and :func:`rnn_backward` stack layers, with dropout between them; one layer is the backend's.
Inside everything is time-major, (T, B, features).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpulstm_kernels.backend import NARROW, Backend, LayerShape

from . import arrays, checks, dispatch, noise
from .config import Config

State = tuple[np.ndarray, ...]


class Layout(NamedTuple):
    """Of a call: T, B, and whether its arrays have no batch axis."""

    steps: int
    batch: int
    unbatched: bool


class Tape(NamedTuple):
    """What :func:`rnn_forward` keeps for :func:`rnn_backward` in training."""

    config: Config
    backend: Backend
    device: str
    dtype: np.dtype
    layout: Layout
    layers: list[Any]
    masks: list[np.ndarray | None]
    inputs: dict[str, tuple[int, ...]]  # the shapes of the cell's inputs, as they were given


def rnn_forward(
    config: Config,
    params: Mapping[str, np.ndarray],
    x: Any,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
    *,
    inputs: Any = None,
    training: bool = False,
    rng: Any = None,
    backend: str | None = None,
) -> tuple[np.ndarray, State, Tape | None]:
    """Run a network over sequences.

    Args:
        config: its shape.
        params: its parameters, with the names and shapes of ``config.shapes()``; their dtype is that of the call.
        x: (T, B, I), (B, T, I) with ``batch_first``, or one sequence (T, I). Without ``config.input_size`` its last
            axis is D·Gx·H: the pre-activations that x gives, as :class:`gpulstm.config.Config` says.
        state: the initial h, or (h, c, ...) for a cell that carries more, with the shapes of
            ``config.state_shapes(B)`` (without B for one sequence); None for zeros.
        lengths: steps of each sequence, whole numbers (B,) in 0 .. T; None for T. Past them the output is zero, and the
            final state is that of the last step, or the initial one of a sequence of none.
        resets: bools (T, B), laid out like ``x``: True where a new sequence begins, before whose first step h and the
            states are zero, whatever ``state`` was given. Gradients do not cross it. A reverse direction begins anew at
            the last step of each.
        inputs: where the cell declares any, a dict of arrays by their names, laid out like ``x``: (T, B) or (T, B, 1),
            a value a step and row, or (T, B, H), one a unit too; of the dtype of the parameters, or bools, which are 1
            and 0. Each layer and direction is given the same. Those of ``config.noise`` may be left out: in training
            they are drawn, for each layer anew, both directions of which see the same at a step; else they have their
            expectation.
        training: whether :func:`rnn_backward` will be called; only then does dropout act, and is noise drawn.
        rng: generator or seed for dropout's masks, and for noise.
        backend: name of the backend, see :mod:`gpulstm.dispatch`.

    Returns:
        The output (T, B, D·P), laid out like ``x``; the final state, always a tuple; in training, the tape. The
        tape refers to ``x`` and ``params``: call backward before they change.

    Raises:
        TypeError: a dtype that is not that of the parameters, floats as lengths, resets that are no bools, something
            that is no array.
        ValueError: a shape, length or size that does not fit, inputs that are missing or left over; the message names
            the argument.
    """
    like = next(iter(params.values()))
    device, dtype = arrays.device_of(like), dtype_of(params)
    library = arrays.library(device)
    x, unbatched = check_input(config, x, dtype, device)
    steps, batch, _ = x.shape
    state = check_state("state", config, state, batch, unbatched, dtype, device)
    layout = Layout(steps, batch, unbatched)
    if lengths is not None:
        lengths = checks.lengths(lengths, batch, steps)
    if resets is not None:
        resets = library.resets(check_resets(config, resets, layout, lengths))
    if lengths is not None:
        lengths = library.lengths(lengths)
    given, draws = None, False
    if inputs is not None or config.cell.inputs:
        values = check_inputs(config, inputs, layout, lengths, dtype, device)
        draws = training and any(value is None for value in values)
        if not draws:
            given = library.stack(with_expectations(config, values, (steps, batch), dtype, library))
    matrices = dtype_of_matrices(params, dtype, training)
    features = training, lengths is not None, resets is not None
    shape = config.layer_shape(0, steps, batch, dtype, matrices, *features)
    registered = select_backend(params, shape, device, backend)[0]
    chosen, upper, is_stack = registered.module, shape, config.num_layers > 1
    if is_stack:
        upper = config.layer_shape(1, steps, batch, dtype, matrices, *features)
        if upper != shape:
            dispatch.module_for(registered, upper)
    if lengths is not None:
        x = library.clear_padding(x, lengths)
    if rng is not None:
        library.check_rng(rng)
    generator = library.generator(rng) if draws or (training and config.dropout) else None
    source = noise.source(config.cell, config.num_layers, generator, library) if draws else None

    tapes: list[Any] = []
    masks: list[np.ndarray | None] = []
    finals: list[State] = []
    for layer in range(config.num_layers):
        own = slice(layer * config.directions, (layer + 1) * config.directions)
        initial = tuple([part[own] for part in state]) if is_stack else state
        weights = weights_of(config, params, layer, dtype, matrices)
        if source is not None:
            sizes = steps, batch, config.hidden_size
            given = noise.draw(config.cell, config.noise, values, sizes, dtype, source, layer, library)
        y, final, tape = chosen.layer_forward(upper if layer else shape, x, initial, weights, lengths, given, resets)
        mask = None
        if generator is not None and config.dropout and layer + 1 < config.num_layers:
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
    states = tuple([library.concatenate(parts) for parts in zip(*finals, strict=True)]) if is_stack else final
    tape = Tape(config, chosen, device, dtype, layout, tapes, masks, shapes_of(inputs)) if training else None
    return outside(config, y, unbatched), states_outside(states, unbatched), tape


def rnn_backward(tape: Tape, dy: Any = None, dstate: Any = None) -> tuple[np.ndarray, State, dict[str, np.ndarray]]:
    """The gradient of :func:`rnn_forward`.

    Args:
        tape: of a forward pass in training; not changed, so that it can be used again.
        dy: gradient of the output, of its shape; None for zeros. Ignored past a sequence's length.
        dstate: gradients of the final state, of its form; None, or None in place of a part, for zeros.

    Returns:
        The gradients of x, of the initial state (always a tuple), and a dict of those of the parameters and, as
        ``inputs.<name>``, of the cell's differentiable inputs.

    Raises:
        TypeError, ValueError: an argument whose dtype or shape is not that of the output or the state.
    """
    config, device, dtype, layout = tape.config, tape.device, tape.dtype, tape.layout
    library = arrays.library(device)
    features = config.output_size * config.directions
    if dy is None:
        gradient = library.zeros((layout.steps, layout.batch, features), dtype)
    else:
        shape = _outside_shape(config, layout, features)
        gradient = _inside(config, checks.array(dy, "dy", dtype, shape, device=device), layout.unbatched, library)
    dstate = check_state("dstate", config, dstate, layout.batch, layout.unbatched, dtype, device)

    initials: list[State] = []
    grads: dict[str, np.ndarray] = {}
    of_inputs: dict[str, np.ndarray] = {}
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
            for name in config.cell.differentiable:  # each layer and direction is given the same
                value = part.pop(f"inputs.{name}")
                of_inputs[name] = library.add(of_inputs[name], value) if name in of_inputs else value
            grads |= {name + end: value for name, value in part.items()}
    states = tuple(library.concatenate(parts) for parts in zip(*initials, strict=True))
    ordered = {name: grads[name] for name in config.shapes()}
    for name, value in of_inputs.items():
        ordered[f"inputs.{name}"] = _input_outside(config, value, tape.inputs[name], layout, library)
    return outside(config, gradient, layout.unbatched), states_outside(states, layout.unbatched), ordered


def select_backend(
    params: Mapping[str, Any], shape: LayerShape, device: str, backend: str | None = None
) -> tuple[dispatch.Registered, str]:
    """See :func:`gpulstm.dispatch.select`; ``shape`` is that of a call with ``params``.

    Raises:
        TypeError: the parameters are quantized, and the backend for others has no kernels for them.
    """
    if shape.weights == shape.dtype:
        return dispatch.select(shape, device, backend)
    chosen, why = dispatch.select(None, device, backend)
    reason = chosen.module.why_not(shape)
    if reason is not None:
        name = next(iter(params))
        raise TypeError(f"{name}: expected floating-point parameters, got {shape.weights}: {reason}")
    return chosen, why


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
        (name.replace("weight", "scale"), full.replace("weight", "scale"), shape[:-1])
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
    matrices = dtype_of_matrices(params, dtype)
    shape = config.layer_shape(0, 1, batch, dtype, matrices, False, False)
    return shape, [weights_of(config, params, layer, dtype, matrices)[0] for layer in range(config.num_layers)]


def dtype_of_matrices(params: Mapping[str, Any], dtype: np.dtype, training: bool = False) -> np.dtype:
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


def check_input(config: Config, x: Any, dtype: np.dtype, device: str) -> tuple[np.ndarray, bool]:
    """x as (T, B, I), and whether it was one sequence without a batch axis."""
    array = checks.array(x, "x", dtype, *config.input_shapes, device=device)
    unbatched = array.ndim == 2
    return _inside(config, array, unbatched, arrays.library(device)), unbatched


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
    layout = config.state_layout((batch,))
    library = arrays.library(device)
    if state is None:
        return tuple([library.zeros(shape, dtype) for _, shape in layout])
    labels = [f"{name} {label}" for label, _ in layout]
    if len(layout) == 1 and not isinstance(state, (tuple, list)):
        state = (state,)
    parts = state_parts(state, len(layout), name, f"({', '.join(labels)})")
    checked = []
    for label, part, (_, shape) in zip(labels, parts, layout, strict=True):
        if part is None:
            checked.append(library.zeros(shape, dtype))
            continue
        outside = (shape[0], shape[2]) if unbatched else shape
        array = checks.array(part, label, dtype, outside, device=device)
        checked.append(library.contiguous(array).reshape(shape))
    return tuple(checked)


def check_resets(config: Config, resets: Any, layout: Layout, lengths: np.ndarray | None) -> np.ndarray:
    """``resets`` as (T, B) on the host, False past the checked ``lengths``."""
    array = arrays.to_numpy(resets, "resets")
    if array.dtype != np.bool_:
        raise TypeError(f"resets: expected bools, got dtype {array.dtype}")
    shape = _outside_shape(config, layout)
    if array.shape != shape:
        raise ValueError(f"resets: expected shape {shape}, a bool a step and sequence, got {array.shape}")
    array = _inside(config, array, layout.unbatched, arrays.library("cpu"))
    return array if lengths is None else array & (np.arange(layout.steps)[:, None] < lengths)


def check_inputs(config: Config, inputs: Any, layout: Layout, lengths: Any, dtype: np.dtype, device: str) -> list[Any]:
    """The cell's inputs in their order, (T, B, W) each, zero past the library's ``lengths``; None for noise that is not
    given.

    W is 1 where it has no value for each unit.
    """
    names, library = config.cell.inputs, arrays.library(device)
    cell = f"cell {config.cell.name!r}"
    if not names:
        raise ValueError(f"inputs: expected None, since {cell} declares none, got {checks.shown(inputs)}")
    given = checks.named({} if inputs is None else inputs, "inputs")
    drawn = [one.input for one in config.noise]
    missing, extra = [n for n in names if n not in given and n not in drawn], sorted(given.keys() - set(names))
    if missing or extra:
        raise ValueError(
            f"inputs: expected a dict with {', '.join(names)}, which {cell} declares, got "
            f"{'none' if inputs is None else f'missing {missing}, left over {extra}'}"
        )
    values: list[Any] = []
    hidden = config.hidden_size
    for name in names:
        if name not in given:
            values.append(None)
            continue
        value = library.to_array(given[name], f"inputs[{name!r}]")
        if value.dtype == np.bool_:
            value = library.numbers(value, dtype)
        shapes = [_outside_shape(config, layout), *(_outside_shape(config, layout, n) for n in (1, hidden))]
        value = checks.array(value, f"inputs[{name!r}]", dtype, *shapes, device=device)
        if value.shape == shapes[0]:
            value = value[..., None]
        value = _inside(config, value, layout.unbatched, library)
        values.append(value if lengths is None else library.clear_padding(value, lengths))
    return values


def with_expectations(
    config: Config, values: Sequence[Any], rows: tuple[int, ...], dtype: np.dtype, library: arrays.Arrays
) -> list[Any]:
    """``values`` of :func:`check_inputs`, and (*rows, 1) of what noise is on average in the place of None."""
    if all(value is not None for value in values):
        return list(values)
    expected = noise.expectations(config.cell, config.noise, rows, dtype, library)
    return [expected[n] if value is None else value for n, value in zip(config.cell.inputs, values, strict=True)]


def shapes_of(inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a call's ``inputs``, by name."""
    return {} if inputs is None else {name: tuple(value.shape) for name, value in inputs.items()}


def _input_outside(
    config: Config, gradient: Any, shape: tuple[int, ...], layout: Layout, library: arrays.Arrays
) -> Any:
    """The ``gradient`` (T, B, W) of an input, in the ``shape`` that was given."""
    if math.prod(shape) < gradient.size:  # it is another input that has a value for each unit
        gradient = library.sum_features(gradient)
    return library.contiguous(outside(config, gradient, layout.unbatched)).reshape(shape)


def _inside(config: Config, array: np.ndarray, unbatched: bool, library: arrays.Arrays) -> np.ndarray:
    """As the kernels take it: (T, B, features), contiguous and aligned."""
    if unbatched:
        array = array[:, None]
    elif config.batch_first:
        array = array.swapaxes(0, 1)
    return library.contiguous(array)


def outside(config: Config, array: np.ndarray, unbatched: bool) -> np.ndarray:
    """(T, B, features) as the caller has it laid out."""
    if unbatched:
        return array[:, 0]
    return array.swapaxes(0, 1) if config.batch_first else array


def _outside_shape(config: Config, layout: Layout, *features: int) -> tuple[int, ...]:
    steps, batch, unbatched = layout
    if unbatched:
        return (steps, *features)
    return (batch, steps, *features) if config.batch_first else (steps, batch, *features)


def states_outside(states: State, unbatched: bool) -> State:
    """The parts of a state, which are (L·D, ·) of one sequence."""
    return tuple(s[:, 0] for s in states) if unbatched else states
