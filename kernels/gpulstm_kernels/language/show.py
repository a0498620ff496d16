"""What was derived of a cell, for people."""

from __future__ import annotations

from ..cells import Cell
from .cell import TracedCell, checked
from .code import formulas
from .graph import CellError


def show(cell: Cell) -> None:
    """Print what of ``cell``'s forward is saved for its backward, and the forward and backward that are derived.

    Raises:
        TypeError: ``cell`` is none.
        CellError: its maths is written by hand.
    """
    checked(cell)
    if not isinstance(cell, TracedCell):
        raise CellError(f"cell {cell.name!r}: expected one that is derived of its forward, got maths written by hand")
    saved = cell.derivation.saved
    print("\n".join([f"saved, a unit and step: {len(saved) or 'nothing'}", *formulas(saved), "", cell.source]))
