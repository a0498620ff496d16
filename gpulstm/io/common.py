"""What every format needs: its error, its files, its library, and layers made of arrays under torch's names."""

from __future__ import annotations

import errno
import functools
import importlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from .. import arrays, checks, dispatch, files, nn, noise
from ..config import Config

Arrays = dict[str, np.ndarray]
PathLike = str | os.PathLike[str]
path_of = checks.path
MOST = 1 << 33  # bytes of a file; 2·10⁹ parameters of float32
# the class that has a cell's name, and what it is told beside
_CLASSES: dict[str, tuple[type[nn.Recurrent], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    **{cell: (nn.RNN, {"nonlinearity": name}) for name, cell in nn.RNN.CELLS.items()},
}


class WeightsError(ValueError):
    """Weights that cannot be read or written: the message names the file or argument, and the reason."""


def require(module: str, extra: str) -> ModuleType:
    """The library called ``module``.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module} is needed here and not installed: python -m pip install 'gpulstm[{extra}]'"
        ) from error


def read(path: PathLike, most: int = MOST, *, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file of ``most`` bytes at most, or a part of them, as :func:`gpulstm.files.read` gives them.

    Raises:
        WeightsError: no such file, a directory, one that is larger, or one that cannot be read.
    """
    path = path_of(path)
    try:
        return files.read(path, most, offset=offset, length=length)
    except OSError as error:
        raise WeightsError(f"{path}: could not be read: {error.strerror or error}; expected a readable file") from error


def write(path: PathLike, data: bytes) -> None:
    """Put ``data`` in the place of the file at ``path``.

    Raises:
        WeightsError: the disk refused; a file that was there before is untouched.
    """
    path = path_of(path)
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, "is a directory")
        files.replace(path, data)
    except OSError as error:
        raise WeightsError(
            f"{path}: could not be written: {error.strerror or error}; expected a writable directory with room for "
            f"{len(data)} bytes; nothing was changed"
        ) from error


def free_name(name: str, taken: dict[str, int]) -> str:
    """``name``, or the first of ``name_1``, ``name_2``, ... that is not in ``taken``, which holds it then."""
    found, number = name, taken.get(name, 0)
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken[name] = number  # a name that comes a thousand times begins where it stopped
    taken.setdefault(found, 0)
    return found


def check_target(dtype: Any, device: str | None) -> None:
    """Check where a layer is wanted before a file is read for it.

    Raises:
        ValueError: an unknown dtype or device.
        BackendUnavailable: no backend for ``device`` runs here.
    """
    known = dispatch.check_device(device)
    if dtype is not None:
        checks.dtype(dtype, known)


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """``array`` itself.

    Raises:
        WeightsError: it holds NaN or infinite values.
    """
    if not np.isfinite(array).all():
        raise WeightsError(f"{name}: holds NaN or infinite values; expected finite ones")
    return array


def widened(array: np.ndarray) -> np.ndarray:
    """``array``, or float32 in place of a half type, which is exact: a CPU does not compute in those."""
    return array.astype(np.float32) if array.dtype.name in checks.HALVES else array


def recurrent(
    config: Config,
    params: Mapping[str, np.ndarray],
    *,
    kind: type[nn.Recurrent] | None = None,
    dtype: Any = None,
    device: str | None = None,
) -> nn.Recurrent:
    """A layer of the shape ``config`` that holds ``params``, all of one dtype unless ``dtype`` is given.

    It is of the class ``kind``; by default of the one that has the cell's name, ``Recurrent`` for any other cell, with
    heads and of pre-activations.

    Raises:
        ValueError: names, shapes or values that do not fit; the message names the parameter.
    """
    cell = config.cell.name
    usual, own = _CLASSES.get(cell, (nn.Recurrent, {}))
    if kind is None:
        kind = usual if config.heads == 1 and config.input_size is not None else nn.Recurrent
    if kind not in (usual, nn.Recurrent):
        raise WeightsError(f"cell: expected that of {kind.__name__}, got {cell!r}")
    dtypes = {widened(value).dtype if device in (None, "cpu") else value.dtype for value in params.values()}
    if dtype is None and len(dtypes) != 1:
        raise WeightsError(f"dtype: expected one for all parameters, or dtype=..., got {sorted(map(str, dtypes))}")
    names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size", "heads", "weight_dropout")
    options = {name: getattr(config, name) for name in names} | {"noise": noise.argument(config.cell, config.noise)}
    if kind is not nn.Recurrent:
        options |= own
    options |= {"dtype": dtypes.pop() if dtype is None else dtype, "device": device, "seed": 0}
    sizes = config.input_size, config.hidden_size
    make: Any = functools.partial(nn.Recurrent, cell) if kind is nn.Recurrent else kind
    layer = make(*sizes, **options)
    layer.load_state_dict(params)
    return layer


def on_host(layer: nn.Layer, dtype: Any = None) -> Arrays:
    """The parameters of ``layer`` as C-contiguous native NumPy arrays, half types widened, or all in ``dtype``.

    Raises:
        ValueError: a value that is not finite, in ``dtype`` neither.
    """
    params = {}
    for name, value in layer.params.items():
        host = widened(arrays.on_host(value, name))
        host = np.asarray(host, host.dtype.newbyteorder("="), order="C")
        with np.errstate(over="ignore"):  # refused below
            params[name] = finite(host if dtype is None else host.astype(checks.dtype(dtype)), name)
    return params
