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

from gpulstm_kernels.cuda import layer, select
from gpulstm_kernels.cuda.device import precision
from gpulstm_kernels.cuda.walks import block_host, grid_host

from .cases import Case
from .runtime import H200, EmulatedRuntime

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


def problem(cell: Any, case: Case) -> Problem:
    """A sequence without a step is among those of different lengths."""
    p = problems.layer_problem(cell, inputs=3, **case._asdict())
    if case.ragged and case.batch > 1:
        p.lengths[int(np.argmin(p.lengths))] = 0
        if p.resets is not None:
            p.resets[...] &= np.arange(case.steps)[:, None] < p.lengths
            p.resets[case.steps // 2, int(np.argmax(p.lengths))] = True
    if p.cell.name == "slstm":
        h, c, n, m = p.state
        p = p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
    return p


def named(value: Any) -> Any:
    """How a test is called that takes ``value``."""
    return getattr(value, "name", value if isinstance(value, str) else None)


def check(p: Problem, label: str, what: str = "cuda") -> None:
    runtime = EmulatedRuntime()
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, what, label)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    ("cell", "case"),
    [*itertools.product(FEW, CASES), *itertools.product(MORE, ["odd", "even", "half"])],
    ids=named,
)
def test_equals_the_reference(walk: str, cell: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    check(problem(cell, CASES[case]), case)


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
    """Bit for bit, and whatever was before them: the steps of the first piece end in NaN."""
    monkeypatch.setenv("GPULSTM_WALK", walk)
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
