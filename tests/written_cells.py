"""Cells of the language that tests write, and what their gradients are compared with."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.language.cell import TracedCell, cell

AUTHOR = "author.py"
Arrays = Sequence[np.ndarray]


def function(body: str, arguments: str = "x, s", **names: Any) -> Any:
    """A function called q of these lines, as if it stood at the top of :data:`AUTHOR`: ``body`` begins in line 2."""
    names |= {name: getattr(cells, name) for name in cells.__all__} | {"np": np, "math": math}
    names["__name__"] = "author"
    exec(compile(f"def q({arguments}):\n{textwrap.indent(body, '    ')}", AUTHOR, "exec"), names)
    return names["q"]


def written(body: str, gates: str = "a b", states: str = "", arguments: str = "x, s", **names: Any) -> TracedCell:
    """A cell of these lines, which nothing else knows of."""
    return cell(gates=gates, states=states)(function(body, arguments, **names))


def forward(cell: Cell, gates: Arrays, states: Arrays, given: Arrays = ()) -> tuple[np.ndarray, ...]:
    """h and the new states, of float64 arrays."""
    with np.errstate(all="ignore"):
        h, new, _ = cell.module.forward(tuple(gates), tuple(states), *[tuple(given)] * bool(given))
    return (h, *new)


def backward(cell: Cell, gates: Arrays, states: Arrays, upstream: Arrays, given: Arrays = ()) -> tuple[np.ndarray, ...]:
    """The gradients of gates, states and what has one of ``given``, for those of h and the new states."""
    more = [tuple(given)] * bool(given)
    with np.errstate(all="ignore"):
        h, new, saved = cell.module.forward(tuple(gates), tuple(states), *more)
        found = cell.module.backward(upstream[0], tuple(upstream[1:]), h, saved, new, tuple(states), *more)
    return tuple(itertools.chain(*found))


def differences(
    cell: Cell, gates: Arrays, states: Arrays, upstream: Arrays, step: float = 1e-6, given: Arrays = ()
) -> tuple[np.ndarray, ...]:
    """What :func:`backward` should give, by central differences of :func:`forward`, which works element by element."""
    values, first = [*gates, *states, *given], len(gates) + len(states)

    def loss(k: int, by: float) -> np.ndarray:
        moved = [value + by if j == k else value for j, value in enumerate(values)]
        results = forward(cell, moved[: len(gates)], moved[len(gates) : first], moved[first:])
        return np.asarray(sum(value * d for value, d in zip(results, upstream, strict=True)))

    return tuple((loss(k, step) - loss(k, -step)) / (2 * step) for k in range(len(values)))


def drawn(rng: np.random.Generator, count: int, lanes: int = 64) -> tuple[np.ndarray, ...]:
    return tuple(rng.standard_normal(lanes) for _ in range(count))


def shown(cell: Cell) -> str:
    """What :func:`gpulstm.cells.show` prints."""
    with redirect_stdout(StringIO()) as text:
        cells.show(cell)
    return text.getvalue()
