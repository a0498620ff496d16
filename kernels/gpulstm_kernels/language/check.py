"""Is a cell's gradient right, and finite where it must be? Tried on NumPy arrays, before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..cells import Cell
from .cell import checked
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
    rng = np.random.default_rng(0)
    gates, states = _reached(cell, rng)
    for what, values in _extremes(cell):
        for dtype in ("float32", "float64"):
            _finite(cell, what, dtype, *(tuple(v.astype(dtype) for v in part) for part in values))
    error = 0.0
    for tried in (states, _moved(cell, gates, states, rng)):
        error = max(error, _compare(cell, gates, tried, _drawn(rng, 1)[0], _drawn(rng, len(cell.states))))
    single = _single(cell, gates, states)
    return (
        f"cell {cell.name!r}: gradients of {', '.join((*cell.gates, *cell.states))} are within {error:.1g} of finite "
        f"differences; finite at 0 and where a gate is ±{_SATURATED:.0f}; float32 within {single:.1g} of float64"
    )


def _drawn(rng: np.random.Generator, count: int) -> Arrays:
    return tuple(rng.standard_normal(_LANES) for _ in range(count))


def _forward(cell: Cell, gates: Arrays, states: Arrays) -> tuple[np.ndarray, Arrays, Arrays]:
    with np.errstate(all="ignore"):
        h, new, saved = cell.module.forward(gates, states)
    return h, new, saved


def _gradient(cell: Cell, gates: Arrays, states: Arrays, dh: np.ndarray, dnew: Arrays) -> Arrays:
    """Of each gate and each state before the step."""
    h, new, saved = _forward(cell, gates, states)
    with np.errstate(all="ignore"):
        dgates, dstates = cell.module.backward(dh, dnew, h, saved, new, states)
    return (*dgates, *dstates)


def _reached(cell: Cell, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Random gates, and states after a few steps from zero."""
    states: Arrays = (np.zeros(_LANES),) * len(cell.states)
    for step in range(_STEPS):
        gates = _drawn(rng, len(cell.gates))
        h, states, _ = _forward(cell, gates, states)
        for name, value in (("h", h), *zip(cell.states, states, strict=True)):
            if not np.isfinite(value).all():
                raise CellError(
                    f"cell {cell.name!r}: {name}: expected finite values, got {value[~np.isfinite(value)][0]} after "
                    f"{step + 1} steps from zero, at gates drawn from a normal distribution"
                )
    return _drawn(rng, len(cell.gates)), states


def _moved(cell: Cell, gates: Arrays, states: Arrays, rng: np.random.Generator) -> Arrays:
    """States near those, where the cell is finite there: the ones that it comes to from zero may all be zero."""
    moved = tuple(state + 0.1 * noise for state, noise in zip(states, _drawn(rng, len(states)), strict=True))
    h, new, _ = _forward(cell, gates, moved)
    return moved if all(np.isfinite(value).all() for value in (h, *new)) else states


def _compare(cell: Cell, gates: Arrays, states: Arrays, dh: np.ndarray, dnew: Arrays) -> float:
    """The largest error of a gradient, beside the largest of its values or 1."""

    def loss(values: Sequence[np.ndarray]) -> np.ndarray:
        h, new, _ = _forward(cell, tuple(values[: len(gates)]), tuple(values[len(gates) :]))
        return h * dh + sum((a * b for a, b in zip(new, dnew, strict=True)), np.zeros(_LANES))

    given, worst = [*gates, *states], 0.0
    found = _gradient(cell, gates, states, dh, dnew)
    kinds = [("gate", name) for name in cell.gates] + [("state", name) for name in cell.states]
    for k, ((kind, name), value) in enumerate(zip(kinds, found, strict=True)):
        expected, other = (
            (
                loss([v + e * (j == k) for j, v in enumerate(given)])
                - loss([v - e * (j == k) for j, v in enumerate(given)])
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
            at = int(np.nanargmax(np.where(np.isnan(off), np.inf, off)))
            raise CellError(
                f"cell {cell.name!r}: gradient of {kind} {name!r}: expected {expected[at]:.9g}, as finite differences "
                f"give, got {value[at]:.9g}"
            )
        worst = max(worst, float(off.max()))
    return worst


def _extremes(cell: Cell) -> Iterator[tuple[str, tuple[Arrays, Arrays, Arrays]]]:
    """Gates, states and gradients (of h, then of the new states), and where they are."""
    zeros: Arrays = (np.zeros(_LANES),)
    gates, states = len(cell.gates) * zeros, len(cell.states) * zeros
    yield "everything is 0", (gates, states, zeros + states)
    ones = (1 + len(cell.states)) * (np.ones(_LANES),)
    for k, name in enumerate(cell.gates):
        for value in (_SATURATED, -_SATURATED):
            at = (*gates[:k], np.full(_LANES, value), *gates[k + 1 :])
            yield f"gate {name!r} is {value:g} and the others are 0", (at, states, ones)


def _finite(cell: Cell, where: str, dtype: str, gates: Arrays, states: Arrays, gradients: Arrays) -> None:
    h, new, saved = _forward(cell, gates, states)
    found = _gradient(cell, gates, states, gradients[0], gradients[1:])
    named: list[tuple[str, Any]] = [("h", h), *((f"state {n!r}", v) for n, v in zip(cell.states, new, strict=True))]
    named += [(f"saved value {k}", value) for k, value in enumerate(saved)]
    named += [(f"gradient of {n!r}", v) for n, v in zip((*cell.gates, *cell.states), found, strict=True)]
    for what, value in named:
        if np.asarray(value).dtype != dtype:
            raise CellError(f"cell {cell.name!r}: {what}: expected {dtype}, as given, got {np.asarray(value).dtype}")
        if not np.isfinite(value).all():
            raise CellError(
                f"cell {cell.name!r}: {what}: expected finite values where {where} ({dtype}), got "
                f"{value[~np.isfinite(value)][0]}"
            )


def _single(cell: Cell, gates: Arrays, states: Arrays) -> float:
    """How far float32 is from float64, beside the largest value or 1."""
    exact, worst = _forward(cell, gates, states), 0.0
    single = _forward(cell, tuple(v.astype("f4") for v in gates), tuple(v.astype("f4") for v in states))
    for a, b in zip((exact[0], *exact[1]), (single[0], *single[1]), strict=True):
        worst = max(worst, float(np.abs(a - b).max() / max(1.0, np.abs(a).max())))
    return worst
