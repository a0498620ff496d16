"""From a kernel to its C++ name and text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import coupled_cell
import numpy as np
import problems
import pytest

from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda import layer, numba_layer
from gpulstm_kernels.cuda.device import source
from gpulstm_kernels.cuda.device.kernel import Kernel

LSTM = cells.get("lstm")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("draw_mask", (), "draw_mask"),
        ("step_forward", (np.dtype("float32"), LSTM, True, 4), "step_forward<float, LstmCell, true, 4>"),
        ("total", (False,), "total<false>"),
        ("update", (np.dtype("float64"), "Adam"), "update<double, Adam>"),
        ("drop", (np.dtype("float16"),), "drop<__half>"),
        ("walk", (replace(LSTM, name="my_own"), 1), "walk<MyOwnCell, 1>"),
    ],
)
def test_the_name_in_cuda(name: str, arguments: tuple[Any, ...], expected: str) -> None:
    assert source.expression(Kernel("a file", name, arguments)) == expected


def test_bfloat16_in_cuda() -> None:
    assert source.expression(Kernel("a file", "drop", (problems.dtype_of("bfloat16"),))) == "drop<__nv_bfloat16>"


def test_a_cell_without_cuda() -> None:
    cell = Cell("coupled", ("i", "g", "o"), ("c",), 3, coupled_cell.__name__)
    reason = "'coupled' has no CUDA C++: expected struct CoupledCell in coupled_cell.cuh beside its Python module"
    assert (source.why_not(cell), source.why_not(LSTM)) == (reason, None)
    assert layer.why_not(problems.layer_shape(cell)) == reason
    assert numba_layer.why_not(problems.layer_shape(cell)) is None
    with pytest.raises(ValueError, match=re.escape(f"cell: {reason}")):
        source.source_text(Kernel("walks/step/kernels", "step_backward", (np.dtype("float32"), cell, 1)))
