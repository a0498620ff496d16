"""The persistent walks on the emulator, with all that a cell may have beside gates and states: the reference."""

from __future__ import annotations

import itertools
from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest
from problems import Problem

from gpulstm_kernels.cuda import select
from gpulstm_kernels.cuda.device import precision
from gpulstm_kernels.cuda.walks import block_host, grid_host

from . import cases
from .cases import Case
from .runtime import H200

pytestmark = pytest.mark.emulator

WALKS = {"block": block_host, "grid": grid_host}
FEW = ["gru", "time_gap", device_cells.all_parts]
MORE = ["peephole", "zoneout", "slstm", "recurrent_dropout", "lstm"]

CASES = {
    "odd": Case(5),
    "even": Case(24, steps=4, batch=9, scalar_inputs=True),
    "one unit": Case(1, batch=1, directions=1, ragged=False),
    "one step": Case(17, steps=1, bias=False, resets=False),
    "half": Case(40, "float16", directions=1, scalar_inputs=True),
    "narrow": Case(9, "bfloat16", bias=False),
    "plain": Case(33, resets=False, ragged=False, scalar_inputs=True),
}


def problem(cell: Any, case: Case, **options: Any) -> Problem:
    """One in which the longest sequence begins anew on its way."""
    p = cases.problem(cell, case, **options)
    if p.lengths is not None and p.resets is not None:
        p.resets[case.steps // 2, int(np.argmax(p.lengths))] = True
    return p


def named(value: Any) -> Any:
    """How a test is called that takes ``value``."""
    return getattr(value, "name", value if isinstance(value, str) else None)


def check(p: Problem, label: str, what: str = "cuda") -> None:
    layer_checks.check(cases.on_emulator(), p, what, label)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    ("cell", "case"),
    [*itertools.product(FEW, CASES), *itertools.product(MORE, ["odd", "even", "half"])],
    ids=named,
)
def test_equals_the_reference(walk: str, cell: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    check(problem(cell, CASES[case]), case)


@pytest.mark.parametrize("case", ["odd", "half", "narrow"])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cell", FEW, ids=named)
def test_pre_activations_that_are_given(walk: str, cell: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    check(problem(cell, CASES[case], gates_given=True), case)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cell", FEW, ids=named)
def test_products_in_tf32(walk: str, cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    monkeypatch.setattr(precision, "_allowed", True)
    check(problem(cell, CASES["even"]), "even", "cuda tf32")


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cell", ["lstm", *FEW], ids=named)
def test_pieces_that_begin_within_a_call_are_those_by_themselves(
    walk: str, cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    cases.check_pieces(cell)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("backward", [False, True])
def test_a_cell_without_a_recurrent_product_is_for_the_step_walk(walk: str, backward: bool) -> None:
    shape = problems.layer_shape("mingru", steps=100, batch=16, hidden=64)
    reason = "it is for products with weight_hh, and the cell has none"
    assert WALKS[walk].why_not(H200, shape, backward) == reason
    choice = select.choose(H200, shape, backward, ("step", *WALKS))
    assert choice.walk == "step"
    assert f"{walk}: {reason}" in choice.reason


@pytest.mark.parametrize(
    ("walk", "dtype", "backward", "most"),
    [
        ("block", "float32", False, 80),
        ("block", "float32", True, 80),
        ("block", "float16", False, 128),
        ("block", "float16", True, 128),
        ("grid", "float32", False, 896),
        ("grid", "float32", True, 1024),
        ("grid", "float16", False, 1056),  # eight units for each multiprocessor
        ("grid", "float16", True, 1024),
    ],
)
def test_a_cell_that_needs_more_registers_walks_so_up_to_smaller_sizes(
    walk: str, dtype: str, backward: bool, most: int
) -> None:
    def largest(cell: Any) -> int:
        shapes = (problems.layer_shape(cell, dtype, steps=100, hidden=hidden) for hidden in range(8, 1057, 8))
        return max(shape.hidden for shape in shapes if WALKS[walk].why_not(H200, shape, backward) is None)

    assert largest("lstm") == largest("rnn") == largest("gru") == most
    smaller = largest(device_cells.nine_gates)
    assert smaller < most
    reason = WALKS[walk].why_not(H200, problems.layer_shape(device_cells.nine_gates, dtype, hidden=most), backward)
    assert reason is not None
    assert "registers" in reason
