"""Time series with a class each, from files: the .ts format of the UCR and UEA archives, and folders of CSV files.

A .ts file has comments (#), a header (@...) and one series a line: its channels, of numbers between commas, and its
class, with colons between. In a folder each subfolder is a class and each .csv file in it a series, whose rows are
steps. Data in Python's pickle format, such as the watch gestures of seglearn, is never read: it may run any code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import checks

_T = TypeVar("_T")
UNKNOWN = "?"  # what .ts files have in the place of a class, or of a value, that is not known
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Series:
    """One series: values (T, F) float64, its class (None where that is not known), and where it is from."""

    values: np.ndarray
    label: str | None
    where: str


def read(
    data: str | Path,
    name: str = "data",
    taken: Callable[[bytes], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Series]:
    """The series in ``data``: a .ts file, a .csv file, a folder of .csv files, or one with a subfolder a class.

    Args:
        name: of the argument that ``data`` is, for messages.
        taken: is called with the bytes of each file, in order.
        progress: is told how many bytes of how many were read.

    Raises:
        ValueError: nothing there, a file that cannot be read or is not in its format; the message names file and line.
        TypeError: ``data`` is no path.
    """
    root = checks.path(data, name)
    if root.is_dir():
        files = _files(root, name)
    elif root.suffix.lower() in (".ts", ".csv"):
        files = [(root, None)]
    else:
        raise ValueError(f"{name}: expected a .ts file, a .csv file or a folder, got {str(root)!r}")
    found: list[Series] = []
    names: list[str] | None = None
    sizes = [_tried(path, name, path.stat).st_size for path, _ in files]
    total = sum(sizes)
    for (path, label), done in zip(files, accumulate(sizes), strict=True):
        text = _text(path, name, taken)
        if progress is not None:
            progress(done, total)
        if path.suffix.lower() == ".ts":
            found += _ts(path, text)
            continue
        values, columns = _csv(path, text)
        if names and columns and columns != names:
            raise ValueError(f"{path}: expected the columns {checks.shown(names)}, got {checks.shown(columns)}")
        names = names or columns
        found.append(Series(values, label, str(path)))
    channels = found[0].values.shape[1]
    for series in found:
        if series.values.shape[1] != channels:
            raise ValueError(
                f"{series.where}: expected {channels} channels, as {found[0].where} has, got {series.values.shape[1]}"
            )
    return found


def _files(root: Path, name: str) -> list[tuple[Path, str | None]]:
    """The .csv files of a folder with the class of each, in the order of their names."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        found: list[tuple[Path, str | None]] = [(path, folder.name) for folder in folders for path in _csvs(folder)]
        loose = _csvs(root)
    except OSError as error:
        raise ValueError(f"{name}: could not read {error.filename!r}: {error.strerror}") from error
    if found and loose:
        raise ValueError(f"{loose[0]}: expected each .csv file in the subfolder of its class, as {found[0][0]} is")
    if not found and not loose:
        raise ValueError(f"{name}: expected .csv files in {str(root)!r}, in a subfolder for each class, found none")
    return found or [(path, None) for path in loose]


def _csvs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file())


def _tried(path: Path, name: str, access: Callable[[], _T]) -> _T:
    """What ``access`` to the file at ``path`` gives."""
    try:
        return access()
    except OSError as error:
        raise ValueError(f"{name}: could not read {str(path)!r}: {error.strerror}") from error


def _text(path: Path, name: str, taken: Callable[[bytes], None] | None) -> str:
    content = _tried(path, name, path.read_bytes)
    if taken is not None:
        taken(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: expected text in UTF-8, got the byte {content[error.start]:#04x}") from None


def _ts(path: Path, text: str) -> list[Series]:
    """The series of a .ts file."""
    header: dict[str, list[str]] = {}
    found: list[Series] = []
    begun = False
    for number, line in enumerate(text.splitlines(), 1):
        line, where = line.strip(), f"{path}:{number}"
        if not line or line.startswith("#"):
            continue
        if not begun:
            key, *values = line[1:].split() or [""]
            if not line.startswith("@") or not key:
                raise ValueError(f"{where}: expected a line of the header, or @data before the series")
            header[key.lower()] = values
            begun = key.lower() == "data"
            if begun:
                _check_header(header, where)
            continue
        found.append(_ts_series(line, header, where))
    if not found:
        raise ValueError(f"{path}: expected series after @data, found none")
    return found


def _check_header(header: dict[str, list[str]], where: str) -> None:
    if header.get("timestamps", ["false"])[0].lower() == "true":
        raise ValueError(f"{where}: expected series without time stamps, got @timeStamps true")
    if "targetlabel" in header:
        raise ValueError(f"{where}: expected @classLabel, got @targetLabel, which is for regression")


def _ts_series(line: str, header: dict[str, list[str]], where: str) -> Series:
    labels = header.get("classlabel", ["false"])
    channels, label = line.split(":"), None
    if labels[0].lower() == "true":
        label = channels.pop().strip()
        if not channels:
            raise ValueError(f"{where}: expected a class after a colon at the end, got {checks.shown(label)}")
        if label == UNKNOWN:
            label = None
        elif not label or (labels[1:] and label not in labels[1:]):
            known = f"one of {checks.shown(labels[1:])}" if labels[1:] else "a name"
            raise ValueError(f"{where}: expected a class, {known}, got {checks.shown(label)}")
    if (dimensions := header.get("dimensions")) and dimensions != [str(len(channels))]:
        raise ValueError(f"{where}: expected {' '.join(dimensions)} channels, as the header says, got {len(channels)}")
    rows = []
    for channel, values in enumerate(channels, 1):
        if not values.strip():
            raise ValueError(f"{where}: channel {channel} is empty; expected numbers")
        rows.append(_numbers(values.split(","), f"{where}: channel {channel}"))
        if len(rows[-1]) != len(rows[0]):
            raise ValueError(
                f"{where}: channel {channel}: expected {len(rows[0])} values, as channel 1 has, got {len(rows[-1])}"
            )
    return Series(np.stack(rows, axis=1), label, where)


def _csv(path: Path, text: str) -> tuple[np.ndarray, list[str] | None]:
    """The values (T, F) of a .csv file, and the names of its columns if it has a header."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the file is empty; expected a row of numbers for each step")
    number, first = lines[0]
    delimiter = max(_DELIMITERS, key=first.count)
    names = [name.strip() for name in first.split(delimiter)]
    header = not any(map(_is_number, names)) and UNKNOWN not in names
    rows = []
    for number, line in lines[header:]:
        values = line.split(delimiter)
        if len(values) != len(names):
            raise ValueError(
                f"{path}:{number}: expected {len(names)} columns, as line {lines[0][0]} has, got {len(values)}"
            )
        rows.append(_numbers(values, f"{path}:{number}"))
    if not rows:
        raise ValueError(f"{path}: a header without rows; expected a row of numbers for each step")
    return np.stack(rows), names if header else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(texts: Sequence[str], where: str) -> np.ndarray:
    """Finite numbers from their texts."""
    try:
        values = np.array(texts, np.float64)
    except ValueError:
        wrong = next(text for text in texts if not _is_number(text)).strip()
        missing = " for a missing value" if wrong in ("", UNKNOWN) else ""
        raise ValueError(f"{where}: expected a number, got {checks.shown(wrong)}{missing}") from None
    if not np.isfinite(values).all():
        wrong = texts[int(np.flatnonzero(~np.isfinite(values))[0])].strip()
        raise ValueError(f"{where}: expected a finite number, got {checks.shown(wrong)}")
    return values


def in_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Each class once, numbers in their names by value."""
    return tuple(
        sorted(
            set(labels),
            key=lambda label: [
                (not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in re.findall(r"\d+|\D+", label)
            ],
        )
    )
