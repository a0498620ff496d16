"""A cell goes by its name: copies, pickles, the same function run again, lines in tracebacks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from written_cells import AUTHOR, function, written

import gpulstm
from gpulstm import cells
from gpulstm_kernels.cells import Cell


@gpulstm.cells._language.cell(gates="a b", states="c")
def at_the_top(x: Any, s: Any) -> Any:
    return cells.tanh(x.a + s.c), {"c": x.b * s.c}


@pytest.mark.parametrize("cell", [cells.lstm, cells.cifg, at_the_top], ids=lambda cell: cell.name)
def test_a_cell_is_pickled_and_copied_as_a_name(cell: cells.TracedCell) -> None:
    text = pickle.dumps(cell)
    assert len(text) < 200  # no code is in it
    assert pickle.loads(text) is cell
    assert copy.copy(cell) is copy.deepcopy(cell) is cell


def test_layers_are_pickled_and_copied_with_their_cell() -> None:
    layer = gpulstm.nn.Recurrent(cells.cifg, 3, 5, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    expected, _ = layer(x, backend="reference")
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert other.config.cell is cells.cifg
        np.testing.assert_array_equal(other(x, backend="reference")[0], expected)


def test_a_cell_that_no_import_finds_is_not_pickled() -> None:
    with pytest.raises(pickle.PicklingError, match="cell 'q'"):
        pickle.dumps(written("return x.a * x.b, {}"))


def test_a_cell_that_is_written_anew_takes_the_place() -> None:
    """As a notebook runs a cell again; a function of the same name elsewhere is another one."""

    def defined(body: str, module: str) -> cells.TracedCell:
        written_here = function(body)
        written_here.__module__ = module
        return gpulstm.cell(gates="a b")(written_here)

    first = defined("return x.a * x.b, {}", "author")
    assert cells.get("q") is first
    assert defined("return x.b * x.a, {}", "author") == first
    second = defined("return x.a + x.b, {}", "author")
    assert cells.get("q") is second != first
    with pytest.raises(
        ValueError, match=r"cell: the name 'q' is taken by TracedCell\(name='q'.*; expected another name"
    ):
        defined("return x.a - x.b, {}", "another")
    with pytest.raises(ValueError, match="cell: the name 'q' is taken by"):
        cells.register(Cell("q", ("a", "b"), (), 0, "coupled_cell"))
    assert cells.get("q") is second


def test_the_derived_code_is_in_tracebacks() -> None:
    with pytest.raises(TypeError) as raised:
        written("return tanh(x.a * x.b), {}").module.forward(("a", 1.5), ())
    assert "x_a * x_b" in str(raised.getrepr())


def test_a_cell_says_which_file_it_is_of() -> None:
    assert written("return x.a * x.b, {}").function.__code__.co_filename == AUTHOR
