"""The blocks of docs/cells.md run in order, and print what stands below them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import gpulstm
from gpulstm import cells

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cells.md").read_text("utf-8")
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def without_errors(text: str) -> str:
    """``text`` without the sizes of rounding errors, which differ between machines."""
    return re.sub(r"\d(\.\d+)?e-\d\d", "ERROR", text).strip()


@pytest.mark.parametrize("backend", ["reference", pytest.param("numba_cpu", marks=pytest.mark.slow)])
def test_the_page_runs(backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    derived = {name: cell for name, cell in cells._cells.items() if isinstance(cell, cells.TracedCell)}
    monkeypatch.setattr(cells, "_cells", derived)  # without what other tests of the process have registered
    names: dict[str, Any] = {"__name__": "my_cells"}
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python\n") >= 8
    assert sum(bool(printed) for _, printed in blocks) == PAGE.count("```text\n")
    with gpulstm.use_backend(backend):
        for code, printed in blocks:
            exec(compile(code, "my_cells.py", "exec"), names)
            assert without_errors(capsys.readouterr().out) == without_errors(printed)
    assert isinstance(names["coupled"], cells.TracedCell)


def test_every_function_of_the_language_is_named() -> None:
    functions = (
        "abs exp hard_sigmoid log maximum minimum named relu sigmoid softplus sqrt tanh where product row_mean",
        "check show cell register",
    )
    for name in " ".join(functions).split():
        assert name in cells.__all__
        assert re.search(rf"\b{name}\b", PAGE), name


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
