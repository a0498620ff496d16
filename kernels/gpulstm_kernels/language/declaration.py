"""What a cell declares: the names of its parts, and what of them is refused."""

from __future__ import annotations

import itertools
import keyword
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..cells import DISTRIBUTIONS, PARAMETERS, SPANS, Noise
from .graph import CellError


class Declared(NamedTuple):
    """The parts of a declaration, as :class:`gpulstm_kernels.cells.Cell` has them."""

    gates: tuple[str, ...]
    x_gates: tuple[str, ...]
    h_gates: tuple[str, ...]
    states: tuple[str, ...]
    params: tuple[str, ...]
    inputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    weights: tuple[str, ...]


PARTS = Declared._fields
"""What a cell declares, each names with spaces between them."""


def read(cell: str, texts: dict[str, Any]) -> tuple[Declared, tuple[float | None, ...]]:
    """The names in ``texts``, by part, and the values that parameters begin with.

    Raises:
        TypeError: one is no text.
        CellError: a name is none, or an initial value no finite number.
    """
    params, begins = _initial_values(cell, texts["params"])
    names = {part: _names(cell, part, text) for part, text in (texts | {"params": params}).items()}
    return Declared(**names), begins


def noise_of(cell: str, text: Any, declared: Declared) -> tuple[Noise, ...]:
    """What ``text`` says of the inputs that a layer can draw.

    Raises:
        TypeError: it is no text.
        CellError: a part is no input and its distribution, or is differentiable.
    """
    if not isinstance(text, str):
        raise TypeError(f"cell {cell!r}: noise: expected names with spaces between them, got {text!r}")
    found: list[Noise] = []
    for part in text.split():
        one = Noise(*parts) if 2 <= len(parts := part.split(":")) <= 3 else None
        if one is None or one.distribution not in DISTRIBUTIONS or one.each not in SPANS:
            raise CellError(
                f"cell {cell!r}: noise: expected an input with its distribution, as in {' or '.join(DISTRIBUTIONS)} of "
                f"mask:dropout, and maybe {' or '.join(SPANS)}, as in mask:dropout:sequence, got {part!r}"
            )
        if one.input not in declared.inputs or one.input in (*declared.differentiable, *(n.input for n in found)):
            raise CellError(
                f"cell {cell!r}: noise: expected each once, of the inputs {', '.join(declared.inputs) or 'none'}, and "
                f"none that is differentiable, got {part!r}"
            )
        found.append(one)
    return tuple(found)


def _initial_values(cell: str, params: Any) -> tuple[Any, tuple[float | None, ...]]:
    """The declared ``params`` without their initial values, and those."""
    if not isinstance(params, str):
        return params, ()  # refused as other parts are
    names, values = [], []
    for part in params.split():
        name, given, text = part.partition("=")
        try:
            value = float(text) if given else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise CellError(
                f"cell {cell!r}: params: expected a finite number to begin with, as in gain=1, got {part!r}"
            )
        names.append(name)
        values.append(value)
    return " ".join(names), tuple(values)


def _names(cell: str, what: str, text: Any) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise TypeError(f"cell {cell!r}: {what}: expected names with spaces between them, got {text!r}")
    names = tuple(text.split())
    for name in names:
        if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name.startswith("_"):
            raise CellError(
                f"cell {cell!r}: {what}: expected names of ASCII letters, digits and _, which do not begin with _ and "
                f"are no keywords, got {name!r}"
            )
    return names


def mistake(declared: Declared) -> str | None:
    """What is wrong with the names of a declaration, in words; None where nothing is."""
    if not declared.gates + declared.x_gates:
        return "gates: expected at least one, got none, nor any of x_gates"
    *others, differentiable, weights = declared
    if twice := _repeated(("h", *itertools.chain(*others))):
        return (
            f"expected gates, states, parameters and inputs of different names beside h, got {', '.join(twice)} twice"
        )
    for kind, parts in (("differentiable", differentiable), ("weights", weights)):
        if twice := _repeated(parts):
            return f"{kind}: expected each once, got {', '.join(twice)} twice"
    if reserved := [one for one in weights if f"weight_{one}" in PARAMETERS]:
        return f"weights: expected other names than ih, hh and hr, which a layer has, got {', '.join(reserved)}"
    own = (*PARAMETERS, *(f"weight_{one}" for one in weights))
    if reserved := [one for one in declared.params if one in own]:
        return f"params: expected other names than those of a layer's own parameters, got {', '.join(reserved)}"
    if unknown := [one for one in differentiable if one not in declared.inputs]:
        inputs = ", ".join(declared.inputs) or "none"
        return f"differentiable: expected names of inputs, {inputs}, got {', '.join(unknown)}"
    return None


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({one for one in names if names.count(one) > 1})
