"""Random problems, for a backend (one layer) and for whole networks, and their gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpulstm import cells
from gpulstm_kernels.backend import LayerShape
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cpu import tuning
from gpulstm_kernels.cpu.crew.thread_pool import crew

Arrays = dict[str, np.ndarray]


def dtype_of(name: str) -> np.dtype:
    """The dtype called ``name``. A GPU machine may lack ml_dtypes, which has bfloat16; CI fails where it is skipped."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


class Problem(NamedTuple):
    """The arguments of a backend's ``layer_forward`` and ``layer_backward``."""

    cell: Cell
    x: np.ndarray
    state: tuple[np.ndarray, ...]
    weights: list[Arrays]
    lengths: np.ndarray | None
    dy: np.ndarray
    dstate: tuple[np.ndarray, ...]
    inputs: np.ndarray | None = None
    resets: np.ndarray | None = None

    def shape(self, training: bool = False) -> LayerShape:
        """Of the call."""
        return LayerShape.of(self.cell, self.x, self.weights, self.lengths, training, self.resets)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of ``layer_forward``, behind the shape."""
        return self.x, self.state, self.weights, self.lengths, self.inputs, self.resets


def layer_shape(
    cell: str | Cell = "lstm",
    dtype: Any = "float32",
    *,
    steps: int = 10,
    batch: int = 8,
    inputs: int = 8,
    hidden: int = 8,
    outputs: int | None = None,
    directions: int = 1,
    training: bool = True,
    ragged: bool = False,
    resets: bool = False,
    heads: int = 1,
    tf32: bool = False,
) -> LayerShape:
    """The shape of a call, with biases; with a projection where ``outputs`` are given."""
    cell, kind = cells.get(cell) if isinstance(cell, str) else cell, np.dtype(dtype)
    sizes = steps, batch, inputs, hidden, hidden if outputs is None else outputs, directions
    return LayerShape(cell, *sizes, kind, kind, training, True, outputs is not None, ragged, resets, heads, tf32)


def layer_problem(
    cell: str | Cell,
    dtype: str = "float64",
    *,
    steps: int = 4,
    batch: int = 3,
    inputs: int = 3,
    hidden: int = 4,
    projection: int = 0,
    directions: int = 1,
    bias: bool = True,
    ragged: bool = False,
    resets: bool = False,
    scalar_inputs: bool = False,
    heads: int = 1,
    gates_given: bool = False,
    seed: int = 0,
) -> Problem:
    """A random problem with a non-zero initial state and a gradient of every output.

    ``gates_given``: x holds pre-activations, whatever ``inputs`` is. ``resets``: a third of the steps, at least one,
    begins a sequence. ``scalar_inputs``: what the cell is given has one value a row, in [0, 1) in any case.
    """
    rng, kind = np.random.default_rng(seed), dtype_of(dtype)
    cell = cells.get(cell) if isinstance(cell, str) else cell
    of_x, of_h, outputs = len(cell.gates_of_x) * hidden, len(cell.gates_of_h) * hidden, projection or hidden

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(kind)

    def states() -> tuple[np.ndarray, ...]:
        return normal(directions, batch, outputs), *(normal(directions, batch, hidden) for _ in cell.states)

    inputs = directions * of_x if gates_given else inputs
    shapes: dict[str, tuple[int, ...]] = {} if gates_given else {"weight_ih": (of_x, inputs)}
    shapes["weight_hh"] = (of_h, outputs)
    if bias:
        shapes |= {"bias_ih": (of_x,), "bias_hh": (of_h,)}
    if projection:
        shapes["weight_hr"] = (projection, hidden)
    if heads > 1:
        shapes["weight_hh"] = (heads, of_h // heads, hidden // heads)
    shapes |= dict.fromkeys(cell.params, (hidden,))
    shapes |= {f"weight_{name}": (hidden, hidden) for name in cell.weights}
    shapes = {name: shape for name, shape in shapes.items() if shape[0]}
    bound = 1 / np.sqrt(hidden)
    weights = [
        {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in shapes.items()}
        for _ in range(directions)
    ]
    lengths = _lengths(rng, steps, batch) if ragged else None
    dy = normal(steps, batch, directions * outputs)
    x, initial, dstate = normal(steps, batch, inputs), states(), states()
    given = begins = None
    if cell.inputs:
        width = 1 if scalar_inputs else hidden
        given = rng.uniform(size=(len(cell.inputs), steps, batch, width)).astype(kind)
    if resets:
        begins = rng.uniform(size=(steps, batch)) < 1 / 3
        begins[steps // 2, 0] = True
        if lengths is not None:
            begins &= np.arange(steps)[:, None] < lengths
    return Problem(cell, x, initial, weights, lengths, dy, dstate, given, begins)


def with_an_empty_sequence(p: Problem) -> Problem:
    """``p``, in which the shortest of sequences of different lengths has no step at all, and so begins at none."""
    if p.lengths is None or len(p.lengths) == 1:
        return p
    lengths = p.lengths.copy()
    lengths[int(np.argmin(lengths))] = 0
    resets = None if p.resets is None else p.resets & (np.arange(len(p.x))[:, None] < lengths)
    return p._replace(lengths=lengths, resets=resets)


def _lengths(rng: np.random.Generator, steps: int, batch: int) -> np.ndarray:
    """Random lengths in any order: the shortest is 1 and the longest ``steps``."""
    lengths = rng.integers(1, steps + 1, batch)
    lengths[-1], lengths[0] = 1, steps
    return rng.permutation(lengths)


def _named(cell: Cell, parts: tuple[np.ndarray, ...], prefix: str = "", suffix: str = "") -> Arrays:
    return {f"{prefix}{name}{suffix}": part for name, part in zip(("h", *cell.states), parts, strict=True)}


def outputs(backend: Any, p: Problem, training: bool = False) -> tuple[Arrays, Any]:
    """y (zero past lengths, where a backend may leave anything) and the final states by name, and the tape."""
    y, final, tape = backend.layer_forward(p.shape(training), *p.arguments)
    if p.lengths is not None:
        y = np.where(np.arange(len(y))[:, None, None] < p.lengths[:, None], y, 0)
    return {"y": y, **_named(p.cell, final)}, tape


def gradients(backend: Any, p: Problem, tape: Any) -> Arrays:
    """Every gradient by name."""
    dx, initial, grads = backend.layer_backward(tape, p.dy, p.dstate)
    of_inputs = {f"dinputs.{name}": sum(g.pop(f"inputs.{name}") for g in grads) for name in p.cell.differentiable}
    of_weights = {f"d{name}[{d}]": value for d, grad in enumerate(grads) for name, value in grad.items()}
    return {"dx": dx, **_named(p.cell, initial, "d", "0"), **of_weights, **of_inputs}


def differences(loss: Callable[[], float], array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of ``loss()`` by ``array``, which is moved in place, by central differences."""
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + step
        above = loss()
        array[index] = before - step
        gradient[index] = (above - loss()) / (2 * step)
        array[index] = before
    return gradient


def layer_differences(backend: Any, p: Problem) -> Arrays:
    """What :func:`gradients` should give, from ``layer_forward`` alone."""
    upstream = [p.dy, *p.dstate]

    def loss() -> float:
        values = outputs(backend, p)[0].values()
        return float(sum((value * gradient).sum() for value, gradient in zip(values, upstream, strict=True)))

    inputs = {"dx": p.x, **_named(p.cell, p.state, "d", "0")}
    inputs |= {f"d{name}[{d}]": value for d, weights in enumerate(p.weights) for name, value in weights.items()}
    for k, name in enumerate(p.cell.inputs):
        if name in p.cell.differentiable:  # of both directions together
            inputs[f"dinputs.{name}"] = p.inputs[k]
    return {name: differences(loss, value) for name, value in inputs.items()}


class Network(NamedTuple):
    """A layer of :mod:`gpulstm.nn`, its input, and a gradient of every output."""

    layer: Any
    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    dy: np.ndarray
    dstate: Any


def network(layer: Any, *, steps: int = 4, batch: int = 3, ragged: bool = False, seed: int = 0) -> Network:
    """A random problem for ``layer``; ``batch = 0`` for one sequence without a batch axis."""
    rng = np.random.default_rng(seed)
    config, dtype = layer.config, next(iter(layer.params.values())).dtype
    rows = (batch,) if batch else ()
    order = (*rows, steps) if config.batch_first and batch else (steps, *rows)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    def states() -> Any:
        parts = tuple(normal(count, *rows, size) for count, _, size in config.state_shapes(1))
        return parts if len(parts) > 1 else parts[0]

    lengths = _lengths(rng, steps, batch) if ragged else None
    dy = normal(*order, config.directions * config.output_size)
    return Network(layer, normal(*order, config.input_size), states(), lengths, dy, states())


def parts(state: Any) -> tuple[np.ndarray, ...]:
    """A state as a tuple, whatever the cell."""
    return state if isinstance(state, tuple) else (state,)


def network_gradients(n: Network, rng: Any = None, **options: Any) -> Arrays:
    """Every gradient of a network by name."""
    _, pullback = n.layer.vjp(n.x, n.state, n.lengths, rng=rng, **options)
    dx, initial, grads = pullback(n.dy, n.dstate)
    return {"x": dx, **{f"state {k}": part for k, part in enumerate(parts(initial))}, **grads}


def network_differences(n: Network, rng: Any = None, **options: Any) -> Arrays:
    """What :func:`network_gradients` should give, from ``vjp``'s forward alone; ``rng`` is a seed."""

    def loss() -> float:
        (y, final), _ = n.layer.vjp(n.x, n.state, n.lengths, rng=rng, **options)
        total = (y * n.dy).sum() + sum((a * b).sum() for a, b in zip(parts(final), parts(n.dstate), strict=True))
        return float(total)

    inputs = {"x": n.x, **{f"state {k}": part for k, part in enumerate(parts(n.state))}, **n.layer.params}
    inputs |= {f"inputs.{name}": value for name, value in options.get("inputs", {}).items()}
    return {name: differences(loss, value) for name, value in inputs.items()}


@contextmanager
def threads(count: int, split: str = "batch") -> Iterator[None]:
    """Every call on ``count`` threads, however small, that split the batch or, where they can, the units."""
    never = 1 << 62
    split_from = {"batch": 1, "units": never}[split]
    before = crew.size
    crew.resize(count)
    try:
        with tuning.replaced(
            layer_per_thread=1, gemm_per_thread=1, split_from=split_from, shared_from=never, always_shared_from=never
        ):
            yield
    finally:
        crew.resize(before)
