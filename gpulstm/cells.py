"""Cells: the one place where a cell is declared.

A declaration names the gates, the carried states and the module that holds the pointwise maths; see
:class:`gpulstm_kernels.cells.Cell` for what such a module contains. To add a cell, write that module and
:func:`register` the cell: every walk of every backend then takes it, and ``nn.RNNBase(name, ...)`` makes layers of it.
"""

from __future__ import annotations

from gpulstm_kernels.cells import Cell

_cells: dict[str, Cell] = {}


def register(cell: Cell) -> Cell:
    """Make ``cell`` known under its name.

    Raises:
        ValueError: the name is taken by another cell, or the cell has no gates.
    """
    if not cell.gates:
        raise ValueError(f"cell: {cell.name!r} declares no gates; expected at least one")
    if _cells.get(cell.name, cell) != cell:
        raise ValueError(f"cell: the name {cell.name!r} is taken by {_cells[cell.name]}")
    return _cells.setdefault(cell.name, cell)


def get(name: str) -> Cell:
    """The cell called ``name``.

    Raises:
        ValueError: no such cell; the message lists the known ones.
    """
    if name not in _cells:
        raise ValueError(f"cell: unknown cell {name!r}; known cells: {', '.join(sorted(_cells))}")
    return _cells[name]


LSTM = register(Cell("lstm", gates=("i", "f", "g", "o"), states=("c",), saved=4, maths="gpulstm_kernels.cells.lstm"))
RNN = register(Cell("rnn", gates=("a",), states=(), saved=0, maths="gpulstm_kernels.cells.rnn"))
