"""From a kernel to its C++ name and text."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
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


def test_a_cell_of_a_python_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("typed_in")  # of no file, as __main__ is there
    module.__dict__.update(forward=coupled_cell.forward, backward=coupled_cell.backward)
    monkeypatch.setitem(sys.modules, "typed_in", module)
    cell = Cell("coupled", ("i", "g", "o"), ("c",), 3, "typed_in")
    expected = "struct CoupledCell in a .cuh file beside its Python module, but 'typed_in' is in no file"
    assert source.why_not(cell) == f"'coupled' has no CUDA C++: expected {expected}"


def test_a_cuda_file_that_is_written_later_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("written")
    module.__dict__.update(forward=coupled_cell.forward, backward=coupled_cell.backward)
    module.__file__ = str(tmp_path / "written.py")
    monkeypatch.setitem(sys.modules, "written", module)
    cell = Cell("coupled", ("i", "g", "o"), ("c",), 3, "written")
    assert source.why_not(cell) is not None
    (tmp_path / "written.cuh").touch()
    assert source.why_not(cell) is None
