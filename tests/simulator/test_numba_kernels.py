"""The Numba CUDA kernels, in the simulator: a layer against the float64 reference, by every walk, cell and type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import coupled_cell
import layer_checks
import minimal_cell
import numpy as np
import problems
import pytest

import gpulstm_kernels
from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda.device.runtime import Kernel

pytestmark = pytest.mark.simulator

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


def test_an_index_past_the_end_raises(runtime: Any) -> None:
    arrays = [np.ones(4, np.float32), None, np.ones(4, np.float32), np.ones(7, np.float32)]  # ys: 8 = (0 + 2)·2·2
    kernel = Kernel("walks/step/kernels", "step_place<float>", None)
    with pytest.raises(IndexError):
        runtime.launch(kernel, (1, 1, 1), (128, 1, 1), (*arrays, 0, 1, 2, 2, 1, 0))


def test_a_missing_array_raises(runtime: Any) -> None:
    arrays = [np.ones(4, np.float32), None, np.ones(4, np.float32), np.ones(12, np.float32)]
    kernel = Kernel("walks/step/kernels", "step_place<float>", None)
    with pytest.raises(TypeError):
        runtime.launch(kernel, (1, 1, 1), (128, 1, 1), (*arrays, 0, 1, 2, 2, 1, 1))


def test_strided_arrays_and_cooperative_launches_are_refused(runtime: Any) -> None:
    kernel = Kernel("kernels/layer", "to_accumulate<float>", None)
    with pytest.raises(ValueError, match="contiguous"):
        runtime.launch(kernel, (1, 1, 1), (32, 1, 1), (np.ones((4, 4))[:, :2], np.ones(8), 8))
    with pytest.raises(RuntimeError, match="barrier"):
        runtime.launch(kernel, (1, 1, 1), (32, 1, 1), (np.ones(8), np.ones(8), 8), cooperative=True)


def test_the_backend_says_how_it_walks(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cuda import numba_layer as layer
    from gpulstm_kernels.cuda.device.numba_runtime import why_not

    assert why_not() is None
    shape = problems.layer_shape()
    monkeypatch.delenv("GPULSTM_WALK", raising=False)
    assert "Numba CUDA: inference: step walk" in layer.describe(shape)
    monkeypatch.setenv("GPULSTM_WALK", "block")
    assert "Numba CUDA: inference: block walk, asked for" in layer.describe(shape)


def _parameters(file: str, name: str) -> list[tuple[str, str]]:
    """The parameters of a C++ kernel: names, and types with T and A for those of elements and sums."""
    text = (Path(gpulstm_kernels.__file__).parent / "cuda" / f"{file}.cu").read_text()
    match = re.search(rf"\b{name}\(([^()]*)\) \{{", text)
    assert match is not None, name
    parameters = []
    for parameter in match[1].replace("accumulate_t<T>", "A").replace("float", "A").split(","):
        typ, parameter_name = parameter.replace("const ", "").split()
        parameters.append((parameter_name, typ))
    return parameters


@pytest.mark.parametrize(
    ("file", "expression"),
    [
        ("walks/step/kernels", "step_forward<__half, LstmCell, true, 4>"),
        ("walks/step/kernels", "step_place<__half>"),
        ("walks/step/kernels", "step_unplace<__half>"),
        ("walks/step/kernels", "step_backward<__half, LstmCell, 4>"),
        ("walks/block/kernels", "block_forward<__half, false, LstmCell, true, 1>"),
        ("walks/block/kernels", "block_backward<__half, false, LstmCell, 1>"),
        ("kernels/layer", "to_accumulate<__half>"),
        ("kernels/layer", "from_accumulate<__half>"),
        ("kernels/layer", "add_biases<__half>"),
        ("kernels/layer", "sum_rows<__half>"),
    ],
)
def test_argument_lists_are_those_of_cuda(runtime: Any, file: str, expression: str) -> None:
    from gpulstm_kernels.cuda.device.numba_kernel import ELEMENTS
    from gpulstm_kernels.cuda.device.numba_launch import twin

    function, arguments = twin(Kernel(file, expression, CELLS["lstm"]))
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    known = {"float16": "T", "float32": "A", "int32": "int"}
    assert ELEMENTS["__half"].stored.name == "float16"

    def in_cuda(typ: Any) -> str:
        return f"{known[typ.dtype.name]}*" if hasattr(typ, "dtype") else known[typ.name]

    found = [(name, in_cuda(typ)) for name, typ in zip(names, arguments, strict=True)]
    expected = _parameters(file, expression.split("<")[0])
    if file == "kernels/layer":  # `from` and `to` are no names in Python
        assert [typ for _, typ in found] == [typ for _, typ in expected]
    else:
        assert found == expected
