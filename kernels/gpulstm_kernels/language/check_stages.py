"""Is the gradient of a cell right whose units see each other? Tried on rows of units, along random directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..cells import Cell
from .graph import CellError
from .operators import on_rows

_ROWS, _UNITS = 5, 7
_EPSILON = 1e-6
_ALLOWED = 1e-6  # error of a derivative along a direction, beside the sum of what makes it up
_SATURATED = 30.0

Point = dict[tuple[str, str], np.ndarray]
"""By kind and name: gates, states, h, parameters, inputs (rows, units), and weights (units, units)."""


def check_stages(cell: Any) -> str:
    """As :func:`gpulstm_kernels.language.check.check`, of a traced cell with products or means over the units."""
    rng = np.random.default_rng(0)
    point = _drawn(cell, rng)
    for what, at in _extremes(cell, point):
        for dtype in ("float32", "float64"):
            _finite(cell, what, {key: value.astype(dtype) for key, value in at.items()})
    upstream = [rng.standard_normal((_ROWS, _UNITS)) for _ in range(1 + len(cell.states))]
    gradients, worst = _gradients(cell, point, upstream), 0.0
    for key, gradient in gradients.items():
        direction = rng.standard_normal(point[key].shape)
        expected = _along(cell, point, key, direction, upstream)
        found = (gradient * direction).sum()
        error = abs(expected - found) / max(1.0, float(np.abs(gradient * direction).sum()))
        if not error <= _ALLOWED:
            raise CellError(
                f"cell {cell.name!r}: gradient of {key[0]} {key[1]!r}: expected {expected:.9g} along a random "
                f"direction, as finite differences give, got {found:.9g}"
            )
        worst = max(worst, error)
    return (
        f"cell {cell.name!r}: gradients of {', '.join(name for _, name in gradients)} are within {worst:.1g} of finite "
        f"differences; finite at 0 and where a gate is ±{_SATURATED:.0f}"
    )


def _drawn(cell: Cell, rng: np.random.Generator) -> Point:
    kinds = {"gate": cell.preactivations, "state": cell.states + ("h",) * cell.reads_h}
    kinds |= {"parameter": cell.params, "input": cell.inputs}
    point = {(kind, name): rng.standard_normal((_ROWS, _UNITS)) for kind, names in kinds.items() for name in names}
    for name in cell.inputs:
        point["input", name] = rng.uniform(size=(_ROWS, _UNITS))
    return point | {("weight", name): rng.standard_normal((_UNITS, _UNITS)) / _UNITS for name in cell.weights}


def _values(cell: Cell, at: Point) -> tuple[Any, ...]:
    """The operators, and the arguments of the cell's ``evaluate``."""
    given = [at[key] for key in (("state", "h"),) if cell.reads_h]
    given += [at["parameter", name] for name in cell.params] + [at["input", name] for name in cell.inputs]
    gates, states = (
        [at[kind, n] for n in names] for kind, names in (("gate", cell.preactivations), ("state", cell.states))
    )
    return on_rows({name: at["weight", name] for name in cell.weights}), gates, states, given


def _loss(cell: Any, at: Point, upstream: list[np.ndarray]) -> float:
    operators, *values = _values(cell, at)
    return float(sum((a * b).sum() for a, b in zip(cell.evaluate(operators, *values), upstream, strict=True)))


def _along(cell: Any, at: Point, key: tuple[str, str], direction: np.ndarray, upstream: list[np.ndarray]) -> float:
    above, below = (_loss(cell, at | {key: at[key] + e * direction}, upstream) for e in (_EPSILON, -_EPSILON))
    return (above - below) / (2 * _EPSILON)


def _gradients(cell: Any, at: Point, upstream: list[np.ndarray]) -> Point:
    operators, gates, states, given = _values(cell, at)
    with np.errstate(all="ignore"):
        found = iter(cell.gradient(operators, gates, states, upstream[0], upstream[1:], given))
    keys = [("gate", name) for name in cell.preactivations] + [("state", name) for name in cell.states]
    keys += [("state", "h")] * cell.reads_h + [("parameter", name) for name in cell.params]
    keys += [("input", name) for name in cell.differentiable]
    like = upstream[0]
    gradients = {key: np.broadcast_to(np.asarray(next(found), like.dtype), like.shape) for key in keys}
    rest = [np.broadcast_to(value, like.shape) for value in found]
    products = cell.derivation.products
    for name in cell.weights:
        gradients["weight", name] = np.zeros_like(at["weight", name])
    for k, value in enumerate(products):
        gradients["weight", value.detail] += rest[k].T @ rest[k + len(products)]
    return gradients


def _extremes(cell: Cell, point: Point) -> Iterator[tuple[str, Point]]:
    """Where a cell must be finite."""
    zero = {key: np.zeros_like(value) for key, value in point.items()}
    yield "everything is 0", zero
    for name in cell.preactivations:
        for value in (_SATURATED, -_SATURATED):
            yield (
                f"gate {name!r} is {value:g} and the others are 0",
                zero | {("gate", name): zero["gate", name] + value},
            )


def _finite(cell: Any, where: str, at: Point) -> None:
    operators, *values = _values(cell, at)
    like = next(iter(at.values()))
    with np.errstate(all="ignore"):
        results = cell.evaluate(operators, *values)
    ones = [np.ones((_ROWS, _UNITS), like.dtype) for _ in results]
    named = dict(zip(("h", *(f"state {name!r}" for name in cell.states)), results, strict=True))
    named |= {f"gradient of {name!r}": value for (_, name), value in _gradients(cell, at, ones).items()}
    for what, value in named.items():
        if value.dtype != like.dtype:
            raise CellError(f"cell {cell.name!r}: {what}: expected {like.dtype}, as given, got {value.dtype}")
        if not np.isfinite(value).all():
            raise CellError(
                f"cell {cell.name!r}: {what}: expected finite values where {where} ({like.dtype}), got "
                f"{value[~np.isfinite(value)][0]}"
            )
