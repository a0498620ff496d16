"""From a kernel's name to one source text: its ``.cu`` file, what that includes, and the cell it is made for.

The text needs no include path but CUDA's own, so the same one goes through NVRTC on a device, offline in tests, and
through a C++ compiler on the emulator.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from ...cells import Cell
from .runtime import Kernel

_ROOT = Path(__file__).parents[1]
_FOLDERS = (_ROOT / "device", _ROOT / "walks")  # of what any file may include
_INCLUDE = re.compile(r'\s*#include "([^"]+)"\s*$')
_TYPES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}


def type_name(dtype: np.dtype) -> str:
    """The C++ type of an array's elements."""
    return _TYPES[np.dtype(dtype).name]


def struct_name(cell: Cell) -> str:
    """The C++ struct of a cell: ``LstmCell`` for ``lstm``, ``MyOwnCell`` for ``my_own``."""
    return "".join(word.capitalize() for word in cell.name.split("_")) + "Cell"


def source(kernel: Kernel) -> str:
    """The whole C++ text that ``kernel`` is compiled from.

    Raises:
        ValueError: its cell has no ``.cuh`` beside its Python module.
    """
    return _source(kernel.file, kernel.cell)


@functools.lru_cache(maxsize=64)
def missing(cell: Cell) -> str | None:
    """In words, why there is no CUDA C++ of ``cell``; None where there is."""
    path = _header(cell)
    if path.is_file():
        return None
    return f"{cell.name!r} has no CUDA C++: expected struct {struct_name(cell)} in {path.name} beside its Python module"


def _header(cell: Cell) -> Path:
    return Path(str(cell.module.__file__)).with_suffix(".cuh")


@functools.lru_cache(maxsize=64)
def _source(file: str, cell: Cell | None) -> str:
    included: set[Path] = set()
    parts = [_inlined(_ROOT / f"{file}.cu", included)]
    if cell is not None:
        if (reason := missing(cell)) is not None:
            raise ValueError(f"cell: {reason}")
        parts.append(_inlined(_header(cell), included))
        counts = {"gates": len(cell.gates), "states": len(cell.states), "saved": cell.saved}
        struct = struct_name(cell)
        same = " && ".join(f"{struct}::{what} == {count}" for what, count in counts.items())
        parts.append(f'static_assert({same}, "{struct}: other counts than the cell declares");\n')
    return "".join(parts)


def _inlined(path: Path, included: set[Path]) -> str:
    """The text of a file with each ``#include "..."`` of ours replaced by that file's, once.

    What is not beside the includer is among what any file may include: cells may live anywhere.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        match = _INCLUDE.match(line)
        if match is None:
            if line.strip() != "#pragma once":
                lines.append(line)
            continue
        places = [folder / match[1] for folder in (path.parent, *_FOLDERS)]
        target = next((place.resolve() for place in places if place.is_file()), None)
        if target is None:
            lines.append(line)
        elif target not in included:
            included.add(target)
            lines.append(_inlined(target, included))
    return "".join(lines)
