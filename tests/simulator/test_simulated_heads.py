"""The Numba CUDA kernels of both walks, in the simulator, with weights of blocks on a diagonal."""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest

pytestmark = pytest.mark.simulator

ODD = {"steps": 3, "batch": 3, "inputs": 2, "hidden": 9, "heads": 3, "directions": 2, "ragged": True, "resets": True}
EVEN = {"steps": 2, "batch": 9, "inputs": 2, "hidden": 8, "heads": 2, "bias": False, "scalar_inputs": True}
ONE_UNIT = {"steps": 2, "batch": 2, "inputs": 2, "hidden": 3, "heads": 3, "directions": 2}
NAMES = {id(ODD): "odd", id(EVEN): "even", id(ONE_UNIT): "one unit"}


@pytest.mark.parametrize(
    ("walk", "cell", "dtype", "sizes"),
    [
        ("step", "lstm", "float64", ODD),
        *(
            (walk, cell, dtype, sizes)
            for walk in ("step", "block")
            for cell, dtype, sizes in (
                ("lstm", "float32", EVEN),
                ("lstm", "bfloat16", ONE_UNIT),
                ("gru", "float32", ODD),
                ("gru", "float16", EVEN),
                ("slstm", "float32", ODD),
                (device_cells.all_parts, "float32", ODD),
                (device_cells.all_parts, "float32", EVEN),
            )
        ),
    ],
    ids=lambda value: NAMES.get(id(value), getattr(value, "name", value)),
)
def test_equals_the_reference(
    runtime: Any, walk: str, cell: Any, dtype: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = problems.layer_problem(cell, dtype, **sizes)
    if p.lengths is not None:
        p.lengths[int(np.argmin(p.lengths))] = 0
        p.resets[...] &= np.arange(len(p.resets))[:, None] < p.lengths
    if cell == "slstm":
        h, c, n, m = p.state
        p = p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
    assert layer.why_not(p.shape()) is None
    assert f"inference: {walk} walk of {sizes['heads']} heads" in layer.describe(p.shape())
    layer_checks.check(layer, p, "cuda", p.cell.name)
