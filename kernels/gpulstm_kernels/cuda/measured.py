"""How long the walks take on a device, as measured there: what decides between them before any estimate does.

A table is a JSON file about one device::

    {"device": "NVIDIA H200", "entries": [
        {"dtype": "bfloat16", "cell": "lstm", "directions": 1, "hidden": 512, "batch": 16,
         "backward": false, "walk": "grid", "us": 1.9}, ...]}

``dtype`` is "tf32" for float32 with TF32 products, and ``us`` microseconds a step. Tables that come with the package
are ``measured/<device>.json`` beside this file, the device's name in lower case with dashes; the environment variable
``GPULSTM_MEASURED`` names one that is asked first.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

_KEYS: dict[str, type] = {
    "dtype": str,
    "cell": str,
    "directions": int,
    "hidden": int,
    "batch": int,
    "backward": bool,
    "walk": str,
    "us": float,
}


class Entry(NamedTuple):
    """One measurement; see the module."""

    dtype: str
    cell: str
    directions: int
    hidden: int
    batch: int
    backward: bool
    walk: str
    us: float


def file_name(device: str) -> str:
    """The name of the table that comes with the package for a device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def entries(device: str, table: str | None) -> tuple[Entry, ...]:
    """What was measured on ``device``, from the table at the path ``table`` where it is about that device.

    Raises:
        ValueError: a table that is not what this module describes.
        OSError: there is no file ``table``.
    """
    if table:
        about, found = _table(Path(table))
        if about == device:
            return found
    path = Path(__file__).parent / "measured" / file_name(device)
    return _table(path)[1] if path.is_file() else ()


@functools.cache
def _table(path: Path) -> tuple[str, tuple[Entry, ...]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        device, rows = table["device"], table["entries"]
        if not isinstance(device, str):
            raise TypeError(f"device: expected a name, got {device!r}")
        return device, tuple(_entry(row) for row in rows)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a table of measured walks: {error!r}") from error


def _entry(row: dict[str, Any]) -> Entry:
    for key, kind in _KEYS.items():
        value = row[key]
        fits = type(value) in (int, float) if kind is float else type(value) is kind
        if not fits or (kind in (int, float) and value <= 0):
            raise TypeError(f"{key}: expected {kind.__name__}, got {value!r}")
    return Entry(**{key: row[key] for key in _KEYS})
