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
        "abs exp hard_sigmoid log maximum minimum named relu sigmoid softplus sqrt tanh where check show cell register"
    )
    for name in functions.split():
        assert name in cells.__all__
        assert re.search(rf"\b{name}\b", PAGE), name


def test_what_does_not_exist_yet_does_not_exist() -> None:
    """The page is to be changed with the language."""
    for name in ("product", "row_mean"):
        assert f"`{name}`" in PAGE
        assert not hasattr(cells, name)
    for keyword in ("x_gates", "h_gates", "params", "inputs"):
        assert f"`{keyword}`" in PAGE
        with pytest.raises(TypeError, match=keyword):
            gpulstm.cell(gates="a", **{keyword: "b"})

    def reads_h(x: Any, s: Any) -> Any:
        return x.a + s.h, {}

    with pytest.raises(cells.CellError, match="expected one of the states that are declared, none, got 'h'"):
        gpulstm.cell(gates="a")(reads_h)


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
