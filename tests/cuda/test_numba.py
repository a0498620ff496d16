"""The Numba kernels on a GPU, against the float64 reference; elsewhere they run in Numba's simulator."""

from __future__ import annotations

import layer_checks
import problems
import pytest

from gpulstm_kernels.cuda.device import process

pytestmark = pytest.mark.gpu

SHAPES = ["odd", "no bias, even", "projected"]
CASES = [  # of a walk and a dtype; the block walk has no projection
    pytest.param(walk, dtype, shape, id=f"{walk}-{dtype}-{shape}")
    for walk, dtype in [
        ("step", "float64"),
        *((walk, dtype) for walk in ("step", "block") for dtype in ("float32", "float16", "bfloat16")),
    ]
    for shape in SHAPES
    if walk == "step" or not layer_checks.SHAPES[shape].projection
]


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize(("walk", "dtype", "shape"), CASES)
def test_equals_the_reference(walk: str, cell: str, dtype: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", walk)
    p, expected = layer_checks.case(cell, dtype, layer_checks.SHAPES[shape])
    backend = layer_checks.OnDevice(layer, process.current())
    for _ in range(3):  # at once, captured, replayed
        layer_checks.check(backend, p, "cuda", shape, expected)


@pytest.mark.parametrize("cell", ["gru", "time_gap", "zoneout", "indrnn", "minlstm"])
def test_all_parts_of_a_cell_equal_the_reference(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", "step")
    p = problems.layer_problem(cell, "float32", steps=6, hidden=9, directions=2, ragged=True, resets=True)
    layer_checks.check(layer_checks.OnDevice(layer, process.current()), p, "cuda", cell)
