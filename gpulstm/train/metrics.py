"""What a run records: one row of metrics a step, in files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO


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
        f"checkpoints are untouched, --resume continues from the last one"
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
