"""Runs of the command line in this process, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from gpulstm.cli import cli

MODEL = ["--embed=5", "--hidden=9", "--layers=2", "--dropout=0.2", "--batch=3", "--seq-len=11"]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def train(*arguments: Any) -> Result:
    return invoke("train", "text", *arguments)


def error(result: Result) -> str:
    """The one line that a mistake is answered with."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert "Usage" not in result.output
    assert "Traceback" not in result.output
    return line


def last_json(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


def written(root: Path) -> Path:
    """``root``, with the files of a small data set in it."""
    for number in range(30):
        text = "".join(f"{number} times {i} is {number * i}, größer als {i}.\n" for i in range(15))
        (root / f"{number}.txt").write_text(text, "utf-8")
    return root
