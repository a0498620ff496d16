"""Cells: the one place where a cell is declared.

A declaration names the gates, the carried states and the module that holds the pointwise maths; see
:class:`gpulstm_kernels.cells.Cell` for what such a module contains. To add a cell, write that module and
:func:`register` the cell: every walk of every backend then takes it, and ``nn.RNNBase(name, ...)`` makes layers of it.
"""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.cells import Cell

from . import checks

_cells: dict[str, Cell] = {}


def register(cell: Cell) -> Cell:
    """Make ``cell`` known under its name.

    Raises:
        TypeError: a part of the declaration is of the wrong type.
        ValueError: the name is taken by another cell, the cell has no gates, two of its gates and states have one name,
            or ``saved`` is negative. What its maths returns is checked at first use.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a gpulstm.cells.Cell, got {cell!r}")
    for field in ("name", "maths"):
        if not isinstance(value := getattr(cell, field), str) or not value:
            raise TypeError(f"cell: {field}: expected a name, got {value!r}")
    for field in ("gates", "states"):
        _check_names(cell, field)
    if not cell.gates:
        raise ValueError(f"cell: {cell.name!r} declares no gates; expected at least one")
    names = ("h", *cell.gates, *cell.states)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"cell: {cell.name!r}: expected gates and states of different names beside h, got {twice} twice"
        )
    checks.integer(cell.saved, f"cell: {cell.name!r}: saved", 0)
    if _cells.get(cell.name, cell) != cell:
        raise ValueError(f"cell: the name {cell.name!r} is taken by {_cells[cell.name]}; expected another name")
    return _cells.setdefault(cell.name, cell)


def _check_names(cell: Cell, field: str) -> None:
    value: Any = getattr(cell, field)
    if not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"cell: {cell.name!r}: {field}: expected a tuple of names, got {value!r}")


def get(name: str) -> Cell:
    """The cell called ``name``.

    Raises:
        ValueError: no such cell; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in _cells:
        raise ValueError(f"cell: unknown cell {name!r}; known cells: {', '.join(sorted(_cells))}")
    return _cells[name]


LSTM = register(Cell("lstm", gates=("i", "f", "g", "o"), states=("c",), saved=4, maths="gpulstm_kernels.cells.lstm"))
RNN = register(Cell("rnn", gates=("a",), states=(), saved=0, maths="gpulstm_kernels.cells.rnn"))
