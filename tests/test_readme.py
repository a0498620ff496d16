"""What the README shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(example, names)
    assert "numba_cpu" in capsys.readouterr().out
    assert sorted(names["grads"]) == sorted(names["lstm"].params)  # type: ignore[attr-defined, call-overload]


def test_two_commands() -> None:
    section = README.partition("## Two commands\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    train, test = block.splitlines()
    assert "pip install" in train
    assert "gpulstm train text" in train
    assert "pip install" in test
    assert "pytest" in test


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert [target for target in targets if not (root / target).exists()] == []
