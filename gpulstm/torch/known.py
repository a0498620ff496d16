"""Cells and weights by name: what stands for them in the operator's arguments, which are texts and lists of tensors."""

from __future__ import annotations

import itertools

from gpulstm_kernels.cells import Cell

from .. import cells

_known: dict[str, Cell] = {}


def key(cell: Cell) -> str:
    """The name of ``cell``; with a number behind it where the name was another cell's before.

    So a layer goes on with the cell that it was made with when that is defined anew, as in a notebook.
    """
    texts = itertools.chain([cell.name], (f"{cell.name}#{number}" for number in itertools.count(2)))
    return next(text for text in texts if _known.setdefault(text, cell) == cell)


def cell_of(key: str) -> Cell:
    """The cell that ``key`` stands for, which may be the name of a registered one.

    Raises:
        ValueError: no such cell; the message lists the known ones.
    """
    return _known[key] if key in _known else cells.get(key)


def names(of_h: bool, params: tuple[str, ...], count: int, gates_given: bool = False) -> tuple[str, ...]:
    """The names of the ``count`` weights of a direction, in torch's order; ``params`` are the cell's own.

    ``of_h``: whether the cell has a recurrent product; ``gates_given``: whether there is no ``weight_ih``.
    """
    bias, projected = features(of_h, len(params), count + gates_given)
    ends = ("ih", "hh") if of_h else ("ih",)
    products = [f"weight_{end}" for end in ends][gates_given:]
    return (*products, *[f"bias_{end}" for end in ends] * bias, *["weight_hr"] * projected, *params)


def features(of_h: bool, params: int, count: int) -> tuple[bool, bool]:
    """Whether there are biases and a projection, by the ``count`` of weights: that may be a symbol of a compiler's."""
    own = count - params
    return (own in (4, 5), own in (3, 5)) if of_h else (own == 2, False)
