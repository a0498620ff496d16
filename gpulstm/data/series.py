"""Series from CSV files: times a fixed step apart, a target, and other columns of numbers or of a few words.

Gaps are left as NaN here; :mod:`gpulstm.data.forecast_features` fills them forward.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from .. import checks

Done = Callable[[int, int], None]  # is called with how many of how many lines are read

MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}  # cells without a value, in lower case
FORMATS = tuple(
    f"{day}{clock}"
    for day in ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y %m %d", "%Y%m%d")
    for clock in (" %H:%M:%S", " %H:%M", " %H", "")
)
"""Of times, tried in this order where they are not in ISO 8601 or seconds since 1970; one must suit all lines."""
_WORDS = 20  # different values that a column of words may have
_SPREAD = 4  # times as many steps as lines may lie between the first time and the last
_SECONDS = 1e8  # what a time that is one number must exceed to be seconds since 1970, and not a count


@dataclass(frozen=True)
class Series:
    """``times`` (N,) datetime64[s], ``step`` seconds apart; ``columns`` by name, the target's among them.

    A column is (N,) float64 with NaN where a value is missing, or (N,) of str objects with "" there.
    """

    target: str
    times: np.ndarray
    step: int
    columns: dict[str, np.ndarray]
    digest: str
    notes: tuple[str, ...] = ()


def read(
    path: Path, time: str, target: str, columns: Sequence[str] | None = None, progress: Done | None = None
) -> Series:
    """The series in the CSV file at ``path``, whose first line names the columns; delimited by comma, semicolon or tab.

    Args:
        time: the column of times, or several, joined by commas, that together are one: "year,month,day,hour".
        target: the column that is forecast.
        columns: those that help; None takes all that hold numbers or at most 20 different words.

    Raises:
        ValueError: the file cannot be read; a column is missing; a cell is no time or no number; times that do not
            rise or are no fixed step apart. The message names the file, and line and column where there are such.
    """
    content = _content(path)
    names, lines = _table(path, content, progress)
    parts = [part.strip() for part in time.split(",")]
    for argument, wanted in (("time", parts), ("target", [target]), ("columns", columns or ())):
        for name in wanted:
            if name not in names:
                raise ValueError(
                    f"{argument}: {str(path)!r} has no column {checks.shown(name)}; expected one of {', '.join(names)}"
                )
    at = [names.index(part) for part in parts]
    numbers = [number for number, _ in lines]
    times = _times(path, parts, numbers, [" ".join(cells[i].strip() for i in at) for _, cells in lines])
    positions, step, count = _grid(path, numbers, times)
    found, notes = {}, []
    for name in [target, *(names if columns is None else columns)]:
        if name in parts or name in found:
            continue
        i = names.index(name)
        values = _column(path, name, numbers, [cells[i].strip() for _, cells in lines], must=name == target)
        if values is None:
            if columns is not None:
                raise ValueError(f"columns: {str(path)!r}, column {name!r}: expected numbers or at most {_WORDS} words")
            notes.append(f"column {name!r} left out, which holds neither numbers nor a few words")
            continue
        spread = np.full(count, "" if values.dtype == object else math.nan, values.dtype)
        spread[positions] = values
        found[name] = spread
    if np.isnan(found[target]).all():
        raise ValueError(f"target: {str(path)!r}, column {target!r}: expected numbers, found none")
    grid = times[0] + np.arange(count) * np.timedelta64(step, "s")
    if gaps := count - len(lines):
        notes.append(f"{gaps} times are missing")
    return Series(target, grid, step, found, hashlib.sha256(content).hexdigest(), tuple(notes))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"data: could not read {str(path)!r}: {error.strerror}; expected a CSV file") from error


def _table(path: Path, content: bytes, progress: Done | None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the number and cells of every line that is not empty."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"data: {str(path)!r}, line {line}: is no UTF-8; expected a CSV file in UTF-8") from error
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    total = content.count(b"\n") + 1
    lines: list[tuple[int, list[str]]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if cells:
                if len(cells) != len(names):
                    raise ValueError(
                        f"data: {str(path)!r}, line {reader.line_num}: expected {len(names)} columns, as in its first "
                        f"line, got {len(cells)}"
                    )
                lines.append((reader.line_num, cells))
            if progress is not None and reader.line_num % 10000 == 0:
                progress(reader.line_num, total)
    except csv.Error as error:
        raise ValueError(f"data: {str(path)!r}, line {reader.line_num}: {error}; expected a CSV file") from error
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"data: {str(path)!r}, line 1: expected a name once for each column, got {twice[0]!r} again")
    if len(lines) < 2:
        raise ValueError(f"data: {str(path)!r}: expected a line of names and at least two of values, got {len(lines)}")
    if progress is not None:
        progress(total, total)
    return names, lines


def _iso(text: str) -> datetime:
    when = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    return when if when.tzinfo is None else when.astimezone(timezone.utc).replace(tzinfo=None)


def _since_1970(text: str) -> datetime:
    seconds = float(text)
    if not _SECONDS <= seconds < 1e11:
        raise ValueError(f"{text} is no number of seconds since 1970")
    return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)


def _times(path: Path, columns: Sequence[str], numbers: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """(N,) datetime64[s], each later than the one before."""
    parsers: list[Callable[[str], datetime]] = [_iso, _since_1970]
    parsers += [lambda text, form=form: datetime.strptime(text, form) for form in FORMATS]  # type: ignore[misc]
    tried = (_parsed(parse, texts) for parse in parsers)
    times: list[datetime] = []
    for found in tried:
        times = max(times, found, key=len)
        if len(times) == len(texts):
            break
    at = len(times)

    def where(i: int) -> str:
        return f"data: {str(path)!r}, line {numbers[i]}, column {','.join(columns)}: "

    if at < len(texts):
        expected = "a time such as 2010-12-31 23:00" + (f", in the form of {texts[0]!r}" if at else "")
        raise ValueError(where(at) + f"expected {expected}, got {checks.shown(texts[at])}")
    seconds = np.array(times, "datetime64[s]")
    if len(wrong := np.flatnonzero(seconds[1:] <= seconds[:-1])):
        before, after = seconds[wrong[0] : wrong[0] + 2]
        raise ValueError(
            where(int(wrong[0]) + 1) + f"expected a time after {before}, that of the line before, got {after}"
        )
    return seconds


def _parsed(parse: Callable[[str], datetime], texts: Sequence[str]) -> list[datetime]:
    """The times of ``texts`` up to the first that is none in this form."""
    times: list[datetime] = []
    with suppress(ValueError, OverflowError):
        for text in texts:
            times.append(parse(text))
    return times


def _grid(path: Path, numbers: Sequence[int], times: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Which step of a regular grid each time is, the seconds between two, and how many there are."""
    seconds = (times - times[0]).astype(np.int64)
    steps, counts = np.unique(np.diff(seconds), return_counts=True)
    step = int(steps[counts.argmax()])
    if len(wrong := np.flatnonzero(seconds % step)):
        i = int(wrong[0])
        raise ValueError(
            f"data: {str(path)!r}, line {numbers[i]}: the time {times[i]} is no multiple of {step} s after the first, "
            f"{times[0]}; expected times a fixed step apart"
        )
    positions = seconds // step
    count = int(positions[-1]) + 1
    if count > _SPREAD * len(times):
        raise ValueError(
            f"data: {str(path)!r}: has {len(times)} times, {step} s apart, from {times[0]} to {times[-1]}; expected at "
            f"least a quarter of the {count} in between"
        )
    return positions, step, count


def _column(path: Path, name: str, numbers: Sequence[int], cells: Sequence[str], must: bool) -> np.ndarray | None:
    """The values of a column: numbers, or words if they are few; None if they are neither."""
    missing = [cell.lower() in MISSING for cell in cells]
    values = np.full(len(cells), math.nan)
    for i, cell in enumerate(cells):
        if missing[i]:
            continue
        with suppress(ValueError):
            values[i] = float(cell)
        if not math.isfinite(values[i]):
            if must or np.isfinite(values[:i]).any():
                raise ValueError(
                    f"data: {str(path)!r}, line {numbers[i]}, column {name!r}: expected a number, "
                    f"got {checks.shown(cell)}"
                )
            break
    else:
        return values
    words = np.array(["" if gone else cell for gone, cell in zip(missing, cells, strict=True)], object)
    return words if len(set(words)) <= _WORDS else None
