"""The step walk on the emulator, with all that a cell may have beside gates and states, against the reference."""

from __future__ import annotations

import itertools

import device_cells
import layer_checks
import problems
import pytest

from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda import layer

from . import cases
from .cases import CASES

pytestmark = pytest.mark.emulator

FEW = ["gru", "time_gap", "indrnn"]
OWN = [device_cells.all_parts, device_cells.scanned]
MORE = ["peephole", "zoneout", "mingru", "minlstm", "slstm", "recurrent_dropout", "lstm"]


@pytest.fixture(autouse=True)
def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")


@pytest.mark.parametrize(
    ("cell", "case"), [*itertools.product(FEW, CASES), *itertools.product(MORE, ["odd", "even", "double"])]
)
def test_equals_the_reference(cell: str, case: str) -> None:
    p = cases.problem(cell, CASES[case])
    assert layer.why_not(p.shape()) is None
    layer_checks.check(cases.on_emulator(), p, "cuda", case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cell", OWN, ids=lambda cell: cell.name)
def test_all_parts_together_equal_the_reference(cell: Cell, case: str) -> None:
    layer_checks.check(cases.on_emulator(), cases.problem(cell, CASES[case]), "cuda", case)


@pytest.mark.parametrize("case", ["odd", "one step", "double", "half"])
@pytest.mark.parametrize("cell", ["gru", "mingru", device_cells.all_parts], ids=lambda c: getattr(c, "name", c))
def test_pre_activations_that_are_given(cell: str | Cell, case: str) -> None:
    layer_checks.check(cases.on_emulator(), cases.problem(cell, CASES[case], gates_given=True), "cuda", case)


@pytest.mark.parametrize("projection", [3, 4])
def test_projected_sequences_begin_anew(projection: int) -> None:
    p = problems.layer_problem("lstm", "float32", hidden=8, projection=projection, directions=2, resets=True)
    layer_checks.check(cases.on_emulator(), p, "cuda", "projected")


@pytest.mark.parametrize("cell", ["lstm", "gru", "time_gap", "indrnn", "minlstm"])
def test_pieces_that_begin_within_a_call_are_those_by_themselves(cell: str) -> None:
    cases.check_pieces(cell)
