"""The Numba CUDA kernels in the simulator, with all that a cell may have beside gates and states: the reference."""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import problems
import pytest

from gpulstm_kernels.cells import Cell

pytestmark = pytest.mark.simulator

ODD = {"steps": 3, "batch": 3, "inputs": 2, "hidden": 3, "directions": 2, "ragged": True, "resets": True}
EVEN = {"steps": 2, "batch": 2, "inputs": 2, "hidden": 4, "bias": False, "scalar_inputs": True}
NINE = EVEN | {"batch": 9, "hidden": 2}  # more rows than a block walks

CASES = {
    "step": [
        ("gru", "float32", ODD),
        ("gru", "float16", EVEN),
        ("peephole", "float64", ODD),
        ("time_gap", "float32", ODD),
        ("time_gap", "float64", EVEN | {"resets": True}),
        ("zoneout", "float32", ODD),
        ("indrnn", "float32", ODD),
        ("mingru", "float64", EVEN),
        ("slstm", "float32", ODD),
        (device_cells.all_parts, "float32", ODD),
        (device_cells.all_parts, "float16", EVEN),
        (device_cells.scanned, "float32", ODD),
        (device_cells.scanned, "float64", EVEN),
        ("lstm", "bfloat16", ODD),
        ("gru", "float32", ODD | {"gates_given": True}),
        ("slstm", "float16", EVEN | {"gates_given": True}),
    ],
    "block": [
        ("gru", "float32", ODD),
        ("gru", "float16", NINE),
        ("peephole", "float32", ODD),
        ("time_gap", "float32", ODD),
        ("time_gap", "float32", NINE | {"resets": True}),
        ("zoneout", "bfloat16", ODD),
        ("slstm", "float32", ODD),
        ("lstm", "float32", ODD),
        (device_cells.all_parts, "float32", ODD),
    ],
}


def named(value: Any) -> str:
    """How a test is called that takes ``value``."""
    if isinstance(value, dict):
        return "given" if "gates_given" in value else "odd" if value is ODD else "even"
    return getattr(value, "name", value)


@pytest.mark.parametrize(
    ("walk", "cell", "dtype", "sizes"),
    [(walk, *case) for walk, of_walk in CASES.items() for case in of_walk],
    ids=named,
)
def test_equals_the_reference(
    runtime: Any, walk: str, cell: str | Cell, dtype: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = device_cells.started(problems.with_an_empty_sequence(problems.layer_problem(cell, dtype, **sizes)))
    assert f"inference: {walk} walk" in layer.describe(p.shape())
    layer_checks.check(layer, p, "cuda", p.cell.name)


def test_projected_sequences_begin_anew(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", "step")
    layer_checks.check(layer, problems.layer_problem("lstm", "float32", projection=2, **ODD), "cuda", "projected")
