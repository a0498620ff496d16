"""On a device too: what one row holds changes no bit of another's results, and NaN is where the reference has it."""

from __future__ import annotations

from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
from test_isolation import spoiled

from gpulstm_kernels.cuda import layer

CELLS = ["lstm", "rnn"]


def _results(runtime: Any, p: problems.Problem) -> problems.Arrays:
    return layer_checks.computed(layer_checks.OnDevice(layer, runtime, runtime=runtime), p)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("walk", ["step", "block", "grid"])
def test_ordinary_rows_beside_extreme_ones(runtime: Any, walk: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 units, which fill no tile, and 9 sequences, which fill one and begin another."""
    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = problems.layer_problem(cell, "float32", steps=3, batch=9, hidden=7, directions=2)
    expected = _results(runtime, p)
    for where in ("x", "dy", "h", "c"):
        found = _results(runtime, spoiled(p, where))
        for name in {"y", "h", "c", "dx", "dh0", "dc0"} & found.keys():
            np.testing.assert_array_equal(found[name][:, 1::2], expected[name][:, 1::2], f"{name}, extremes in {where}")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("walk", ["step", "block", "grid"])
def test_not_finite_where_the_reference_is_not(
    runtime: Any, walk: str, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = problems.layer_problem(cell, "float32", steps=3, batch=9, hidden=7, directions=2)
    for value in (np.inf, np.nan):
        for array in (p.x, p.dy, *p.state, *p.dstate):
            before, array[1, 2, 0] = array[1, 2, 0], value
            with np.errstate(all="ignore"):
                expected = layer_checks.solved(p)
            found = _results(runtime, p)
            for name, right in expected.items():
                np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(right), f"{name}, {value}")
                np.testing.assert_array_equal(np.isinf(found[name]), np.isinf(right), f"{name}, {value}")
            array[1, 2, 0] = before
