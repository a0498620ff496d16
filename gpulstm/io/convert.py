"""From one format to another: what ``gpulstm convert`` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import cells, checks, nn
from .common import PathLike, WeightsError, path_of
from .keras_read import load_keras
from .keras_write import save_keras
from .onnx_read import onnx_layers
from .onnx_write import export_onnx
from .safetensors_files import PICKLES, load_safetensors, save_safetensors

SOURCES = ".safetensors, .onnx, .keras, .weights.h5, .h5, or the directory of a checkpoint"
TARGETS = ".safetensors, .onnx, .keras or .weights.h5"


def convert(
    source: PathLike,
    target: PathLike,
    *,
    layer: str | None = None,
    prefix: str = "",
    cell: str | None = None,
    batch_first: bool | None = None,
    dtype: Any = None,
    state: bool = False,
    lengths: bool = False,
    force: bool = False,
) -> str:
    """Read weights in one format and write them in another; suffixes say which.

    Args:
        source: a file (``.safetensors``, ``.onnx``, ``.keras``, ``.weights.h5``, ``.h5``), or a checkpoint of
            ``gpulstm train``, or a run's directory.
        target: a file (``.safetensors``, ``.onnx``, ``.keras``, ``.weights.h5``).
        layer: the one that is wanted of an ONNX or Keras model of several. Only Keras's formats hold several at once.
        prefix: what its names begin with in a safetensors file of more.
        cell: the name of the layer's, for a safetensors file that does not say, as in :func:`load_torch`.
        batch_first: of the layer, likewise.
        dtype: ``"float32"`` or ``"float64"``; by default that of the source, float32 for half types.
        state, lengths: of an ONNX target, see :func:`export_onnx`.
        force: replace a target that exists.

    Returns:
        What was written, in a line.

    Raises:
        ValueError: a suffix that is none of these, a target that exists, an argument that the formats have no use for,
            and what the formats' own functions raise. A target that exists is then as it was.
        TypeError: an argument of another type.
    """
    source, target = path_of(source, "source"), path_of(target, "target")
    checks.text(prefix, "prefix")
    if layer is not None:
        checks.text(layer, "layer")
    if cell is not None:
        cells.get(cell)
    if batch_first is not None:
        checks.flag(batch_first, "batch_first")
    for name, value in (("state", state), ("lengths", lengths), ("force", force)):
        checks.flag(value, name)
    if dtype is not None:
        checks.dtype(dtype)
    write = _writer(target, state, lengths)
    if target.exists() and not force:
        raise WeightsError(f"{target}: exists already; expected a new file, or force (--force) to replace it")
    found = _read(source, layer, {"prefix": prefix, "cell": cell, "batch_first": batch_first}, dtype)
    if isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    if isinstance(found, dict) and not _is_keras(target):
        raise WeightsError(f"{source}: holds the layers {list(found)}; expected the choice of one (--layer)")
    write(found)
    layers = found if isinstance(found, dict) else {"": found}
    shown = ", ".join(f"{name}: {_show(part)}" if name else _show(part) for name, part in layers.items())
    count = sum(value.size for part in layers.values() for value in part.params.values())
    return f"wrote {target}: {shown}; {count:,} parameters, {target.stat().st_size:,} bytes"


def _writer(target: Path, state: bool, lengths: bool) -> Callable[[Any], None]:
    """What writes the target."""
    if target.suffix == ".onnx":
        return lambda found: export_onnx(found, target, state=state, lengths=lengths)
    if state or lengths:
        raise WeightsError(f"{target}: state and lengths are inputs of an ONNX model; expected neither here")
    if _is_keras(target):
        return lambda found: save_keras(found, target)
    if target.suffix == ".safetensors":
        return lambda found: save_safetensors(found, target)
    hint = "; a pickle is neither read nor written" if target.suffix.lower() in PICKLES else ""
    raise WeightsError(f"{target}: expected a name that ends in {TARGETS}{hint}")


def _read(source: Path, layer: str | None, of_tensors: dict[str, Any], dtype: Any) -> Any:
    """A layer or model, or several layers by name; ``of_tensors`` are the options for safetensors files."""
    chosen = None if layer is None else [layer]
    onnx, keras = source.suffix == ".onnx", source.suffix in (".keras", ".h5")
    unused = [name for name, value in of_tensors.items() if value not in (None, "")]
    if (onnx or keras) and unused:
        raise WeightsError(f"{source}: {', '.join(of_tensors)} are for safetensors files; expected none, got {unused}")
    if layer is not None and not (onnx or keras):
        raise WeightsError(f"{source}: layer is for ONNX and Keras files; expected a prefix or none")
    if onnx:
        return onnx_layers(source, nodes=chosen, dtype=dtype)
    if keras:
        return load_keras(source, layers=chosen, dtype=dtype)
    if source.suffix.lower() in (".safetensors", *PICKLES):
        return load_safetensors(source, **of_tensors, dtype=dtype)
    if source.is_dir():
        from .. import tasks

        if unused or dtype is not None:
            raise WeightsError(f"{source}: is a checkpoint, which has all of that stored; expected no other options")
        return tasks.restored(source)
    raise WeightsError(f"{source}: expected a name that ends in {SOURCES}")


def _is_keras(target: Path) -> bool:
    return target.name.endswith((".keras", ".weights.h5"))


def _show(layer: nn.Layer) -> str:
    if isinstance(layer, nn.Sequential):
        return f"Sequential({', '.join(map(_show, layer.layers))})"
    return repr(layer) if isinstance(layer, (nn.Recurrent, nn.Reversed)) else type(layer).__name__
