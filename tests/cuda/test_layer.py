"""The CUDA backend against the float64 reference: every cell, type and awkward shape, by each walk that fits.

Buffers and shared memory are poisoned on the emulator, so what a kernel forgot to write is NaN and fails.
"""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import lstm_by_hand
import pytest
from problems import Problem

from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda import layer
from gpulstm_kernels.cuda.device import precision

KINDS = ["float32", "tf32", "float64", "float16", "bfloat16"]
CELLS = ["lstm", "rnn"]
DERIVED = [cells.get("cifg"), device_cells.slstm, device_cells.nine_gates]  # of one, three and five states

SHAPES = [
    "one of each",
    "one step",
    "one sequence",
    "odd",
    "even",
    "ragged",
    "no bias",
    "projected",
    "projected even",
]
CASES = [  # of a walk and a kind; the persistent walks have no projection and no float64
    pytest.param(walk, kind, shape, id=f"{walk}-{kind}-{shape}")
    for walk in ("step", "block", "grid")
    for kind in KINDS
    for shape in SHAPES
    if walk == "step" or not (kind == "float64" or layer_checks.SHAPES[shape].projection)
]


def check(runtime: Any, p: Problem, kind: str, label: str) -> None:
    """Outputs, final states and every gradient, of training and (outputs) of inference."""
    backend = layer_checks.OnDevice(layer, runtime, runtime=runtime)
    layer_checks.check(backend, p, "cuda tf32" if kind == "tf32" else "cuda", label)


def dtype_of(kind: str) -> str:
    return "float32" if kind == "tf32" else kind


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("walk", "kind", "shape"), CASES)
def test_equals_the_reference(
    runtime: Any, walk: str, cell: str, kind: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    monkeypatch.setattr(precision, "_allowed", kind == "tf32")
    check(runtime, layer_checks.problem(cell, dtype_of(kind), layer_checks.SHAPES[shape]), kind, shape)


@pytest.mark.parametrize("cell", DERIVED, ids=lambda cell: cell.name)
@pytest.mark.parametrize("walk", ["step", "block", "grid"])
@pytest.mark.parametrize("shape", ["odd", "ragged"])
def test_any_derived_cell_equals_the_reference(
    runtime: Any, walk: str, cell: Cell, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = device_cells.started(layer_checks.problem(cell, "float32", layer_checks.SHAPES[shape]))
    check(runtime, p, "float32", shape)


def test_a_cell_by_hand_is_taken_from_the_file_beside_its_maths(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")
    cell = Cell("lstm_by_hand", ("i", "f", "g", "o"), ("c",), 4, lstm_by_hand.__name__)
    check(runtime, layer_checks.problem(cell, "float32", layer_checks.SHAPES["ragged"]), "float32", "ragged")
