"""Compiled kernels on disk: damaged files, folders that cannot be written, and what makes a kernel another one."""

from __future__ import annotations

import errno
import importlib
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest

from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cells.rnn import rnn
from gpulstm_kernels.cpu.codegen import compilation, disk_cache, numba_internals
from gpulstm_kernels.cpu.codegen.compilation import CellType, entry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """Where kernels are kept from here on, about which nothing was logged."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(disk_cache, "_said", set())
    caplog.set_level(logging.WARNING, "gpulstm")
    return tmp_path / "kept"


def twice() -> Any:
    """A tiny kernel, as a new process has it: nothing of it is compiled."""

    def double(x):
        return 2 * x

    return entry(double)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def is_kept() -> bool:
    """Whether a new process finds the kernel for an int on disk."""
    kernel = twice()
    assert kernel(3) == 6
    return bool(kernel.stats.cache_hits)


class Bomb:
    """A pickle of something else."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded that nobody checked",))


def _flipped(position: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        at = int(position * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, size=size: content[:size] for size in (0, 1, 20, 49, 100, -1)),
        *map(_flipped, (0, 0.005, 0.1, 0.3, 0.5, 0.7, 0.9, 1)),
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: pickle.dumps(Bomb()),
        lambda content: content[:49] + pickle.dumps(Bomb()),
    ],
)
def test_a_damaged_file_is_compiled_anew_and_replaced(
    damage: Callable[[bytes], bytes], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_kept()
    assert is_kept()
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert not is_kept()
    assert [record.getMessage() for record in caplog.records] == [
        f"kernel cache {path.parent}: damaged files are compiled anew and replaced: {path.name}"
    ]
    assert is_kept()
    assert files(folder) == [path]


def test_a_file_of_another_kernel_is_damaged(folder: Path) -> None:
    kernel = twice()
    kernel(3)
    (of_int,) = files(folder)
    assert kernel(1.5) == 3
    (of_float,) = set(files(folder)) - {of_int}
    of_float.replace(of_int)
    assert not is_kept()


def test_a_folder_that_is_none_any_more(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one that became read-only after the import: even root cannot write there."""
    kernel, other = twice(), twice()
    folder = Path(kernel._cache.cache_path)
    folder.rmdir()
    folder.write_text("")
    assert (kernel(3), kernel(1.5), other(3)) == (6, 3, 6)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(
        f"kernel cache {folder}: kernels cannot be written and are compiled in every process: [Errno"
    )


def test_a_full_disk(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays, and of what is not whole nothing is left."""
    twice()(3)
    before = files(folder)

    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        kernel = twice()
        assert (kernel(1.5), kernel(np.float32(1.5))) == (3, 3)
    assert files(folder) == before
    (record,) = caplog.records
    assert "cannot be written" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    assert is_kept()


def test_a_file_that_cannot_be_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    twice()(3)
    (path,) = files(folder)
    path.unlink()
    path.mkdir()
    assert not is_kept()
    assert {record.getMessage().split(": ")[1] for record in caplog.records} == {
        "kernels cannot be read and are compiled anew",
        "kernels cannot be written and are compiled in every process",
    }


# --- what the maths reads -----------------------------------------------------------------------------------------

MATHS = """
import constants_of_cell
import helpers_of_cell as helpers
import numpy as np
import overloads_of_cell
from constants_of_cell import BIAS, TABLE
from gpulstm_kernels.cells.activations import tanh
from helpers_of_cell import hard

SLOPE = 0.5

def scaled(by, offset=0.0):
    def scale(x):
        return x * by + offset
    return scale

scale = scaled(2.0)

def forward(gates, states, compiles=False):
    (a,) = gates
    a = tanh(a * SLOPE + BIAS + TABLE[0]) + constants_of_cell.nested.DEEP
    if compiles:  # which takes a while
        a = hard(a)
    return np.i0(a) + helpers.soft(a) + scale(a), (), ()

def backward(dh, dstates, h, saved, states, previous):
    return (dh * constants_of_cell.BACK,), ()
"""
FILES = {
    "maths_of_cell": MATHS,
    "constants_of_cell": "import numpy as np\nimport nested_of_cell as nested\n"
    "BIAS = 0.25\nTABLE = (np.float32(0.1), 2)\nBACK = 1.0\nOTHER = 7\n",
    "nested_of_cell": "import constants_of_cell\nDEEP = 1.0\n",
    "helpers_of_cell": "import numba\nfrom constants_of_cell import BIAS as OWN\n"
    "@numba.njit\ndef hard(x):\n    return x * 0.2 + OWN\n"
    "def soft(x):\n    return deeper(x)\n"
    "def deeper(x, by=0.5):\n    return x * by\n",
    "overloads_of_cell": "from helpers_of_cell import deeper\nfrom numba.extending import overload\n"
    "@overload(deeper)\ndef compiled(x, by=0.5):\n    return lambda x, by=0.5: x * 0.5\n",
}


@pytest.fixture
def type_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: the type of a cell whose files are changed so (file: (old, new))."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be found to be fresh within a second
    cell = Cell("read", gates=("a",), states=(), saved=0, maths="maths_of_cell")

    def type_of(changed: dict[str, tuple[str, str]] | None = None, declared: Cell = cell) -> CellType:
        for name, text in FILES.items():
            old, new = (changed or {}).get(name, ("", ""))
            assert old in text
            (tmp_path / f"{name}.py").write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        result: CellType = compilation._cell_type.__wrapped__(declared)
        for name in FILES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        return result

    return type_of


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("maths_of_cell", "SLOPE = 0.5", "SLOPE = 0.6"),
        ("maths_of_cell", "scaled(2.0)", "scaled(2.5)"),
        ("constants_of_cell", "BIAS = 0.25", "BIAS = 0.75"),
        ("constants_of_cell", "float32(0.1)", "float32(0.2)"),
        ("constants_of_cell", "float32(0.1)", "float64(0.1)"),
        ("constants_of_cell", "BACK = 1.0", "BACK = 2.0"),
        ("nested_of_cell", "DEEP = 1.0", "DEEP = 2.0"),
        ("helpers_of_cell", "0.2", "0.3"),
        ("helpers_of_cell", "by=0.5", "by=0.6"),
        ("helpers_of_cell", "x * by", "x + by"),
        ("helpers_of_cell", "njit", "njit(fastmath=True)"),
        ("overloads_of_cell", "x * 0.5", "x * 0.6"),
    ],
)
def test_whatever_the_maths_reads_makes_another_kernel(type_of: Any, file: str, old: str, new: str) -> None:
    assert type_of({file: (old, new)}).name != type_of().name


def test_what_the_maths_does_not_read_makes_no_other_kernel(type_of: Any) -> None:
    """Else kernels would be compiled again and again."""
    first = type_of()
    assert disk_cache.NOT_CACHED not in first.name
    assert type_of().name == first.name
    assert type_of({"constants_of_cell": ("OTHER = 7", "OTHER = 8")}).name == first.name


def test_an_overload_of_numpys_makes_another_kernel(type_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def registered(by: float) -> Any:
        template = SimpleNamespace(_overload_func=lambda x: lambda x: x * by)
        return SimpleNamespace(globals=[(np.i0, SimpleNamespace(templates=[template]))])

    names = set()
    for by in (0.5, 0.6, 0.5):
        monkeypatch.setattr(numba_internals, "builtin_registry", registered(by))
        names.add(type_of().name)
    assert len(names) == 2


def test_what_nobody_can_digest_is_not_kept(
    type_of: Any, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a cell's kernels are compiled in every process; which is said once."""
    change = {"constants_of_cell": ("BIAS = 0.25", "from types import SimpleNamespace\nBIAS = SimpleNamespace(x=1)")}
    change |= {"helpers_of_cell": ("OWN\n", "OWN\nOWN = 1\n"), "maths_of_cell": ("+ BIAS ", "+ BIAS.x ")}
    first, second = type_of(change), type_of(change)
    assert first.name != second.name
    assert [record.getMessage() for record in caplog.records] == [
        "cell read: its kernels are compiled in every process, since maths_of_cell.forward: BIAS is a "
        "types.SimpleNamespace"
    ] * 2

    def gates(cell):
        return cell.n_gates

    for typ, count in ((first, 0), (compilation._cell_type(rnn), 1)):
        monkeypatch.setattr(compilation, "_cell_type", lambda cell, typ=typ: typ)
        assert entry(gates)(rnn) == 1
        assert len(files(folder)) == count
