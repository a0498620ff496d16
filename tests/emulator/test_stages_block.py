"""Cells whose step products and means cut into stages, by the block walk on the emulator, against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest
import stage_corners

from gpulstm_kernels.cuda import layer, select
from gpulstm_kernels.cuda.device import precision
from gpulstm_kernels.cuda.walks import block_host

from .cases import Case, check_pieces, on_emulator, problem
from .runtime import H200, EmulatedRuntime

pytestmark = pytest.mark.emulator

OTHERS = ["layer_norm_gru", "layer_norm_lstm", "layer_norm_lstm_by_gate", "multiplicative_lstm"]
REFUSED = {stage_corners.no_recurrent_product: "the cell has none", stage_corners.many_means: "registers a thread"}
FEW = ["odd", "one unit", "half"]
CASES = {
    "odd": Case(5),
    "even": Case(24, steps=4, batch=9, scalar_inputs=True),
    "one unit": Case(1, batch=1, directions=1, ragged=False),
    "one step": Case(17, steps=1, bias=False, resets=False),
    "half": Case(40, "float16", directions=1, scalar_inputs=True),
    "narrow": Case(9, "bfloat16", bias=False),
    "plain": Case(33, resets=False, ragged=False, scalar_inputs=True),
}


def named(value: Any) -> Any:
    """How a test is called that takes ``value``."""
    return getattr(value, "name", value)


@pytest.fixture(autouse=True)
def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "block")


def check(cell: Any, case: str, what: str = "cuda") -> None:
    layer_checks.check(on_emulator(), problem(cell, CASES[case]), what, case)


@pytest.mark.parametrize(
    ("cell", "case"),
    [
        *itertools.product(["gru_reset_before", device_cells.staged], CASES),
        *itertools.product(OTHERS, FEW),
        *((cell, "odd") for cell in stage_corners.CORNERS if cell not in REFUSED),
    ],
    ids=named,
)
def test_equals_the_reference(cell: Any, case: str) -> None:
    check(cell, case)


@pytest.mark.parametrize(
    "cell", ["gru_reset_before", device_cells.staged], ids=lambda value: getattr(value, "name", value)
)
def test_products_in_tf32(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_allowed", True)
    check(cell, "even", "cuda tf32")


@pytest.mark.parametrize(
    "cell", ["layer_norm_gru", device_cells.staged], ids=lambda value: getattr(value, "name", value)
)
def test_pieces_that_begin_within_a_call_are_those_by_themselves(cell: Any) -> None:
    check_pieces(cell)


def test_bits_do_not_depend_on_the_order_of_threads() -> None:
    p, first = problem(device_cells.staged, CASES["even"]), None
    for seed in (0, 1, 2):
        runtime = EmulatedRuntime(seed=seed)
        found = layer_checks.computed(layer_checks.OnDevice(layer, runtime, runtime=runtime), p)
        first = first or found
        for name, value in found.items():
            np.testing.assert_array_equal(value, first[name], name)


@pytest.mark.parametrize("cell", REFUSED, ids=named)
def test_what_it_does_not_hold_is_refused_by_name(cell: Any) -> None:
    reason = block_host.why_not(H200, problems.layer_shape(cell, hidden=64), True)
    assert reason is not None
    assert REFUSED[cell] in reason


@pytest.mark.parametrize("forward", ["step", "block"])
def test_either_pass_by_either_walk(forward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both leave what the other one's backward reads."""
    p, runtime, choose = problem(device_cells.staged, CASES["odd"]), EmulatedRuntime(), select.choose
    back = "block" if forward == "step" else "step"

    def chosen(device: Any, shape: Any, backward: bool, walks: tuple[str, ...]) -> Any:
        return choose(device, shape, backward, walks, back if backward else forward)

    monkeypatch.setattr(select, "choose", chosen)
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, "cuda", forward)


@pytest.mark.parametrize(
    ("cell", "dtype", "backward", "most"),
    [
        ("gru_reset_before", "float32", False, 112),
        ("gru_reset_before", "float32", True, 128),
        ("multiplicative_lstm", "float16", False, 128),
        ("layer_norm_lstm", "float32", False, 96),
        ("layer_norm_lstm", "float32", True, 64),
        ("layer_norm_lstm", "float16", False, 160),
    ],
)
def test_it_walks_up_to_where_memory_and_registers_end(cell: str, dtype: str, backward: bool, most: int) -> None:
    shapes = (problems.layer_shape(cell, dtype, steps=100, hidden=hidden) for hidden in range(8, 400, 8))
    reasons = {shape.hidden: block_host.why_not(H200, shape, backward) for shape in shapes}
    assert max(hidden for hidden, reason in reasons.items() if reason is None) == most
    assert any(part in (reasons[most + 8] or "") for part in ("shared memory in a block", "registers a thread"))


def test_small_layers_are_walked_so_and_large_ones_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPULSTM_WALK")
    for hidden, walk in ((32, "block"), (512, "step")):
        shape = problems.layer_shape("layer_norm_lstm", steps=100, hidden=hidden)
        for backward in (False, True):
            assert select.choose(H200, shape, backward, ("step", "block", "grid")).walk == walk
