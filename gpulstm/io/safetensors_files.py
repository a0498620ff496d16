"""safetensors files, as written here and as torch's and Hugging Face's tools write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpulstm_kernels import bfloat16

from .. import cells, checks, files, nn, parsing
from . import models
from .common import MOST, Arrays, PathLike, WeightsError, check_target, on_host, path_of, read, write
from .torch_names import from_state_dict

_KEY = "gpulstm"  # of the metadata: JSON that describes the layer or model
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "U16": np.uint16,  # bfloat16 too, of a quantized layer
    "I8": np.int8,
}
_HEADER = 1 << 24  # bytes of names and shapes


def save_safetensors(layer: nn.Layer, path: PathLike) -> None:
    """Write ``layer``, or a model of :mod:`gpulstm.nn`, with its configuration in the metadata.

    The tensors have torch's names, so that torch's own tools read the file. Half types of a GPU are widened; the narrow
    weights of a quantized layer stay what they are.

    Raises:
        ValueError: a parameter that is not finite, models that nest too deeply, a file larger than one that is read
            (8 GiB), a disk that refuses.
        TypeError: ``layer`` is no layer, or one of a class of your own.
    """
    description = models.describe(layer)
    data = files.of_tensors(on_host(layer), {"format": "np", _KEY: description})
    header = int.from_bytes(data[:8], "little")
    if len(data) > MOST or header > _HEADER:
        raise WeightsError(
            f"{path}: expected at most {MOST} bytes, {_HEADER} of them for names and shapes, got {len(data)}, {header}"
        )
    write(path, data)


def load_safetensors(
    path: PathLike,
    prefix: str | None = None,
    *,
    cell: str | cells.Cell | None = None,
    batch_first: bool | None = None,
    dtype: Any = None,
    device: str | None = None,
) -> Any:
    """The layer or model in a safetensors file.

    Args:
        path: the file.
        prefix: what the names of the layer that is wanted begin with, in a file of more. None or ``""`` for all of it.
        cell: of a layer whose file does not say, as in :func:`load_torch`.
        batch_first: of a layer whose file does not say; by default False.
        dtype, device: as in :func:`load_torch`.

    Returns:
        What :func:`save_safetensors` was given, or, from any other file, the recurrent layer that torch's names and
        shapes tell of.

    A file names a cell, with what it declares, and holds no code: one of your own must be known (:func:`gpulstm.cell`)
    before the file is loaded. What it computes is not compared.

    Raises:
        ValueError: a file that is cut short, of another format, of a cell that is not known or declares something else
            here, or of weights that do not fit; the message names it.
        TypeError: an argument of another type.
    """
    path = path_of(path)
    if prefix is not None:
        checks.text(prefix, "prefix")
    if batch_first is not None:
        checks.flag(batch_first, "batch_first")
    of = None if cell is None else cells.get(cell)
    check_target(dtype, device)
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path}: looks like a pickle, which can run code and is not read; in Python, "
            f"state = torch.load(path, weights_only=True), then gpulstm.io.load_torch(state) or "
            f"safetensors.torch.save_file(state, ...)"
        )
    tensors, metadata = contents(path)
    try:
        if not prefix and _KEY in metadata:
            return models.restore(metadata[_KEY], tensors, cell=of, batch_first=batch_first, dtype=dtype, device=device)
        # counters and masks of other modules are left out
        tensors = {name: value for name, value in tensors.items() if value.dtype.kind == "f"}
        options: dict[str, Any] = {"batch_first": bool(batch_first), "dtype": dtype, "device": device}
        return from_state_dict(tensors, prefix or "", cell=of, **options)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: {error}") from error


def contents(path: PathLike) -> tuple[Arrays, Mapping[str, str]]:
    """The tensors of a file by name, of the dtypes that layers have, bfloat16 as float32; and its metadata.

    Raises:
        WeightsError: no whole safetensors file.
    """
    from safetensors import SafetensorError, deserialize

    metadata = _metadata(path_of(path))
    try:
        found = deserialize(read(path))
    except SafetensorError as error:
        raise WeightsError(f"{path}: expected a whole safetensors file, got {error}") from error
    tensors = {}
    for name, tensor in found:
        if tensor["dtype"] not in _DTYPES:
            continue
        little = np.dtype(_DTYPES[tensor["dtype"]]).newbyteorder("<")
        array = np.frombuffer(tensor["data"], little).astype(little.newbyteorder("="), copy=False)
        if tensor["dtype"] == "BF16":
            array = bfloat16.widened(array)
        tensors[name] = array.reshape(tensor["shape"])
    return tensors, metadata


def _metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a file whose header is of one of its size: nothing else is read before that is known."""
    length = int.from_bytes(read(path, length=8), "little")
    if length > _HEADER:
        raise WeightsError(f"{path}: expected a whole safetensors file, got one with a header of {length} bytes")
    text = read(path, offset=8, length=length)
    try:
        header = parsing.loads(text, _HEADER)
        metadata = header.pop("__metadata__", {})
        whole = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(
            f"{path}: expected a whole safetensors file, got a header that says otherwise: {error}"
        ) from error
    if path.stat().st_size != whole:
        raise WeightsError(
            f"{path}: expected a whole safetensors file of {whole} bytes, as its header says, got {path.stat().st_size}"
        )
    return metadata
