"""Keras's files: ``.keras`` archives and HDF5 weights, of Keras 3 and of Keras 2, as recurrent layers of plain arrays.

Archives are read with zipfile and json here, HDF5 in a process of its own (:mod:`gpulstm.io.hdf5`).
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import parsing
from .common import PathLike, WeightsError, path_of, read, require
from .hdf5_child import allowed

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK"
# what zipfile raises for damaged files, besides ValueError
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, LookupError, RuntimeError, EOFError, struct.error)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may take gigabytes to unpack


@dataclass(frozen=True)
class Found:
    """A recurrent layer in a file.

    Attributes:
        name: Keras's name of the layer.
        weights: kernel, recurrent kernel and maybe bias, once a direction, as stored in the file.
        words: the layer's entry in the model's configuration, None where the file has none.
        why_not: for a layer that has no such weights, what it is.
    """

    name: str
    weights: tuple[list[np.ndarray], ...]
    words: dict[str, Any] | None
    why_not: str = ""


def found_in(path: PathLike) -> list[Found]:
    """Every recurrent layer in the file at ``path``: in the model's order, without one by class and number.

    Raises:
        WeightsError: it is cut short, damaged, not one of Keras's, links to other data, or declares too many bytes.
        ImportError: h5py is not installed.
    """
    from . import hdf5  # which starts processes: not for every import of gpulstm

    require("h5py", "keras")
    start = read(path, length=len(_HDF5))
    text: str | bytes | None = None
    try:
        if start.startswith(_ZIP):
            data, text = _unpacked(read(path))
            layers, inside = hdf5.layers(data)
        elif start == _HDF5:
            layers, inside = hdf5.layers(path_of(path))
        else:
            raise WeightsError("expected a .keras archive or an HDF5 file")
        text = inside or text
        configs = {} if text is None else dict(_configurations(_words(text), ""))
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    found = [_found(entry, configs) for entry in layers]
    if any(entry["path"] is not None for entry in layers):  # the model's order, if it is there
        places = {id(entry): place for place, entry in enumerate(configs.values())}
        found.sort(key=lambda entry: places.get(id(entry.words), len(places)))
    return found


def snake_case(name: str) -> str:
    """The name of a group for a layer of the class ``name``, as Keras makes it."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def unique(name: str, taken: dict[str, int]) -> str:
    """``name``, or ``name_1``, ``name_2``, ... where it was given out already."""
    taken[name] = taken.get(name, -1) + 1
    return f"{name}_{taken[name]}" if taken[name] else name


def _unpacked(data: bytes) -> tuple[bytes, bytes]:
    """The weights and the configuration in an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            for name in (WEIGHTS, CONFIG):
                if names.count(name) != 1:
                    raise WeightsError(f"expected {name} in the archive, got {names[:12]}")
                part = archive.getinfo(name)
                if part.file_size > allowed(len(data)):
                    raise WeightsError(f"{name}: declares {part.file_size} bytes in an archive of {len(data)}")
                if part.compress_type not in _METHODS:
                    raise WeightsError(f"{name}: expected it stored or deflated, got method {part.compress_type}")
            return archive.read(WEIGHTS), archive.read(CONFIG)
    except _DAMAGED as error:
        raise WeightsError(f"expected a whole .keras archive, got {error!r}") from error


def _words(text: str | bytes) -> Any:
    try:
        return parsing.loads(text)
    except ValueError as error:
        raise WeightsError(f"configuration: {error}") from error


def _found(entry: dict[str, Any], configs: dict[str, dict[str, Any]]) -> Found:
    """The layer, with its entry in the configuration."""
    path, given = entry["path"], entry["name"]
    words = configs.get(path) or configs.get(f"name {given}")
    name = given or str((words or {}).get("config", {}).get("name", "")) or path.rpartition("/")[2]
    return Found(name, tuple(entry["weights"]), words, entry["why_not"])


def _configurations(words: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of the configuration, by the path of their group in the weights and by name."""
    config = words.get("config") if isinstance(words, dict) else None
    if not isinstance(config, dict):
        return
    yield path, words
    yield f"name {config.get('name')}", words
    taken: dict[str, int] = {}
    layers = config.get("layers")
    for entry in layers if isinstance(layers, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("class_name"), str):
            yield from _configurations(entry, f"{path}/layers/{unique(snake_case(entry['class_name']), taken)}")
    if words.get("class_name") != "Bidirectional" and "layer" in config:
        yield from _configurations(config["layer"], f"{path}/layer")
