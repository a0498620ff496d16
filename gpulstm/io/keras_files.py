"""Keras's files: ``.keras`` archives and HDF5 weights, of Keras 3 and of Keras 2, as recurrent layers of plain arrays.

Read with zipfile, json and h5py: no class is looked up and nothing in a file is run. A file cannot lead to another one
(links, external and virtual data sets are refused) nor declare much more than it holds.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .common import PathLike, WeightsError, read, require

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK"
_RATIO = 64  # times its own size is the most that a file may declare
_ROOM = 1 << 20  # bytes that any file may declare


@dataclass(frozen=True)
class Found:
    """A recurrent layer in a file.

    Attributes:
        name: Keras's name of the layer.
        weights: kernel, recurrent kernel and maybe bias, once a direction, as they lie in the file.
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
        WeightsError: it is cut short, damaged, not one of Keras's, or leads or declares too far.
        ImportError: h5py is not installed.
    """
    h5py = require("h5py", "keras")
    data = read(path)
    words: Any = None
    try:
        if data.startswith(_ZIP):
            data, words = _unpacked(data)
        if not data.startswith(_HDF5):
            raise WeightsError("expected a .keras archive or an HDF5 file")
        with h5py.File(h5py.h5f.open_file_image(data)) as file:
            reader = _Reader(h5py, len(data))
            if "model_config" in file.attrs:
                words = json.loads(file.attrs["model_config"])
            root = reader.child(file, "model_weights") if "model_weights" in file else file
            configs = dict(_configurations(words, ""))
            if "layer_names" in root.attrs:
                return list(_legacy(reader, root, configs))
            places = {id(entry): place for place, entry in enumerate(configs.values())}
            found = list(_current(reader, file, configs))  # the model's order, if it is there
            return sorted(found, key=lambda entry: places.get(id(entry.words), len(places)))
    # what zipfile and h5py raise for damaged files
    except (ValueError, OSError, LookupError, RuntimeError, TypeError, ArithmeticError, EOFError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path}: expected a whole .keras archive, got {error}") from error


def snake_case(name: str) -> str:
    """The name of a group for a layer of the class ``name``, as Keras makes it."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def unique(name: str, taken: dict[str, int]) -> str:
    """``name``, or ``name_1``, ``name_2``, ... where it was given out already."""
    taken[name] = taken.get(name, -1) + 1
    return f"{name}_{taken[name]}" if taken[name] else name


def _unpacked(data: bytes) -> tuple[bytes, Any]:
    """The weights and the configuration in an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        for name in (WEIGHTS, CONFIG):
            if names.count(name) != 1:
                raise WeightsError(f"expected {name} in the archive, got {names[:12]}")
            size = archive.getinfo(name).file_size
            if size > _RATIO * len(data) + _ROOM:
                raise WeightsError(f"{name}: declares {size} bytes in an archive of {len(data)}")
        return archive.read(WEIGHTS), json.loads(archive.read(CONFIG))


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


class _Reader:
    """Access to a file of ``size`` bytes that stays inside it."""

    def __init__(self, h5py: Any, size: int) -> None:
        self.h5py, self.size = h5py, size
        self.seen: set[int] = set()

    def child(self, group: Any, name: str) -> Any:
        """A member of ``group``, None where it has no such."""
        for part in name.split("/"):
            link = group.get(part, getlink=True) if isinstance(group, self.h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, self.h5py.HardLink):
                raise WeightsError(f"{group.name}/{part}: leads out of its place; expected data")
            group = group[part]
        return group

    def groups(self, group: Any) -> Iterator[tuple[str, Any]]:
        """The groups in ``group``, each once in the whole file, so that a ring of links ends."""
        for name in sorted(group, key=_natural):
            child = self.child(group, name)
            if isinstance(child, self.h5py.Group):
                address = self.h5py.h5o.get_info(child.id).addr
                if address not in self.seen:
                    self.seen.add(address)
                    yield name, child

    def array(self, dataset: Any) -> np.ndarray:
        """The values of a data set of floating point."""
        if not isinstance(dataset, self.h5py.Dataset):
            raise WeightsError(f"expected a data set, got {dataset}")
        if dataset.external or dataset.is_virtual:
            raise WeightsError(f"{dataset.name}: its values are in another file; expected them here")
        if dataset.nbytes > _RATIO * self.size + _ROOM:
            raise WeightsError(f"{dataset.name}: declares {dataset.nbytes} bytes in a file of {self.size}")
        if dataset.dtype.kind != "f":
            raise WeightsError(f"{dataset.name}: expected floating point, got dtype {dataset.dtype}")
        return np.asarray(dataset[()]).astype(dataset.dtype.newbyteorder("="), copy=False)

    def variables(self, group: Any) -> list[np.ndarray]:
        """The variables of a layer, in order; none where it has none."""
        own = self.child(group, "vars") if group is not None else None
        count = 0 if own is None else len(own)
        return [self.array(self.child(own, str(position))) for position in range(count)]


def _current(reader: _Reader, group: Any, configs: dict[str, dict[str, Any]], path: str = "") -> Iterator[Found]:
    """Layers as Keras 3 saves them: a group a layer, its weights in ``cell/vars``."""
    own = reader.child(group, "vars")
    given = "" if own is None else str(own.attrs.get("name", ""))
    words = configs.get(path) or configs.get(f"name {given}")
    name = given or str((words or {}).get("config", {}).get("name", "")) or path.rpartition("/")[2]
    both = [reader.child(group, side) for side in ("forward_layer", "backward_layer")]
    if all(side is not None for side in both):
        sides = tuple(reader.variables(reader.child(side, "cell")) for side in both)
        yield Found(name, sides, words, "" if all(sides) else "a Bidirectional of another kind of layer")
    elif reader.child(group, "cell/cells") is not None:
        yield Found(name, (), words, "StackedRNNCells")
    elif weights := reader.variables(reader.child(group, "cell")) or _cudnn(reader, group, path):
        yield Found(name, (weights,), words)
    else:
        for label, child in reader.groups(group):
            yield from _current(reader, child, configs, f"{path}/{label}")


def _cudnn(reader: _Reader, group: Any, path: str) -> list[np.ndarray]:
    """The variables of a CuDNNLSTM, which has no cell."""
    return reader.variables(group) if path.rpartition("/")[2].startswith("cu_dnnlstm") else []


def _legacy(reader: _Reader, root: Any, configs: dict[str, dict[str, Any]]) -> Iterator[Found]:
    """Layers as Keras 2 saved them to HDF5: a group a layer that lists the names of its weights."""
    for name in map(_text, root.attrs["layer_names"]):
        group = reader.child(root, name)
        names = [] if group is None else [_text(entry) for entry in group.attrs.get("weight_names", [])]
        kinds = [entry.rpartition("/")[2].partition(":")[0] for entry in names]
        count = kinds.count("recurrent_kernel")
        if not count:
            continue
        weights = [reader.array(reader.child(group, entry)) for entry in names]
        half = len(weights) // count
        expected = ["kernel", "recurrent_kernel", "bias"][:half] * count
        one = count == 1 or (count == 2 and all("backward" in entry for entry in names[half:]))
        why_not = "" if kinds == expected and one else f"a layer of the weights {names}"
        parts = tuple(weights[at : at + half] for at in range(0, len(weights), half))
        yield Found(name, parts, configs.get(f"name {name}"), why_not)


def _natural(name: str) -> tuple[str, int]:
    """Sorts ``lstm_10`` behind ``lstm_9``."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdecimal() else (name, 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
