"""A digest of everything that the maths of a cell reads, so that kernels in the cache on disk are never stale.

To Numba, what a function reads of its module, of other modules and of its closure is constant: it ends up in machine
code. So the digest goes wherever the maths goes: into the functions that it calls, the numbers it reads, and the
overloads that Numba has of a function. Python, NumPy and Numba are told by their versions, and this package by its
sources, which the cache knows.
"""

from __future__ import annotations

import dis
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.extending import is_jitted
from numba.types import Type

from ...cells import Cell
from .numba_internals import compile_options, overloads_of

_OWN = __name__.partition(".")[0]
_LIBRARIES = {"numpy", "numba", "llvmlite", *sys.stdlib_module_names}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.dtype, Type)


class CannotDigest(Exception):
    """The maths reads something whose changes cannot be seen."""


def maths_digest(cell: Cell) -> bytes:
    """Of a cell's declaration and all that its maths reads.

    Raises:
        CannotDigest: it reads what is no number, array, function or module; the message says what.
    """
    reader = _Reader()
    reader.note("cell", repr(cell))
    try:
        for name in ("forward", "backward"):
            reader.add(getattr(cell.module, name), f"{cell.maths}.{name}", frozenset())
    except RecursionError as error:
        raise CannotDigest(f"{cell.maths} reads what contains itself") from error
    return reader.digest()


class _Reader:
    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._seen: dict[Any, int] = {}

    def digest(self) -> bytes:
        return self._hash.digest()

    def note(self, *parts: object) -> None:
        for part in parts:
            content = part if isinstance(part, bytes) else str(part).encode()
            self._hash.update(b"%d:" % len(content) + content)

    def add(self, value: Any, where: str, names: frozenset[str]) -> None:
        """``value``, which is read at ``where``; ``names``: of the attributes that may be read of a module."""
        kind = type(value).__qualname__
        if isinstance(value, _PLAIN):
            self.note(kind, repr(value))
        elif isinstance(value, (tuple, list)):
            self.note(kind, len(value))
            for k, element in enumerate(value):
                self.add(element, f"{where}[{k}]", names)
        elif isinstance(value, (set, frozenset)):
            self.note(kind, *sorted(map(repr, value)))
        elif isinstance(value, dict):
            self.note(kind, len(value))
            for key in sorted(value, key=repr):
                self.note(repr(key))
                self.add(value[key], f"{where}[{key!r}]", names)
        elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            self.note(kind, value.dtype.str, value.shape, value.flags.f_contiguous, value.tobytes())
        elif isinstance(value, CodeType):
            self._add_code(value, where)
        elif is_jitted(value):
            self.note("compiled")
            self.add(compile_options(value), f"{where}'s options", names)
            self.add(value.py_func, where, names)
        elif isinstance(value, ModuleType):
            self._add_module(value, where, names)
        elif _of_library(value):
            self.note("library", getattr(value, "__module__", "numpy"), value.__name__)
            self._add_overloads(value, where)
        elif isinstance(value, FunctionType):
            self._add_function(value, where)
        else:
            raise CannotDigest(f"{where} is a {type(value).__module__}.{kind}")

    def _is_new(self, value: object) -> bool:
        new = value not in self._seen
        self.note(self._seen.setdefault(value, len(self._seen)))
        return new

    def _add_code(self, code: CodeType, where: str) -> None:
        self.note("code", code.co_code, code.co_flags, code.co_argcount, code.co_kwonlyargcount)
        self.note(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.add(code.co_consts, where, frozenset())

    def _add_module(self, module: ModuleType, where: str, names: frozenset[str]) -> None:
        self.note("module", module.__name__)
        if not self._is_new((module, names)):
            return
        for name in sorted(names & vars(module).keys()):
            self.note(name)
            if _root(module.__name__) in _LIBRARIES:
                self._add_overloads(vars(module)[name], f"{where}.{name}")
            else:
                self.add(vars(module)[name], f"{where}.{name}", names)

    def _add_function(self, function: FunctionType, where: str) -> None:
        self.note("function")
        if not self._is_new(function):
            return
        code = function.__code__
        source = Path(code.co_filename)
        if source.is_file():  # what Numba may learn about a function from its file cannot be told: all of it
            self.note(source.read_bytes())
        self.add(code, where, frozenset())
        self.add((function.__defaults__, function.__kwdefaults__), f"{where}'s defaults", frozenset())
        names = frozenset(name for part in _nested(code) for name in part.co_names)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.add(cell.cell_contents, f"{where}: {name}", names)
        for name in sorted({name for part in _nested(code) for name in _globals_read(part)}):
            self.note(name)
            if name in function.__globals__:  # else it is Python's
                self.add(function.__globals__[name], f"{where}: {name}", names)
        self._add_overloads(function, where)

    def _add_overloads(self, value: Any, where: str) -> None:
        """What others than this package and Numba have Numba compile in the place of a function."""
        for overload in overloads_of(value):
            if _root(overload.__module__) not in (_OWN, "numba"):
                self.add(overload, f"{where}'s overload", frozenset())


def _root(name: str) -> str:
    return name.partition(".")[0]


def _of_library(value: Any) -> bool:
    """Whether a function, a type or a ufunc is told by its name."""
    name, module = getattr(value, "__name__", ""), getattr(value, "__module__", None) or ""
    if isinstance(value, np.ufunc):  # an old one has no module
        module = "numpy"
    return _root(module) in _LIBRARIES and getattr(sys.modules.get(module), name, None) is value


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _globals_read(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            raise CannotDigest(f"{code.co_name} imports {step.argval} when it runs")
        if step.opname.startswith("LOAD_") and step.opname.endswith(("GLOBAL", "GLOBALS", "NAME")):
            yield step.argval
