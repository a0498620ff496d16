"""From a kernel to one C++ text: its ``.cu`` file, what that includes, and the cell it is made for.

The text needs no include path but CUDA's own, so the same one goes through NVRTC on a device, offline in tests, and
through a C++ compiler on the emulator. The kernel in it is asked for by its C++ name, :func:`expression`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from ...cells import Cell
from .kernel import Argument, Kernel

_ROOT = Path(__file__).parents[1]
_FOLDERS = (_ROOT / "device", _ROOT / "walks")  # of what any file may include
_INCLUDE = re.compile(r'\s*#include "([^"]+)"\s*$')
_TYPES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}


def expression(kernel: Kernel) -> str:
    """The C++ name of a kernel with its template arguments, such as ``step_forward<float, LstmCell, true, 4>``."""
    arguments = ", ".join(map(_argument, kernel.arguments))
    return f"{kernel.name}<{arguments}>" if arguments else kernel.name


def _argument(value: Argument) -> str:
    if isinstance(value, np.dtype):
        return _TYPES[value.name]
    if isinstance(value, Cell):
        return struct_name(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def struct_name(cell: Cell) -> str:
    """The C++ struct of a cell: ``LstmCell`` for ``lstm``, ``MyOwnCell`` for ``my_own``."""
    return "".join(word.capitalize() for word in cell.name.split("_")) + "Cell"


def why_not(cell: Cell) -> str | None:
    """In words, why there is no CUDA C++ of ``cell``; None where there is."""
    try:
        _cell_text(cell, set())
    except FileNotFoundError as error:
        return str(error)
    return None


def source_text(kernel: Kernel) -> str:
    """The whole C++ text that ``kernel`` is compiled from.

    Raises:
        ValueError: its cell has no ``.cuh`` beside its Python module.
    """
    return _text(kernel.source, kernel.cell)


@functools.lru_cache(maxsize=64)
def _text(source: str, cell: Cell | None) -> str:
    included: set[Path] = set()
    parts = [_inlined(_ROOT / f"{source}.cu", included)]
    if cell is not None:
        reason = why_not(cell)
        if reason is not None:
            raise ValueError(f"cell: {reason}")
        parts += [_expanded('#include "cell.cuh"\n', _ROOT / "device", included), _cell_text(cell, included)]
        parts.append(_declared(cell))
    return "".join(parts)


def _declared(cell: Cell) -> str:
    """What C++ is told of ``cell`` beside its struct, whose counts are checked."""
    struct = struct_name(cell)
    counts = {"gates": len(cell.preactivations), "states": len(cell.states), "saved": cell.saved}
    if cell.given:
        counts |= {"given": len(cell.given), "given_gradients": len(cell.given_gradients)}
    same = " && ".join(f"{struct}::{what} == {count}" for what, count in counts.items())
    more = ("x_gates", "h_gates", "params", "inputs", "differentiable")
    numbers = ", ".join(f"{what} = {len(getattr(cell, what))}" for what in more)
    return (
        f'static_assert({same}, "{struct}: other counts than the cell declares");\n'
        f"template <>\nstruct Declared<{struct}> {{\n    static constexpr int {numbers};\n"
        f"    static constexpr bool reads_h = {'true' if cell.reads_h else 'false'};\n}};\n"
    )


def _cell_text(cell: Cell, included: set[Path]) -> str:
    """The CUDA C++ of ``cell``, with what it includes.

    Raises:
        FileNotFoundError: see :func:`_path`.
    """
    derived = cell.cuda_source(struct_name(cell))
    if derived is None:
        return _inlined(_path(cell), included)
    return _expanded(derived, _ROOT / "device", included)


@functools.lru_cache(maxsize=64)
def _path(cell: Cell) -> Path:
    """The file with the CUDA C++ of ``cell``; one that is missing is looked for again at the next call.

    Raises:
        FileNotFoundError: there is none, or the cell's maths is in no file, as what is typed into a Python prompt.
    """
    expected = f"{cell.name!r} has no CUDA C++: expected struct {struct_name(cell)} in"
    file = getattr(cell.module, "__file__", None)
    if file is None:
        raise FileNotFoundError(f"{expected} a .cuh file beside its Python module, but {cell.maths!r} is in no file")
    path = Path(file).with_suffix(".cuh")
    if not path.is_file():
        raise FileNotFoundError(f"{expected} {path.name} beside its Python module")
    return path


def _inlined(path: Path, included: set[Path]) -> str:
    return _expanded(path.read_text(encoding="utf-8"), path.parent, included)


def _expanded(text: str, folder: Path, included: set[Path]) -> str:
    """A text of ``folder`` with each ``#include "..."`` of ours replaced by that file's text, once.

    A file that is not beside the one that includes it is looked for in the folders that any file may include from,
    since cells may lie anywhere.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        match = _INCLUDE.match(line)
        if match is None:
            if line.strip() != "#pragma once":
                lines.append(line)
            continue
        places = [place / match[1] for place in (folder, *_FOLDERS)]
        target = next((place.resolve() for place in places if place.is_file()), None)
        if target is None:
            lines.append(line)
        elif target not in included:
            included.add(target)
            lines.append(_inlined(target, included))
    return "".join(lines)
