"""A backend's layer against the float64 reference: the shapes that are tested, and the one comparison.

Which shapes a test takes is its choice; each is a case of its own (``pytest.mark.parametrize("shape", ...)``), so that
one that fails hides no other.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import problems
from problems import Arrays, Problem
from tolerances import assert_close

from gpulstm_kernels import reference
from gpulstm_kernels.cells import Cell


class Shape(NamedTuple):
    """The sizes of a layer and of its input."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    projection: int = 0
    directions: int = 1
    bias: bool = True
    ragged: bool = False


SHAPES = {
    "one of each": Shape(1, 1, 1, 2),
    "one step": Shape(1, 5, 3, 7, directions=2, ragged=True),
    "one step, no bias": Shape(1, 2, 20, 19, bias=False),
    "one sequence": Shape(6, 1, 9, 37),
    "odd": Shape(5, 7, 3, 33, ragged=True),
    "even": Shape(3, 8, 16, 64, directions=2, bias=False),
    "ragged": Shape(4, 9, 5, 12, directions=2, ragged=True),
    "no bias": Shape(4, 3, 5, 9, directions=2, bias=False, ragged=True),
    "no bias, even": Shape(3, 19, 16, 64, directions=2, bias=False, ragged=True),
    "wide": Shape(3, 4, 5, 201, ragged=True),
    "deep sums": Shape(2, 3, 530, 131),
    "many rows": Shape(13, 45, 3, 5, ragged=True),
    "projected": Shape(5, 6, 4, 33, projection=7, directions=2, ragged=True),
    "projected even": Shape(3, 2, 4, 32, projection=8),
    "projected to one": Shape(3, 1, 2, 5, projection=1, bias=False),
    "projected wide": Shape(3, 4, 5, 201, projection=130, ragged=True),
}
# what an interpreter can compute
SMALL = {
    "one unit": Shape(1, 1, 1, 1),
    "odd": Shape(3, 2, 2, 5, ragged=True),
    "even": Shape(2, 3, 2, 4, directions=2, bias=False, ragged=True),
    "projected": Shape(3, 3, 2, 6, projection=2, directions=2, ragged=True),
    "two blocks": Shape(2, 9, 2, 4, ragged=True),
}


def problem(cell: str | Cell, dtype: str, shape: Shape, seed: int = 0) -> Problem:
    return problems.layer_problem(cell, dtype, **shape._asdict(), seed=seed)


def solved(p: Problem) -> Arrays:
    """The reference's outputs and gradients, for the same numbers in float64."""

    def wide(parts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(part.astype("float64") for part in parts)

    weights = [{name: value.astype("float64") for name, value in w.items()} for w in p.weights]
    x, dy = wide((p.x, p.dy))
    p = p._replace(x=x, state=wide(p.state), weights=weights, dy=dy, dstate=wide(p.dstate))
    if p.inputs is not None:
        p = p._replace(inputs=p.inputs.astype("float64"))
    return computed(reference, p)


@functools.cache
def case(cell: str | Cell, dtype: str, shape: Shape) -> tuple[Problem, Arrays]:
    """A problem of that shape, and what is right; made once."""
    p = problem(cell, dtype, shape)
    return p, solved(p)


def computed(backend: Any, p: Problem) -> Arrays:
    """A backend's outputs, final states and every gradient of training, by name."""
    outputs, tape = problems.outputs(backend, p, training=True)
    return outputs | problems.gradients(backend, p, tape)


def check(backend: Any, p: Problem, what: str, label: str, expected: Arrays | None = None) -> Arrays:
    """What a backend computes, once it was compared with what is right.

    Outputs, final states and every gradient of training are within the tolerance for comparing ``what`` in the
    problem's dtype, and the outputs and final states of inference are training's bit for bit.

    Args:
        backend: a module of ``layer_forward`` and ``layer_backward``, or :class:`OnDevice`.
        p: the problem, in NumPy arrays.
        what: the line of :mod:`tolerances`.
        label: what a failure is named by.
        expected: what is right, where the caller has it already.
    """
    found = computed(backend, p)
    for name, value in (solved(p) if expected is None else expected).items():
        assert found[name].dtype == p.x.dtype
        assert_close(found[name], value, what, p.x.dtype, f"{label}: {name}")
    inference, _ = problems.outputs(backend, p, training=False)
    for name, value in inference.items():
        np.testing.assert_array_equal(value, found[name], f"{label}: {name} of inference")
    return found


class OnDevice:
    """A backend that takes NumPy arrays to a device and what it computes there back; ``options`` are its layers'."""

    def __init__(self, layer: Any, runtime: Any, /, **options: Any) -> None:
        self.layer, self.runtime, self.options = layer, runtime, options

    def _there(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self.runtime.to_device(value)
        if isinstance(value, dict):
            return {name: self._there(part) for name, part in value.items()}
        return type(value)(map(self._there, value))

    def _back(self, parts: Any) -> tuple[np.ndarray, ...]:
        return tuple(map(self.runtime.to_host, parts))

    def layer_forward(
        self, shape: Any, x: Any, state: Any, weights: Any, lengths: Any, inputs: Any = None, resets: Any = None
    ) -> Any:
        x, state, weights = map(self._there, (x, state, weights))
        inputs = None if inputs is None else self._there(inputs)
        resets = None if resets is None else self._there(resets.view(np.uint8))
        y, final, tape = self.layer.layer_forward(shape, x, state, weights, lengths, inputs, resets, **self.options)
        return self.runtime.to_host(y), self._back(final), tape

    def layer_backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        dx, initial, grads = self.layer.layer_backward(tape, self._there(dy), self._there(dstate))
        of_weights = [dict(zip(grad, self._back(grad.values()), strict=True)) for grad in grads]
        return self.runtime.to_host(dx), self._back(initial), of_weights
