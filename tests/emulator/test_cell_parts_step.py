"""The step walk on the emulator, with all that a cell may have beside gates and states, against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest
from problems import Problem

from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda import layer

from .cases import Case
from .runtime import EmulatedRuntime

pytestmark = pytest.mark.emulator

FEW = ["gru", "time_gap", "indrnn"]
OWN = [device_cells.all_parts, device_cells.scanned]
MORE = ["peephole", "zoneout", "mingru", "minlstm", "slstm", "recurrent_dropout", "lstm"]

CASES = {
    "odd": Case(5),
    "even": Case(8, steps=4, batch=5, scalar_inputs=True),
    "one unit": Case(1, batch=1, directions=1, ragged=False),
    "long": Case(3, steps=19, batch=2),
    "one step": Case(4, steps=1, bias=False, resets=False),
    "double": Case(8, "float64", bias=False, scalar_inputs=True),
    "half": Case(4, "float16", directions=1),
    "plain": Case(4, resets=False, ragged=False, scalar_inputs=True),
}


def problem(cell: Any, case: Case) -> Problem:
    """A sequence without a step is among those of different lengths."""
    p = problems.layer_problem(cell, inputs=3, **case._asdict())
    if case.ragged and case.batch > 1:
        p.lengths[int(np.argmin(p.lengths))] = 0
        if p.resets is not None:
            p.resets[...] &= np.arange(case.steps)[:, None] < p.lengths
    if p.cell.name == "slstm":
        h, c, n, m = p.state
        p = p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
    return p


@pytest.fixture(autouse=True)
def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")


@pytest.mark.parametrize(
    ("cell", "case"), [*itertools.product(FEW, CASES), *itertools.product(MORE, ["odd", "even", "double"])]
)
def test_equals_the_reference(cell: str, case: str) -> None:
    runtime = EmulatedRuntime()
    p = problem(cell, CASES[case])
    assert layer.why_not(p.shape()) is None
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, "cuda", case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cell", OWN, ids=lambda cell: cell.name)
def test_all_parts_together_equal_the_reference(cell: Cell, case: str) -> None:
    runtime = EmulatedRuntime()
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), problem(cell, CASES[case]), "cuda", case)


@pytest.mark.parametrize("projection", [3, 4])
def test_projected_sequences_begin_anew(projection: int) -> None:
    runtime = EmulatedRuntime()
    p = problems.layer_problem("lstm", "float32", hidden=8, projection=projection, directions=2, resets=True)
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, "cuda", "projected")


@pytest.mark.parametrize("cell", ["lstm", "gru", "time_gap", "indrnn", "minlstm"])
def test_pieces_that_begin_within_a_call_are_those_by_themselves(cell: str) -> None:
    """Bit for bit, and whatever was before them: the steps of the first piece end in NaN."""
    runtime = EmulatedRuntime()
    backend = layer_checks.OnDevice(layer, runtime, runtime=runtime)
    p = problems.layer_problem(cell, "float32", steps=6, batch=2, hidden=8)
    border, x = 2, p.x.copy()
    x[:border] = np.nan
    resets = np.zeros((6, 2), bool)
    resets[border] = True
    whole = layer_checks.computed(backend, p._replace(x=x, resets=resets))
    inputs = None if p.inputs is None else p.inputs[:, border:].copy()
    zeros = tuple(np.zeros_like(part) for part in p.state)
    piece = p._replace(x=x[border:].copy(), dy=p.dy[border:].copy(), inputs=inputs, state=zeros)
    alone = layer_checks.computed(backend, piece)
    for name, value in alone.items():
        if name in ("y", "dx") or name.startswith("dinputs"):
            np.testing.assert_array_equal(whole[name][border:], value, name)
        elif not name.startswith("d"):
            np.testing.assert_array_equal(whole[name], value, name)
    assert np.isnan(whole["y"][:border]).all()
