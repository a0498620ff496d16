"""Is a cell's gradient right, and finite where it must be? Tried on NumPy arrays, before anything is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from .cell import checked
from .check_stages import check_stages
from .graph import CellError

_LANES = 64  # values of each gate, drawn from a normal distribution
_STEPS = 6  # from a state of zeros to those that are tried: a cell may rely on what its states can be
_EPSILON = 1e-6
_ALLOWED = 1e-6  # relative error of a gradient; central differences of float64 are good to 1e-9 or so
_SATURATED = 30.0

Arrays = tuple[np.ndarray, ...]


def check(cell: Cell) -> str:
    """Try ``cell`` and say what was found, in one line.

    What is tried: its gradients against central finite differences in float64, at random gates and at states that the
    cell comes to from zero; that outputs and gradients are finite where everything is zero, which the lanes of a
    register past the last unit compute, and where a gate is at ±30; that float32 stays float32 and comes near float64.

    Raises:
        TypeError: ``cell`` is none.
        CellError: something is wrong; the message names the gate or state, and both values.
        ValueError: maths written by hand is not what it is declared to be.
    """
    checked(cell)
    if cell.stages > 1:
        return check_stages(cell)
    rng = np.random.default_rng(0)
    point = _reached(cell, rng)
    for what, values, gradients in _extremes(cell):
        for dtype in ("float32", "float64"):
            _finite(cell, what, dtype, values.to(dtype), tuple(v.astype(dtype) for v in gradients))
    error = 0.0
    for tried in (point, _moved(cell, point, rng)):
        error = max(error, _compare(cell, tried, _drawn(rng, 1 + len(cell.states))))
    single = _single(cell, point)
    return (
        f"cell {cell.name!r}: gradients of {', '.join(name for _, name in _parts(cell))} are within {error:.1g} of "
        f"finite differences; finite at 0 and where a gate is ±{_SATURATED:.0f}; float32 within {single:.1g} of float64"
    )


class _Point(NamedTuple):
    """Where a cell is tried: values of its gates, its states, and what else it is given."""

    gates: Arrays
    states: Arrays
    given: Arrays

    def to(self, dtype: str) -> _Point:
        return _Point(*(tuple(v.astype(dtype) for v in part) for part in self))


def _parts(cell: Cell) -> list[tuple[str, str]]:
    """Kind and name of all that has a gradient, in the order of :func:`_gradient`."""
    kinds = {"gate": cell.preactivations, "state": cell.states + ("h",) * cell.reads_h}
    kinds |= {"parameter": cell.params, "input": cell.differentiable}
    return [(kind, name) for kind, names in kinds.items() for name in names]


def _drawn(rng: np.random.Generator, count: int) -> Arrays:
    return tuple(rng.standard_normal(_LANES) for _ in range(count))


def _forward(cell: Cell, at: _Point) -> tuple[np.ndarray, Arrays, Arrays]:
    with np.errstate(all="ignore"):
        h, new, saved = cell.module.forward(at.gates, at.states, *[at.given] * bool(at.given))
    return h, new, saved


def _gradient(cell: Cell, at: _Point, gradients: Arrays) -> Arrays:
    """Of each gate, of each state before the step, and of each that is given and has one."""
    h, new, saved = _forward(cell, at)
    more = [at.given] * bool(at.given)
    with np.errstate(all="ignore"):
        found = cell.module.backward(gradients[0], gradients[1:], h, saved, new, at.states, *more)
    return tuple(itertools.chain(*found))


def _reached(cell: Cell, rng: np.random.Generator) -> _Point:
    """Random gates and parameters, inputs in [0, 1), and h and states after a few steps from zero."""
    params = _drawn(rng, len(cell.params))
    h, states = np.zeros(_LANES), (np.zeros(_LANES),) * len(cell.states)
    for step in range(_STEPS + 1):
        inputs = tuple(rng.uniform(size=_LANES) for _ in cell.inputs)
        at = _Point(_drawn(rng, len(cell.preactivations)), states, (*[h] * cell.reads_h, *params, *inputs))
        if step == _STEPS:
            break
        h, states, _ = _forward(cell, at)
        for name, value in (("h", h), *zip(cell.states, states, strict=True)):
            if not np.isfinite(value).all():
                raise CellError(
                    f"cell {cell.name!r}: {name}: expected finite values, got {value[~np.isfinite(value)][0]} after "
                    f"{step + 1} steps from zero, at gates drawn from a normal distribution"
                )
    return at


def _moved(cell: Cell, at: _Point, rng: np.random.Generator) -> _Point:
    """States near those, where the cell is finite there: the ones that it comes to from zero may all be zero."""
    noise = _drawn(rng, len(at.states))
    moved = at._replace(states=tuple(state + 0.1 * n for state, n in zip(at.states, noise, strict=True)))
    h, new, _ = _forward(cell, moved)
    return moved if all(np.isfinite(value).all() for value in (h, *new)) else at


def _compare(cell: Cell, at: _Point, gradients: Arrays) -> float:
    """The largest error of a gradient, beside the largest of its values or 1."""

    def loss(values: Sequence[np.ndarray]) -> np.ndarray:
        states = len(at.gates) + len(at.states)
        parts = values[: len(at.gates)], values[len(at.gates) : states], values[states:]
        h, new, _ = _forward(cell, _Point(*map(tuple, parts)))
        return sum((a * b for a, b in zip((h, *new), gradients, strict=True)), np.zeros(_LANES))

    values, worst = [*itertools.chain(*at)], 0.0
    constant = set(cell.inputs) - set(cell.differentiable)
    moved = [k for k, name in enumerate((*cell.preactivations, *cell.states, *cell.given)) if name not in constant]
    found = _gradient(cell, at, gradients)
    for k, (kind, name), value in zip(moved, _parts(cell), found, strict=True):
        expected, other = (
            (
                loss([v + e * (j == k) for j, v in enumerate(values)])
                - loss([v - e * (j == k) for j, v in enumerate(values)])
            )
            / (2 * e)
            for e in (_EPSILON, 3 * _EPSILON)
        )
        scale = max(1.0, np.abs(expected).max())
        # Beside a kink or a pole it is the differences that are wrong.
        settled = np.abs(expected - other) <= 0.1 * _ALLOWED * scale
        off = np.where(settled, np.abs(expected - value) / scale, 0.0)
        if settled.mean() < 0.5:
            raise CellError(f"cell {cell.name!r}: gradient of {kind} {name!r}: finite differences come to no value")
        if not (off <= _ALLOWED).all():
            at_most = int(np.nanargmax(np.where(np.isnan(off), np.inf, off)))
            raise CellError(
                f"cell {cell.name!r}: gradient of {kind} {name!r}: expected {expected[at_most]:.9g}, as finite "
                f"differences give, got {value[at_most]:.9g}"
            )
        worst = max(worst, float(off.max()))
    return worst


def _extremes(cell: Cell) -> Iterator[tuple[str, _Point, Arrays]]:
    """Where a cell must be finite, and gradients of h and of the new states."""
    zeros: Arrays = (np.zeros(_LANES),)
    zero = _Point(len(cell.preactivations) * zeros, len(cell.states) * zeros, len(cell.given) * zeros)
    yield "everything is 0", zero, (1 + len(cell.states)) * zeros
    ones = (1 + len(cell.states)) * (np.ones(_LANES),)
    for k, name in enumerate(cell.preactivations):
        for value in (_SATURATED, -_SATURATED):
            gates = (*zero.gates[:k], np.full(_LANES, value), *zero.gates[k + 1 :])
            yield f"gate {name!r} is {value:g} and the others are 0", zero._replace(gates=gates), ones


def _finite(cell: Cell, where: str, dtype: str, at: _Point, gradients: Arrays) -> None:
    h, new, saved = _forward(cell, at)
    found = _gradient(cell, at, gradients)
    named: list[tuple[str, Any]] = [("h", h), *((f"state {n!r}", v) for n, v in zip(cell.states, new, strict=True))]
    named += [(f"saved value {k}", value) for k, value in enumerate(saved)]
    named += [(f"gradient of {n!r}", v) for (_, n), v in zip(_parts(cell), found, strict=True)]
    for what, value in named:
        if np.asarray(value).dtype != dtype:
            raise CellError(f"cell {cell.name!r}: {what}: expected {dtype}, as given, got {np.asarray(value).dtype}")
        if not np.isfinite(value).all():
            raise CellError(
                f"cell {cell.name!r}: {what}: expected finite values where {where} ({dtype}), got "
                f"{value[~np.isfinite(value)][0]}"
            )


def _single(cell: Cell, at: _Point) -> float:
    """How far float32 is from float64, beside the largest value or 1."""
    exact, single, worst = _forward(cell, at), _forward(cell, at.to("float32")), 0.0
    for a, b in zip((exact[0], *exact[1]), (single[0], *single[1]), strict=True):
        worst = max(worst, float(np.abs(a - b).max() / max(1.0, np.abs(a).max())))
    return worst
