"""What a run shows and records: a progress bar on a terminal, and one row of metrics a step in files."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

_REFRESH = 0.1  # seconds between two drawings of the bar


class Progress:
    """A bar over ``steps``, or over ``minutes`` of time, with loss, tokens/s and time left; it begins at the
    step and second where a resumed run goes on. Silent when stderr is no terminal or ``shown`` is False.
    """

    def __init__(self, *, steps: int | None, minutes: float | None, step: int, elapsed: float, shown: bool) -> None:
        self._timed = minutes is not None
        self._drawn = -_REFRESH
        self._bar: Any = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            if minutes is not None:
                form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
                self._bar = tqdm(total=minutes * 60, initial=elapsed, bar_format=form, file=sys.stderr)
            else:
                self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stderr)

    def update(self, step: int, elapsed: float, figures: Mapping[str, float]) -> None:
        """Draw the bar at ``step`` and ``elapsed`` seconds, if the last drawing is old enough."""
        if self._bar is None or (now := time.monotonic()) - self._drawn < _REFRESH:
            return
        self._drawn = now
        self._bar.n = min(elapsed, self._bar.total) if self._timed else step
        texts = [f"step {step}"] if self._timed else []
        texts += [f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in figures.items()]
        self._bar.set_postfix_str(", ".join(texts))

    def close(self) -> None:
        """Leave the bar as it is and end the line."""
        if self._bar is not None:
            self._bar.close()


class Writer(Protocol):
    """Takes rows of metrics: numbers by column, "step" among them; absent columns have no value."""

    def write(self, row: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def writers(names: Iterable[str], out: Path, columns: Sequence[str], step: int) -> list[Writer]:
    """Writers of the formats ``names`` (keys of :data:`FORMATS`) in the directory ``out``.

    Rows beyond ``step`` that are there already are dropped, so that a run resumed at ``step`` records each
    step once.

    Raises:
        ModuleNotFoundError: "tensorboard" without the package tensorboardX.
    """
    return [FORMATS[name](out, columns, step) for name in names]


class Jsonl:
    """``metrics.jsonl``: one JSON object a line."""

    def __init__(self, out: Path, columns: Sequence[str], step: int) -> None:
        def step_of(line: str) -> int:
            return int(json.loads(line)["step"])

        self._stream = _reopen(out / "metrics.jsonl", step, step_of)

    def write(self, row: Mapping[str, float]) -> None:
        self._stream.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        _sync(self._stream)

    def close(self) -> None:
        self._stream.close()


class Csv:
    """``metrics.csv``: a header, then a row a step; a column without a value is empty."""

    def __init__(self, out: Path, columns: Sequence[str], step: int) -> None:
        def step_of(line: str) -> int:
            return int(line.partition(",")[0])

        self._columns = columns
        self._stream = _reopen(out / "metrics.csv", step, step_of, header=self._line(columns))

    def write(self, row: Mapping[str, float]) -> None:
        self._stream.write(self._line([row.get(name, "") for name in self._columns]))

    def flush(self) -> None:
        _sync(self._stream)

    def close(self) -> None:
        self._stream.close()

    @staticmethod
    def _line(values: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()


class TensorBoard:
    """Event files in ``tensorboard/``, one scalar a column."""

    def __init__(self, out: Path, columns: Sequence[str], step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "metrics: 'tensorboard' needs the package tensorboardX: pip install 'gpulstm[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


FORMATS: dict[str, Any] = {"jsonl": Jsonl, "csv": Csv, "tensorboard": TensorBoard}


def _reopen(file: Path, step: int, step_of: Any, header: str = "") -> TextIO:
    """``file`` opened to append, holding ``header`` and the whole rows up to ``step`` that it held before."""
    kept = [header] if header else []
    if step > 0 and file.exists():
        for line in file.read_text("utf-8", errors="replace").splitlines(keepends=True):
            try:
                if line.endswith("\n") and step_of(line) <= step:
                    kept.append(line)
            # the header, a row that a kill cut short, or none of ours
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".tmp-{file.name}")
    temporary.write_text("".join(kept), "utf-8", newline="\n")
    os.replace(temporary, file)
    return open(file, "a", encoding="utf-8", newline="\n", buffering=1)


def _sync(stream: TextIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
