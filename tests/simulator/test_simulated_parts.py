"""The Numba CUDA kernels of the step walk, in the simulator, with all that a cell may have beside gates and states."""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest

from gpulstm_kernels.cells import Cell

pytestmark = pytest.mark.simulator

ODD = {"steps": 3, "batch": 3, "inputs": 2, "hidden": 3, "directions": 2, "ragged": True, "resets": True}
EVEN = {"steps": 2, "batch": 2, "inputs": 2, "hidden": 4, "bias": False, "scalar_inputs": True}


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes"),
    [
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
    ],
    ids=lambda value: value if isinstance(value, str) else "odd" if value is ODD else getattr(value, "name", "even"),
)
def test_equals_the_reference(
    runtime: Any, cell: str | Cell, dtype: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", "step")
    p = problems.layer_problem(cell, dtype, **sizes)
    if p.lengths is not None:
        p.lengths[int(np.argmin(p.lengths))] = 0
        p.resets[...] &= np.arange(len(p.resets))[:, None] < p.lengths
    if cell == "slstm":
        h, c, n, m = p.state
        p = p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
    assert layer.why_not(p.shape()) is None
    layer_checks.check(layer, p, "cuda", p.cell.name)


def test_projected_sequences_begin_anew(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", "step")
    layer_checks.check(layer, problems.layer_problem("lstm", "float32", projection=2, **ODD), "cuda", "projected")
