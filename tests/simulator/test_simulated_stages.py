"""The Numba CUDA kernels of the step walk of cells with stages, in the simulator, against the reference."""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest
import stage_corners

pytestmark = pytest.mark.simulator

ODD = {"steps": 3, "batch": 3, "inputs": 2, "hidden": 3, "directions": 2, "ragged": True, "resets": True}
EVEN = {"steps": 2, "batch": 2, "inputs": 2, "hidden": 4, "bias": False, "scalar_inputs": True}
WIDE = {"steps": 1, "batch": 1, "inputs": 2, "hidden": 67}


def named(sizes: dict[str, Any]) -> str:
    """How a test of a call of these sizes is called."""
    heads = sizes.get("heads", 1)
    return {3: "odd", 4: "even", 67: "wide"}[sizes["hidden"]] + (f" {heads} heads" if heads > 1 else "")


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes"),
    [
        ("gru_reset_before", "float32", ODD),
        ("gru_reset_before", "float16", EVEN),
        ("multiplicative_lstm", "float64", ODD),
        ("layer_norm_lstm", "float32", ODD),
        ("layer_norm_lstm_by_gate", "float32", EVEN),
        ("layer_norm_gru", "bfloat16", ODD),
        ("layer_norm_gru", "float64", WIDE),
        (device_cells.staged, "float32", ODD),
        (device_cells.staged, "float64", EVEN | {"resets": True}),
        *((cell, "float64", ODD) for cell in stage_corners.FEW),
        ("gru_reset_before", "float32", ODD | {"heads": 3}),
        ("multiplicative_lstm", "float16", EVEN | {"heads": 2}),
        ("layer_norm_lstm", "bfloat16", EVEN | {"heads": 4}),
        (device_cells.staged, "float64", ODD | {"heads": 3}),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else getattr(value, "name", value),
)
def test_equals_the_reference(
    runtime: Any, cell: Any, dtype: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", "step")
    p = problems.layer_problem(cell, dtype, **sizes)
    if p.lengths is not None:
        p.lengths[int(np.argmin(p.lengths))] = 0
        p.resets[...] &= np.arange(len(p.resets))[:, None] < p.lengths
    assert layer.why_not(p.shape()) is None
    layer_checks.check(layer, p, "cuda", p.cell.name)


def test_the_block_walk_has_no_twin_for_stages(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    cell = problems.layer_shape("gru_reset_before").cell
    monkeypatch.setenv("GPULSTM_WALK", "block")
    assert runtime.walks == ("step", "block")
    assert runtime.walks_of(cell) == ("step",)
    p = problems.layer_problem(cell, "float32")
    with pytest.raises(ValueError, match="walk: unknown walk 'block'; known walks: step"):
        layer_checks.computed(layer, p)
