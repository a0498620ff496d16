"""Reads one of Keras's HDF5 files, in a process of its own: damaged bytes can make HDF5's library loop for ever.

:mod:`gpulstm.io.hdf5` starts this script by its path and ends it when it takes too long. It reads from stdin which
file to open, and writes a line of JSON and the bytes of arrays to stdout. No class is looked up and nothing in a file
is run; a file cannot lead to another one (links, external and virtual data sets are refused) nor declare much more
than it holds.

    stdin   a line of JSON: {"path": sys.path, "file": its name or null, "size": bytes}; without a name, the file
    stdout  READY once the libraries are there; a line of JSON: {"layers", "words", "arrays": [{"size", "shape"}, ...]}
            or {"error": text}; the arrays end to end, little-endian
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

READY = b"ready\n"
_RATIO = 64  # times its own size is the most that a file may declare,
_MORE = 1 << 30  # or that many bytes more than its size;
_ROOM = 1 << 20  # bytes that any file may declare
_SPARE = 1 << 28  # bytes of memory that the library may take besides
_DEPTH = 64  # groups inside each other
# what h5py raises for damaged files, and where it cannot be imported
_DAMAGED = (ValueError, OSError, LookupError, RuntimeError, TypeError, ArithmeticError, MemoryError, ImportError)


class _Refused(ValueError):
    """A file that is not read; the text says why."""


def allowed(size: int) -> int:
    """Bytes that a file of ``size`` bytes may declare in all."""
    return min(_RATIO * size, size + _MORE) + _ROOM


class _Reader:
    """Access to a file of ``size`` bytes that stays inside it."""

    def __init__(self, h5py: Any, size: int) -> None:
        self.h5py, self.size = h5py, size
        self.left = allowed(size)
        self.seen: set[int] = set()
        self.arrays: list[np.ndarray] = []

    def child(self, group: Any, name: str) -> Any:
        """A member of ``group``, None where it has no such."""
        for part in name.split("/"):
            link = group.get(part, getlink=True) if isinstance(group, self.h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, self.h5py.HardLink):
                raise _Refused(f"{group.name}/{part}: leads out of its place; expected data")
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

    def array(self, dataset: Any) -> int:
        """The place in ``arrays`` of the values of a data set of floating point."""
        if not isinstance(dataset, self.h5py.Dataset):
            raise _Refused(f"expected a data set, got {dataset}")
        if dataset.external or dataset.is_virtual:
            raise _Refused(f"{dataset.name}: its values are in another file; expected them here")
        if dataset.shape is None:
            raise _Refused(f"{dataset.name}: expected values, got none")
        self.left -= dataset.nbytes
        if self.left < 0:
            raise _Refused(f"{dataset.name}: declares {dataset.nbytes} bytes in a file of {self.size}")
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
            raise _Refused(f"{dataset.name}: expected floating point, got dtype {dataset.dtype}")
        little = dataset.dtype.newbyteorder("<")
        self.arrays.append(dataset.astype(little)[()].reshape(dataset.shape))
        return len(self.arrays) - 1

    def variables(self, group: Any) -> list[int]:
        """The variables of a layer, in order; none where it has none."""
        own = self.child(group, "vars") if group is not None else None
        count = 0 if own is None else len(own)
        return [self.array(self.child(own, str(position))) for position in range(count)]


def _current(reader: _Reader, group: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Layers as Keras 3 saves them: a group a layer, its weights in ``cell/vars``."""
    if path.count("/") > _DEPTH:
        raise _Refused(f"{path[:80]}: groups lie inside each other deeper than {_DEPTH}")
    own = reader.child(group, "vars")
    entry = {"path": path, "name": "" if own is None else _text(own.attrs.get("name", "")), "why_not": ""}
    both = [reader.child(group, side) for side in ("forward_layer", "backward_layer")]
    if all(side is not None for side in both):
        sides = [reader.variables(reader.child(side, "cell")) for side in both]
        why_not = "" if all(sides) else "a Bidirectional of another kind of layer"
        yield entry | {"weights": sides, "why_not": why_not}
    elif reader.child(group, "cell/cells") is not None:
        yield entry | {"weights": [], "why_not": "StackedRNNCells"}
    elif weights := reader.variables(reader.child(group, "cell")) or _cudnn(reader, group, path):
        yield entry | {"weights": [weights]}
    else:
        for label, child in reader.groups(group):
            yield from _current(reader, child, f"{path}/{label}")


def _cudnn(reader: _Reader, group: Any, path: str) -> list[int]:
    """The variables of a CuDNNLSTM, which has no cell."""
    return reader.variables(group) if path.rpartition("/")[2].startswith("cu_dnnlstm") else []


def _legacy(reader: _Reader, root: Any) -> Iterator[dict[str, Any]]:
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
        why_not = "" if kinds == expected and one else f"a layer of the weights {names[:12]}"
        parts = [weights[at : at + half] for at in range(0, len(weights), half)]
        yield {"path": None, "name": name, "weights": parts, "why_not": why_not}


def _natural(name: str) -> tuple[str, int]:
    """Sorts ``lstm_10`` behind ``lstm_9``."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdecimal() and len(number) < 20 else (name, 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read(h5py: Any, stream: Any, size: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    with h5py.File(stream, "r") as file:
        reader = _Reader(h5py, size)
        words = _text(file.attrs["model_config"]) if "model_config" in file.attrs else None
        root = reader.child(file, "model_weights") if "model_weights" in file else file
        layers = list(_legacy(reader, root) if "layer_names" in root.attrs else _current(reader, file))
        shapes = [{"size": array.itemsize, "shape": array.shape} for array in reader.arrays]
        return {"layers": layers, "words": words, "arrays": shapes}, reader.arrays


def _limit_memory(size: int) -> None:
    """Let the process take as much more memory than now as reading a whole file takes; not every system can do that."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + _SPARE + 4 * size + allowed(size)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):  # another system, or a lower limit stands already
        pass


def main() -> None:
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    request = json.loads(stdin.readline())
    sys.path[:] = request["path"]
    arrays: list[np.ndarray] = []
    try:
        import h5py

        stdout.write(READY)
        stdout.flush()
        size, name = request["size"], request["file"]
        _limit_memory(size)
        with open(name, "rb") if name is not None else io.BytesIO(stdin.read(size)) as stream:
            answer, arrays = _read(h5py, stream, size)
    except _DAMAGED as error:
        answer = {"error": str(error) or type(error).__name__}
    stdout.write(json.dumps(answer).encode() + b"\n")
    for array in arrays:
        stdout.write(array.tobytes())
    stdout.flush()


if __name__ == "__main__":
    main()
