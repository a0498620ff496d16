"""What one row holds, however extreme, changes no bit of another row's results, nor of its own earlier steps; and NaN
and infinities are where the reference has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import layer_checks
import numpy as np
import problems
import pytest

import gpulstm
from gpulstm_kernels import reference
from gpulstm_kernels.cpu import layer

HIDDEN = [1, 7, 8, 16, 24, 33]  # whole panels of some registers, and with lanes to spare
TEAMS = [(1, "units"), (3, "units"), (3, "batch")]
EXTREMES = {
    "float32": [1e-45, 1e-38, 1e30, 3e38, -3e38, np.inf, np.nan],
    "float64": [5e-324, 1e-308, 1e200, 1.7e308, -1.7e308, np.inf, np.nan],
}
STEP = 1  # of three, that extremes are in


def _extreme_rows(array: np.ndarray) -> Iterator[tuple[int, float]]:
    """Every other row of ``array`` (..., B, ·), and what it is to hold."""
    values = EXTREMES[array.dtype.name]
    return ((row, values[row // 2 % len(values)]) for row in range(0, array.shape[-2], 2))


def spoiled(p: problems.Problem, where: str) -> problems.Problem:
    """``p`` with extremes in some elements of every other row of one argument."""
    part, index = {"x": ("x", STEP), "dy": ("dy", STEP), "h": ("state", 0), "c": ("state", -1)}[where]
    given = getattr(p, part)
    copies = tuple(a.copy() for a in given) if isinstance(given, tuple) else given.copy()
    for row, value in _extreme_rows(copies[index]):
        copies[index][..., row, ::2] = value
    return p._replace(**{part: copies})


def _results(p: problems.Problem) -> problems.Arrays:
    with np.errstate(all="ignore"):
        return layer_checks.computed(layer, p)


def _other(value: Any) -> Any:
    """A cell or type that another one stands for but in the slow lane: rows are kept apart by walks, not by these."""
    return pytest.param(value, marks=pytest.mark.slow)


# units, and whether they are projected to half as many; the fewest are not
SIZES = [(hidden, projected) for projected in (False, True) for hidden in HIDDEN[projected:]]


def _some_slow(sizes: list[Any]) -> list[Any]:
    """``sizes`` for parametrize: but for those of one unit, of less than a register and of more than a panel, slow."""
    cases = [size if isinstance(size, tuple) else (size,) for size in sizes]
    return [pytest.param(*case, marks=() if case[0] in (1, 7, 33) else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("dtype", ["float32", _other("float64")])
@pytest.mark.parametrize("cell", ["lstm", _other("rnn")])
@pytest.mark.parametrize(("hidden", "projected"), _some_slow(SIZES))
def test_ordinary_rows_beside_extreme_ones(cell: str, dtype: str, hidden: int, projected: bool) -> None:
    sizes: dict[str, Any] = {"steps": 3, "batch": 15, "hidden": hidden, "projection": (hidden + 1) // 2 * projected}
    for directions in (1, 2):
        p = problems.layer_problem(cell, dtype, directions=directions, **sizes)
        for team in TEAMS:
            with problems.threads(*team):
                expected = _results(p)
                for where in ("x", "dy", "h", "c"):
                    found = _results(spoiled(p, where))
                    for name in ("y", "h", "c", "dx", "dh0", "dc0"):
                        if name in found:
                            rows = (..., slice(1, None, 2), slice(None))
                            what = f"{name}, extremes in {where}, {team}"
                            np.testing.assert_array_equal(found[name][rows], expected[name][rows], what)
                    if directions == 1:  # steps before an extreme input, and after an extreme gradient
                        name, steps = {"x": ("y", slice(STEP)), "dy": ("dx", slice(STEP + 1, None))}.get(
                            where, ("y", slice(0))
                        )
                        np.testing.assert_array_equal(found[name][steps], expected[name][steps], where)


# 21 rows are read by packed weights; 9, without a projection, by weights in place
@pytest.mark.parametrize("dtype", ["float32", _other("float64")])
@pytest.mark.parametrize("cell", ["lstm", _other("rnn")])
@pytest.mark.parametrize(
    ("hidden", "batch", "projected"),
    _some_slow([*((hidden, 7, projected) for hidden, projected in SIZES), (7, 3, False), (7, 3, True)]),
)
def test_not_finite_where_the_reference_is_not(cell: str, dtype: str, hidden: int, batch: int, projected: bool) -> None:
    sizes: dict[str, Any] = {"steps": 3, "batch": batch, "projection": (hidden + 1) // 2 * projected}
    p = problems.layer_problem(cell, dtype, hidden=hidden, directions=2, **sizes)
    for value in (np.inf, -np.inf, np.nan, EXTREMES[dtype][2]):
        for array in (p.x, p.dy, *p.state, *p.dstate):
            place = (STEP, 2, 0) if array is p.x or array is p.dy else (1, 2, 0)
            before, array[place] = array[place], value
            with np.errstate(all="ignore"):
                expected = layer_checks.computed(reference, p)
            for team in TEAMS:
                with problems.threads(*team):
                    found = _results(p)
                for name, right in expected.items():
                    for kind in (np.isnan, np.isposinf, np.isneginf):
                        what = f"{name}, {value} in {array.shape}, {team}"
                        np.testing.assert_array_equal(kind(found[name]), kind(right), what)
            array[place] = before


@pytest.mark.parametrize("kind", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("cell", [gpulstm.LSTM, _other(gpulstm.RNN)])
@pytest.mark.parametrize("hidden", _some_slow(HIDDEN))
def test_ordinary_rows_of_inference(cell: Any, kind: str, hidden: int) -> None:
    """A step, a walk and a stream, of float and of narrow weights."""
    rng = np.random.default_rng(0)
    made = cell(5, hidden, 2, seed=hidden)
    made = made if kind == "float32" else gpulstm.quantize(made, kind)
    for steps, batch in ((1, 3), (1, 15), (3, 15), (3, 34)):
        x = rng.standard_normal((steps, batch, 5)).astype(np.float32)
        spoiled = x.copy()
        for row, value in _extreme_rows(x):
            spoiled[STEP % steps, row, ::2] = value
        for team in TEAMS:
            with problems.threads(*team):
                (y, state), (beside, state_beside) = made(x), made(spoiled)
                streams = made.stream(batch), made.stream(batch)
                for step, other in zip(x, spoiled, strict=True):
                    one, two = (stream(given) for stream, given in zip(streams, (step, other), strict=True))
                    np.testing.assert_array_equal(two[1::2], one[1::2])
            for one, two in zip((y, *problems.parts(state)), (beside, *problems.parts(state_beside)), strict=True):
                what = f"x {x.shape}, {team}"
                np.testing.assert_array_equal(two[:, 1::2], one[:, 1::2], what)
