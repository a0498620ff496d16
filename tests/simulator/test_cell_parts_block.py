"""The Numba CUDA kernels of the block walk, in the simulator, with all that a cell may have beside gates and states."""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest

pytestmark = pytest.mark.simulator

ODD = {"steps": 3, "batch": 3, "inputs": 2, "hidden": 3, "directions": 2, "ragged": True, "resets": True}
EVEN = {"steps": 2, "batch": 9, "inputs": 2, "hidden": 2, "bias": False, "scalar_inputs": True}


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes"),
    [
        ("gru", "float32", ODD),
        ("gru", "float16", EVEN),
        ("peephole", "float32", ODD),
        ("time_gap", "float32", ODD),
        ("time_gap", "float32", EVEN | {"resets": True}),
        ("zoneout", "bfloat16", ODD),
        ("slstm", "float32", ODD),
        ("lstm", "float32", ODD),
        (device_cells.all_parts, "float32", ODD),
    ],
    ids=lambda value: "odd" if value is ODD else "even" if isinstance(value, dict) else getattr(value, "name", value),
)
def test_equals_the_reference(
    runtime: Any, cell: Any, dtype: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", "block")
    p = problems.layer_problem(cell, dtype, **sizes)
    if p.lengths is not None:
        p.lengths[int(np.argmin(p.lengths))] = 0
        p.resets[...] &= np.arange(len(p.resets))[:, None] < p.lengths
    if cell == "slstm":
        h, c, n, m = p.state
        p = p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
    assert "inference: block walk" in layer.describe(p.shape())
    layer_checks.check(layer, p, "cuda", p.cell.name)
