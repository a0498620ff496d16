"""Cells: how they are written, and which there are.

A cell is a function that says what one step computes; :func:`cell` traces it, and its gradient, and whatever kernels
need, is derived. ::

    from gpulstm.cells import sigmoid, tanh

    @gpulstm.cell(gates="i g o", states="c")
    def coupled(x, s):  # x: pre-activations of the gates; s: states before the step
        i = sigmoid(x.i)
        c = (1 - i) * s.c + i * tanh(x.g)
        return sigmoid(x.o) * tanh(c), {"c": c}  # h, and the new states

    layer = gpulstm.nn.Recurrent(coupled, input_size=64, hidden_size=256)

:func:`check` tries a cell's gradient, :func:`show` prints what was derived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gpulstm_kernels.cells import DISTRIBUTIONS, SPANS, Cell, Noise
from gpulstm_kernels.cells.cifg import cifg
from gpulstm_kernels.cells.gru import gru
from gpulstm_kernels.cells.gru_reset_before import gru_reset_before
from gpulstm_kernels.cells.indrnn import indrnn
from gpulstm_kernels.cells.layer_norm_gru import layer_norm_gru
from gpulstm_kernels.cells.layer_norm_lstm import layer_norm_lstm
from gpulstm_kernels.cells.layer_norm_lstm_by_gate import layer_norm_lstm_by_gate
from gpulstm_kernels.cells.lstm import lstm
from gpulstm_kernels.cells.mingru import mingru
from gpulstm_kernels.cells.minlstm import minlstm
from gpulstm_kernels.cells.multiplicative_lstm import multiplicative_lstm
from gpulstm_kernels.cells.peephole import peephole
from gpulstm_kernels.cells.recurrent_dropout import recurrent_dropout
from gpulstm_kernels.cells.rnn import rnn
from gpulstm_kernels.cells.rnn_relu import rnn_relu
from gpulstm_kernels.cells.slstm import slstm
from gpulstm_kernels.cells.time_gap import time_gap
from gpulstm_kernels.cells.variational_dropout import variational_dropout
from gpulstm_kernels.cells.zoneout import zoneout
from gpulstm_kernels.language import cell as _language
from gpulstm_kernels.language import declaration as _declaration
from gpulstm_kernels.language.cell import TracedCell
from gpulstm_kernels.language.check import check
from gpulstm_kernels.language.graph import CellError
from gpulstm_kernels.language.operators import (
    abs,
    exp,
    hard_sigmoid,
    log,
    maximum,
    minimum,
    named,
    product,
    relu,
    row_mean,
    sigmoid,
    softplus,
    sqrt,
    tanh,
    where,
)
from gpulstm_kernels.language.show import show

from . import checks

__all__ = [
    "Cell",
    "CellError",
    "Noise",
    "TracedCell",
    "abs",
    "cell",
    "check",
    "cifg",
    "exp",
    "get",
    "gru",
    "gru_reset_before",
    "hard_sigmoid",
    "indrnn",
    "layer_norm_gru",
    "layer_norm_lstm",
    "layer_norm_lstm_by_gate",
    "log",
    "lstm",
    "maximum",
    "mingru",
    "minimum",
    "minlstm",
    "multiplicative_lstm",
    "named",
    "peephole",
    "product",
    "recurrent_dropout",
    "register",
    "relu",
    "rnn",
    "rnn_relu",
    "row_mean",
    "show",
    "sigmoid",
    "slstm",
    "softplus",
    "sqrt",
    "tanh",
    "time_gap",
    "variational_dropout",
    "where",
    "zoneout",
]

_AnyCell = TypeVar("_AnyCell", bound=Cell)
_cells: dict[str, Cell] = {}


def cell(**declaration: str) -> Callable[[Callable[..., Any]], TracedCell]:
    """Make a cell of a function, and make it known under the function's name.

    See :func:`gpulstm_kernels.language.cell.cell` for the arguments, what the function may do and what is raised; an
    example is above. A function that is defined anew, as in a notebook, takes the place of the one before.

    Raises:
        ValueError: another cell has the name.
    """
    traced = _language.cell(**declaration)
    return lambda function: register(traced(function))


def register(cell: _AnyCell) -> _AnyCell:
    """Make ``cell`` known under its name.

    Raises:
        TypeError: a part of the declaration is of the wrong type.
        ValueError: the name is taken by another cell, the cell has no gates, two of its parts have one name, or one has
            a name that a layer needs, a part of ``differentiable`` is no input, or ``saved`` is negative. What maths
            written by hand returns is checked at first use.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a gpulstm.cells.Cell, got {cell!r}")
    for field in ("name", "maths"):
        if not isinstance(value := getattr(cell, field), str) or not value:
            raise TypeError(f"cell: {field}: expected a name, got {value!r}")
    for field in _declaration.PARTS:
        _check_names(cell, field)
    declared = _declaration.Declared._make(getattr(cell, field) for field in _declaration.PARTS)
    if wrong := _declaration.mistake(declared):
        raise ValueError(f"cell: {cell.name!r}: {wrong}")
    _check_noise(cell)
    checks.flag(cell.reads_h, f"cell: {cell.name!r}: reads_h")
    checks.integer(cell.saved, f"cell: {cell.name!r}: saved", 0)
    before = _cells.get(cell.name)
    if before == cell:
        return before
    if before is not None and not _written_anew(before, cell):
        raise ValueError(f"cell: the name {cell.name!r} is taken by {before}; expected another name")
    _cells[cell.name] = cell
    return cell


def _written_anew(before: Cell, cell: Cell) -> bool:
    """Whether both are of one function of one module, which was run again."""
    if not isinstance(before, TracedCell) or not isinstance(cell, TracedCell):
        return False
    one, two = before.function, cell.function
    return (one.__module__, one.__qualname__) == (two.__module__, two.__qualname__)


def _check_names(cell: Cell, field: str) -> None:
    value: Any = getattr(cell, field)
    if not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"cell: {cell.name!r}: {field}: expected a tuple of names, got {value!r}")


def _check_noise(cell: Cell) -> None:
    """Of a cell by hand what :func:`cell` has checked already."""
    for one in cell.noise:
        if not isinstance(one, Noise) or one.distribution not in DISTRIBUTIONS or one.each not in SPANS:
            raise TypeError(
                f"cell: {cell.name!r}: noise: expected a Noise(input, distribution, each), of "
                f"{', '.join(DISTRIBUTIONS)} and {', '.join(SPANS)}, got {one!r}"
            )
        if one.input not in cell.inputs or one.input in cell.differentiable:
            raise ValueError(
                f"cell: {cell.name!r}: noise: expected an input that is not differentiable, got {one.input!r}"
            )


def get(name: str | Cell) -> Cell:
    """The cell called ``name``, which may be a cell itself.

    Raises:
        ValueError: no such cell; the message lists the known ones.
    """
    if isinstance(name, Cell):
        return register(name)
    if not isinstance(name, str) or name not in _cells:
        raise ValueError(f"cell: unknown cell {name!r}; known cells: {', '.join(sorted(_cells))}")
    return _cells[name]


for _cell in (
    cifg,
    gru,
    gru_reset_before,
    indrnn,
    layer_norm_gru,
    layer_norm_lstm,
    layer_norm_lstm_by_gate,
    lstm,
    mingru,
    minlstm,
    multiplicative_lstm,
    peephole,
    recurrent_dropout,
    rnn,
    rnn_relu,
    slstm,
    time_gap,
    variational_dropout,
    zoneout,
):
    register(_cell)
