"""The Numba CUDA kernels, in the simulator: a layer against the float64 reference, by every walk, cell and type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import coupled_cell
import device_cells
import layer_checks
import minimal_cell
import numpy as np
import problems
import pytest

import gpulstm_kernels
from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda.device.kernel import Argument, Kernel

pytestmark = pytest.mark.simulator

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
CELLS = {
    "lstm": cells.get("lstm"),
    "rnn": cells.get("rnn"),
    "coupled": Cell("coupled", ("i", "g", "o"), ("c",), 3, coupled_cell.__name__),
    "minimal": Cell("minimal", ("f", "g"), ("a", "b"), 2, minimal_cell.__name__),
}
CASES = [  # of a walk and a dtype; the block walk has no projection
    pytest.param(walk, dtype, shape, id=f"{walk}-{dtype}-{shape}")
    for walk, dtype in [
        ("step", "float64"),
        *((walk, dtype) for walk in ("step", "block") for dtype in ("float32", "float16", "bfloat16")),
    ]
    for shape in layer_checks.SMALL
    if walk == "step" or not layer_checks.SMALL[shape].projection
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("walk", "dtype", "shape"), CASES)
def test_equals_the_reference(
    runtime: Any, walk: str, cell: str, dtype: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = layer_checks.problem(CELLS[cell], dtype, layer_checks.SMALL[shape])
    assert f"inference: {walk} walk" in layer.describe(p.shape())
    layer_checks.check(layer, p, "cuda", shape)


@pytest.mark.parametrize("cell", [cells.get("cifg"), device_cells.slstm], ids=lambda cell: cell.name)
@pytest.mark.parametrize("walk", ["step", "block"])
def test_any_derived_cell_equals_the_reference(
    runtime: Any, walk: str, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer

    monkeypatch.setenv("GPULSTM_WALK", walk)
    p = device_cells.started(layer_checks.problem(cell, "float32", layer_checks.SMALL["odd"]))
    layer_checks.check(layer, p, "cuda", walk)


def test_an_index_past_the_end_raises(runtime: Any) -> None:
    arrays = [np.ones(4, np.float32), None, np.ones(4, np.float32), np.ones(7, np.float32)]  # ys: 8 = (0 + 2)·2·2
    kernel = Kernel("walks/step/kernels", "step_project", (FLOAT32, False))
    with pytest.raises(IndexError):
        runtime.launch(kernel, (1, 1, 1), (128, 1, 1), (*arrays, 0, 1, 2, 2, 1, 0, None))


def test_a_missing_array_raises(runtime: Any) -> None:
    arrays = [np.ones(4, np.float32), None, np.ones(4, np.float32), np.ones(12, np.float32)]
    kernel = Kernel("walks/step/kernels", "step_project", (FLOAT32, False))
    with pytest.raises(TypeError):
        runtime.launch(kernel, (1, 1, 1), (128, 1, 1), (*arrays, 0, 1, 2, 2, 1, 1, None))


def test_strided_arrays_and_cooperative_launches_are_refused(runtime: Any) -> None:
    kernel = Kernel("kernels/layer", "to_accumulate", (FLOAT32,))
    with pytest.raises(ValueError, match="contiguous"):
        runtime.launch(kernel, (1, 1, 1), (32, 1, 1), (np.ones((4, 4))[:, :2], np.ones(8), 8))
    with pytest.raises(RuntimeError, match="barrier"):
        runtime.launch(kernel, (1, 1, 1), (32, 1, 1), (np.ones(8), np.ones(8), 8), cooperative=True)


def test_the_backend_says_how_it_walks(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer
    from gpulstm_kernels.cuda.device.process import numba_why_not

    assert numba_why_not() is None
    shape = problems.layer_shape()
    monkeypatch.delenv("GPULSTM_WALK", raising=False)
    assert "Numba CUDA: inference: step walk" in layer.describe(shape)
    monkeypatch.setenv("GPULSTM_WALK", "block")
    assert "Numba CUDA: inference: block walk, asked for" in layer.describe(shape)


def _parameters(source: str, name: str) -> list[tuple[str, str]]:
    """The parameters of a C++ kernel: names, and types with T and A for those of elements and sums."""
    text = (Path(gpulstm_kernels.__file__).parent / "cuda" / f"{source}.cu").read_text()
    match = re.search(rf"\b{name}\(([^()]*)\) \{{", text)
    assert match is not None, name
    parameters = []
    for parameter in match[1].replace("accumulate_t<T>", "A").replace("float", "A").split(","):
        typ, parameter_name = parameter.replace("const ", "").split()
        parameters.append((parameter_name, typ))
    return parameters


@pytest.mark.parametrize(
    ("source", "name", "template"),
    [
        ("walks/step/kernels", "step_forward", (FLOAT16, CELLS["lstm"], True, 4, False)),
        ("walks/step/kernels", "step_project", (FLOAT16, False)),
        ("walks/step/kernels", "step_unproject", (FLOAT16, False)),
        ("walks/step/kernels", "step_backward", (FLOAT16, CELLS["lstm"], 4, False)),
        ("walks/step/kernels", "step_begin", (FLOAT16,)),
        ("walks/step/kernels", "step_end", (FLOAT16,)),
        ("walks/block/kernels", "block_forward", (FLOAT16, False, CELLS["lstm"], True, False, 1)),
        ("walks/block/kernels", "block_backward", (FLOAT16, False, CELLS["lstm"], False, 1)),
        ("walks/step/scan", "scan_forward", (FLOAT16, cells.get("mingru"), True, False)),
        ("walks/step/scan", "scan_backward", (FLOAT16, cells.get("mingru"), False)),
        ("walks/step/staged", "staged_forward", (FLOAT16, cells.get("gru_reset_before"), 0, True, False)),
        ("walks/step/staged", "staged_backward", (FLOAT16, cells.get("gru_reset_before"), 0, False)),
        ("kernels/layer", "to_accumulate", (FLOAT16,)),
        ("kernels/layer", "from_accumulate", (FLOAT16,)),
        ("kernels/layer", "add_biases", (FLOAT16,)),
        ("kernels/layer", "sum_rows", (FLOAT16,)),
        ("kernels/layer", "sum_columns", (FLOAT16,)),
        ("kernels/layer", "h_before", (FLOAT16,)),
    ],
)
def test_argument_lists_are_those_of_cuda(runtime: Any, source: str, name: str, template: tuple[Argument, ...]) -> None:
    from gpulstm_kernels.cuda.device.numba_kernel import element
    from gpulstm_kernels.cuda.device.numba_runtime import twin

    function, arguments = twin(Kernel(source, name, template))
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    known = {"float16": "T", "float32": "A", "int32": "int", "uint8": "Byte"}
    assert element(FLOAT16).stored.name == "float16"

    def in_cuda(typ: Any) -> str:
        return f"{known[typ.dtype.name]}*" if hasattr(typ, "dtype") else known[typ.name]

    found = [(name, in_cuda(typ)) for name, typ in zip(names, arguments, strict=True)]
    expected = _parameters(source, name)
    if source == "kernels/layer":  # `from` and `to` are no names in Python
        assert [typ for _, typ in found] == [typ for _, typ in expected]
    else:
        assert found == expected
