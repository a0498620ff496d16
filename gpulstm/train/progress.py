"""What a run shows and records: a progress bar on a terminal, and one row of metrics a step in files."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

_REFRESH = 0.1  # seconds between two drawings of the bar
_DELAY = 0.5  # seconds that work may take before a bar appears for it


class Progress:
    """A bar over ``steps``, or over ``minutes`` of time, with loss, tokens/s and time left; it begins at the
    step and second at which a run is resumed. Silent when stderr is no terminal or ``shown`` is False.
    """

    def __init__(self, *, steps: int | None, minutes: float | None, step: int, elapsed: float, shown: bool) -> None:
        self._timed = minutes is not None
        self._begun = False
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
        if not self._begun:  # the time that is shown, too, begins now
            self._bar.unpause()
            if not self._timed:
                self._bar.initial = step
            self._begun = True
        self._drawn = now
        self._bar.n = min(elapsed, self._bar.total) if self._timed else step
        texts = [f"step {step}"] if self._timed else []
        texts += [f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in figures.items()]
        self._bar.set_postfix_str(", ".join(texts))

    def wait(self, reason: str) -> None:
        """Say at once what is being waited for."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{reason} …")
            self._drawn = -_REFRESH  # the next update is drawn

    def close(self) -> None:
        """Leave the bar as it is and end the line."""
        if self._bar is not None:
            self._bar.close()


class Bytes:
    """A bar over bytes that are read or looked at, on a terminal, where that takes more than a moment: call it with how
    many of how many are done."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if not self._shown:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=self._what, unit="B", unit_scale=True, leave=False, delay=_DELAY, file=sys.stderr
            )
        self._bar.update(min(done, total) - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class MetricsError(ValueError):
    """Metrics could not be written; the message names the file. Checkpoints are as they were."""


class Log:
    """The metrics of a run in ``out``, in as many formats as are asked for, once it is opened.

    Raises:
        MetricsError: a file could not be written, from any method but ``close``.
    """

    def __init__(self, out: Path | None, columns: Sequence[str]) -> None:
        self._out, self._columns = out, columns
        self._writers: list[Writer] = []

    def open(self, names: Iterable[str], step: int) -> None:
        """Continue after ``step`` in the formats ``names``, see :func:`writers`."""
        self.close()
        assert self._out is not None
        try:
            self._writers = writers(names, self._out, self._columns, step)
        except OSError as error:
            raise _not_written(error, self._out) from error

    def write(self, row: Mapping[str, float]) -> None:
        """One row."""
        for writer in self._writers:
            try:
                writer.write(row)
            except OSError as error:
                raise _not_written(error, writer.file) from error

    def flush(self) -> None:
        """Wait until the disk has all rows."""
        for writer in self._writers:
            try:
                writer.flush()
            except OSError as error:
                raise _not_written(error, writer.file) from error

    def close(self) -> None:
        """Close the files. A full disk is no error here: :meth:`write` or :meth:`flush` raised it before."""
        for writer in self._writers:
            with suppress(OSError):
                writer.close()
        self._writers = []


def _not_written(error: OSError, file: Path) -> MetricsError:
    return MetricsError(
        f"{error.filename or file}: metrics could not be written: {error.strerror or error}; "
        f"checkpoints are untouched, --resume goes on from the last one"
    )


class Writer(Protocol):
    """Takes rows of metrics: numbers by column, "step" among them; absent columns have no value."""

    file: Path

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

        self.file = out / "metrics.jsonl"
        self._stream = _reopen(self.file, step, step_of)

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
        self.file = out / "metrics.csv"
        self._stream = _reopen(self.file, step, step_of, header=self._line(columns))

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
        self.file = out / "tensorboard"
        self._writer = SummaryWriter(str(self.file), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


FORMATS: dict[str, Any] = {"jsonl": Jsonl, "csv": Csv, "tensorboard": TensorBoard}


def _reopen(file: Path, step: int, step_of: Callable[[str], int], header: str = "") -> TextIO:
    """``file`` opened to append, holding ``header`` and the whole rows up to ``step`` that it held before."""
    temporary = file.with_name(f".tmp-{file.name}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(header)
            if step > 0 and file.exists():
                with open(file, encoding="utf-8", errors="replace", newline="\n") as before:
                    stream.writelines(line for line in before if _is_row(line, step, step_of))
        os.replace(temporary, file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(file)) from error
    return open(file, "a", encoding="utf-8", newline="\n", buffering=1)


def _is_row(line: str, step: int, step_of: Callable[[str], int]) -> bool:
    """Whether ``line`` is the whole row of a step up to ``step``."""
    try:
        return line.endswith("\n") and step_of(line) <= step
    # the header, a row that a kill cut short, or none of ours
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def _sync(stream: TextIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
