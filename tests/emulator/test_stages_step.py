"""Cells whose step products and means cut into stages, by the step walk on the emulator, against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest
import stage_corners
from tape_checks import check_tape

from gpulstm_kernels.cpu.packing import layouts
from gpulstm_kernels.cuda import layer, select
from gpulstm_kernels.cuda.walks import WALKS

from .cases import CASES, Case, problem
from .runtime import EmulatedRuntime

pytestmark = pytest.mark.emulator

SHIPPED = ["gru_reset_before", "layer_norm_gru", "layer_norm_lstm", "layer_norm_lstm_by_gate", "multiplicative_lstm"]
FEW = ["odd", "one unit", "half"]


@pytest.fixture(autouse=True)
def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")


def on_device(p: Any, runtime: EmulatedRuntime) -> Any:
    """The problem with its arrays on the device."""
    return p._replace(
        x=runtime.to_device(p.x),
        state=tuple(map(runtime.to_device, p.state)),
        weights=[{name: runtime.to_device(value) for name, value in w.items()} for w in p.weights],
        inputs=None if p.inputs is None else runtime.to_device(p.inputs),
        resets=None if p.resets is None else runtime.to_device(p.resets.view(np.uint8)),
        dy=runtime.to_device(p.dy),
        dstate=tuple(map(runtime.to_device, p.dstate)),
    )


@pytest.mark.parametrize(
    ("cell", "case"),
    [
        *itertools.product(["gru_reset_before", device_cells.staged], CASES),
        *itertools.product(SHIPPED[1:], FEW),
        *itertools.product(stage_corners.CORNERS, ["odd"]),
        (stage_corners.many_means, "one unit"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_equals_the_reference(cell: Any, case: str) -> None:
    runtime, p = EmulatedRuntime(), problem(cell, CASES[case])
    assert layer.why_not(p.shape()) is None
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, "cuda", case)


@pytest.mark.parametrize(
    "cell", ["layer_norm_lstm", device_cells.staged], ids=lambda value: getattr(value, "name", value)
)
@pytest.mark.parametrize(
    "case", [Case(270, steps=2, batch=2), Case(40, "bfloat16", bias=False)], ids=["wide", "narrow"]
)
def test_rows_of_many_units(cell: Any, case: Case) -> None:
    """Of more than a block has threads; of several warps, in bfloat16."""
    runtime = EmulatedRuntime()
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), problem(cell, case), "cuda", "many")


HEADS: dict[str, tuple[Case, int]] = {
    "odd": (Case(15), 5),
    "even": (Case(8, steps=4, batch=5, scalar_inputs=True), 2),
    "one unit each": (Case(6), 6),
    "one step": (Case(12, steps=1, bias=False, resets=False), 3),
    "double": (Case(12, "float64", bias=False, scalar_inputs=True), 4),
    "half": (Case(8, "float16", directions=1), 2),
    "narrow": (Case(6, "bfloat16"), 3),
    "plain": (Case(8, resets=False, ragged=False, scalar_inputs=True), 4),
    "wide": (Case(270, steps=2, batch=2), 3),
}


@pytest.mark.parametrize(
    ("cell", "case"),
    [
        *itertools.product(["gru_reset_before", device_cells.staged], HEADS),
        *itertools.product(SHIPPED[1:], ["odd", "half"]),
        *itertools.product([c for c in stage_corners.CORNERS if c.gates_of_h], ["odd"]),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_heads_equal_the_reference(cell: Any, case: str) -> None:
    """Heads divide weight_hh alone; the cell's own weights and its means are of all units."""
    (sizes, heads), runtime = HEADS[case], EmulatedRuntime(seed=1)
    p = problem(cell, sizes, heads=heads)
    assert p.shape().heads == heads
    assert layer.why_not(p.shape()) is None
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, "cuda", case)


@pytest.mark.parametrize("cell", ["gru_reset_before", device_cells.staged], ids=lambda value: str(value)[:16])
def test_heads_equal_a_matrix_with_zeros_beside_its_blocks(cell: Any) -> None:
    runtime = EmulatedRuntime()
    backend = layer_checks.OnDevice(layer, runtime, runtime=runtime)
    p = problem(cell, HEADS["odd"][0], heads=5)
    whole = p._replace(weights=[w | {"weight_hh": layouts.whole(w["weight_hh"])} for w in p.weights])
    expected = layer_checks.computed(backend, whole)
    for name, value in layer_checks.computed(backend, p).items():
        right = layouts.blocks_of(expected[name], 5) if "weight_hh" in name else expected[name]
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("cell", ["gru_reset_before", "layer_norm_gru", "multiplicative_lstm"])
def test_a_tape_travels_as_arrays(cell: str, heads: int) -> None:
    runtime = EmulatedRuntime()
    check_tape(layer, on_device(problem(cell, Case(6), heads=heads), runtime), runtime=runtime)


@pytest.mark.parametrize("heads", [1, 3])
def test_bits_do_not_depend_on_the_order_of_threads_nor_on_graphs(heads: int) -> None:
    """A third call of the same arrays is a graph's replay."""
    p, found = problem(device_cells.staged, Case(6), heads=heads), []
    for seed in (0, 1, 2):
        runtime = EmulatedRuntime(seed=seed)
        there = on_device(p, runtime)
        for _ in range(3):
            y, _, tape = layer.layer_forward(there.shape(training=True), *there.arguments, runtime=runtime)
            found.append(runtime.to_host(y))
            grads = layer.layer_backward(tape, there.dy, there.dstate)[2]
            found.append(np.stack([runtime.to_host(grad["weight_v"]) for grad in grads]))
    for value, expected in zip(found[2:], found, strict=False):
        np.testing.assert_array_equal(value, expected)


def test_the_grid_walk_refuses_stages_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, shape = EmulatedRuntime(), problems.layer_shape("layer_norm_lstm", hidden=512)
    reason = "it has no stages within a step, which the cell's products and means cut"
    assert WALKS["grid"].why_not(runtime.device(), shape, False) == reason
    with pytest.raises(ValueError, match="walk: 'grid' cannot walk this: it has no stages within a step"):
        select.choose(runtime.device(), shape, False, runtime.walks, "grid")
    monkeypatch.delenv("GPULSTM_WALK")
    assert f"grid: {reason}" in layer.describe(shape, runtime)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"projected": True}, "its walk of cells with stages has no projection"),
        ({"projected": True, "heads": 2}, "its walk of cells with stages has no projection"),
    ],
)
def test_what_stages_do_not_go_with(change: dict[str, Any], reason: str) -> None:
    assert reason in (layer.why_not(problems.layer_shape("gru_reset_before")._replace(**change)) or "")
