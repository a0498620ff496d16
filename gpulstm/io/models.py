"""Layers and models of :mod:`gpulstm.nn` in a few words of JSON beside their tensors, and back.

The words say only what names and shapes of the tensors do not, so that the two cannot contradict each other:
``{"layer": "Sequential", "layers": [{"layer": "Embedding"}, {"layer": "Dropout", "p": 0.1}]}``. A cell is named, with
what it declares, ``{"cell": "gru", "declaration": {"gates": "r z", "x_gates": "n_x", "h_gates": "n_h"}}``: one of that
name and declaration must be known where the file is loaded. Files of earlier versions have no declaration.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gpulstm_kernels.backend import NARROW
from gpulstm_kernels.language.declaration import PARTS

from .. import cells, checks, nn, noise, parsing
from .common import Arrays, WeightsError, finite, recurrent, widened
from .torch_names import infer, under

_RECURRENT = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN, "Recurrent": nn.Recurrent}
_HEADS = {"Linear": nn.Linear, "EveryStepHead": nn.EveryStepHead, "LastStepHead": nn.LastStepHead}
_KNOWN = (*_RECURRENT, *_HEADS, "Dropout", "Embedding", "MeanOverTime", "Quantized", "Reversed", "Sequential")
_SHOWN = 12  # names in a message


def describe(layer: Any) -> str:
    """What :func:`restore` needs beside the tensors.

    Raises:
        TypeError: no layer, or one of a class that is not gpulstm's.
        ValueError: models inside each other deeper than a file can say.
    """
    text = json.dumps(_describe(layer, 0))
    parsing.loads(text)
    return text


def _describe(layer: Any, depth: int) -> dict[str, Any]:
    kind = type(layer).__name__
    if kind not in _KNOWN or type(layer) is not getattr(nn, kind):
        raise TypeError(f"layer: expected a layer or model of gpulstm.nn, got {kind}")
    if depth > parsing.DEPTH:
        raise ValueError(f"layer: expected models that nest at most {parsing.DEPTH // 2} deep, got more")
    words: dict[str, Any] = {"layer": kind}
    if isinstance(layer, nn.Sequential):
        words["layers"] = [_describe(part, depth + 2) for part in layer.layers]
    elif isinstance(layer, nn.Reversed):
        words["of"] = _describe(layer.layer, depth + 1)
    elif isinstance(layer, (nn.Recurrent, nn.Quantized)):
        config = layer.config
        words |= {"cell": config.cell.name, "declaration": _declaration(config.cell)}
        words |= {"batch_first": config.batch_first, "dropout": config.dropout}
        if config.weight_dropout:
            words["weight_dropout"] = config.weight_dropout
        if config.input_size is None:
            words["gates_given"] = True
        if config.noise:
            words["noise"] = noise.argument(config.cell, config.noise)
        if isinstance(layer, nn.Quantized):
            words["kind"] = layer.kind
    elif isinstance(layer, nn.Dropout):
        words["p"] = layer.p
    elif isinstance(layer, nn.LastStepHead):
        words["batch_first"] = layer.batch_first
    return words


def _declaration(cell: cells.Cell) -> dict[str, str]:
    """What ``cell`` declares, in the words of :func:`gpulstm.cell`."""
    return {part: " ".join(getattr(cell, part)) for part in PARTS if getattr(cell, part)}


def restore(
    text: str,
    tensors: Arrays,
    *,
    cell: cells.Cell | None = None,
    batch_first: bool | None = None,
    dtype: Any = None,
    device: str | None = None,
) -> Any:
    """The layer or model that ``text`` and ``tensors`` are of.

    Raises:
        ValueError, TypeError: words that are none of :func:`describe`, tensors missing, left over, not finite or of
            shapes that are of another model; the message names the tensor.
    """
    try:
        words = parsing.loads(text)
    except ValueError as error:
        raise WeightsError(f"metadata: {error}") from error
    if isinstance(words, dict):
        if batch_first is not None:
            words["batch_first"] = batch_first
        if cell is not None and words.get("cell") != cell.name:
            raise WeightsError(
                f"cell: expected none or that of the file, {checks.shown(words.get('cell'))}, got {cell.name!r}"
            )
    return _restore(words, tensors, "", dtype, device)


def _restore(words: Any, own: Arrays, prefix: str, dtype: Any, device: str | None) -> Any:
    """The layer under ``prefix``, of the tensors ``own``, by their names behind that."""
    kind = words.get("layer") if isinstance(words, dict) else None
    if kind == "Sequential" and isinstance(words.get("layers"), list):
        parts: list[Arrays] = [{} for _ in words["layers"]]
        places = {str(place): part for place, part in enumerate(parts)}
        extra = []
        for name, value in own.items():
            place, _, rest = name.partition(".")
            if place in places:
                places[place][rest] = value
            else:
                extra.append(name)
        pairs = zip(words["layers"], places.items(), strict=True)
        model = nn.Sequential(*(_restore(part, of, f"{prefix}{at}.", dtype, device) for part, (at, of) in pairs))
        _nothing_in(extra, prefix, words)
        return model
    if kind == "Reversed":
        return nn.Reversed(_restore(words.get("of"), own, prefix, dtype, device))
    if kind == "Dropout":
        dropout = nn.Dropout(words.get("p"))
        _nothing_in(own, prefix, words)
        return dropout
    if kind == "MeanOverTime":
        _nothing_in(own, prefix, words)
        return nn.MeanOverTime()
    if kind == "Quantized":
        return _quantized(words, own, prefix, dtype, device)
    if strange := [name for name, value in own.items() if value.dtype.kind != "f"]:
        raise WeightsError(f"{prefix}{strange[0]}: expected floating point, got dtype {own[strange[0]].dtype}")
    if kind in tuple(_RECURRENT):
        cell = _cell(words)
        params = under({prefix + name: value for name, value in own.items()}, prefix, cell)
        config = infer({name: value.shape for name, value in params.items()}, prefix, cell, **_options(words))
        return recurrent(config, params, kind=_RECURRENT[kind], dtype=dtype, device=device)
    if kind == "Embedding":
        return _filled(nn.Embedding, _matrix(own, prefix).shape, own, prefix, dtype, device)
    if kind in tuple(_HEADS):
        options = {"bias": "bias" in own}
        if kind == "LastStepHead":
            options["batch_first"] = words.get("batch_first", False)
        return _filled(_HEADS[kind], _matrix(own, prefix).shape[::-1], own, prefix, dtype, device, **options)
    raise WeightsError(f"metadata: expected a layer of gpulstm.nn, got {str(words)[:200]}")


def _nothing_in(left: Any, prefix: str, words: dict[str, Any]) -> None:
    if left:
        names = sorted(prefix + name for name in left)
        raise WeightsError(f"tensors: unexpected {names[:_SHOWN]}; the metadata says {str(words)[:200]}")


def _cell(words: dict[str, Any]) -> cells.Cell:
    """The cell that the file names, which must be known here and declare what it did where the file was written."""
    name, declared = words.get("cell"), words.get("declaration")
    if not isinstance(name, str):
        raise WeightsError(f"metadata: cell: expected a name, got {checks.shown(name)}")
    if declared is not None and not (
        isinstance(declared, dict) and all(isinstance(text, str) for text in declared.values())
    ):
        raise WeightsError(f"metadata: declaration: expected texts by part, got {checks.shown(declared)}")
    try:
        cell = cells.get(name)
    except ValueError as error:
        hint = f"; expected one that was made before, of {_shown_declaration(declared)}" if declared else ""
        raise WeightsError(f"metadata: {error}{hint}") from error
    if declared is not None and declared != (known := _declaration(cell)):
        raise WeightsError(
            f"metadata: cell {name!r}: expected the declaration of the cell of that name here, "
            f"{_shown_declaration(known)}, got {_shown_declaration(declared)}"
        )
    return cell


def _shown_declaration(declared: dict[str, str]) -> str:
    return ", ".join(f"{part}={text!r}" for part, text in declared.items())[:300]


def _options(words: dict[str, Any]) -> dict[str, Any]:
    usual = {"batch_first": False, "dropout": 0.0, "weight_dropout": 0.0, "gates_given": False, "noise": None}
    return {name: words.get(name, value) for name, value in usual.items()}


def _quantized(words: dict[str, Any], own: Arrays, prefix: str, dtype: Any, device: str | None) -> nn.Quantized:
    """A layer of narrow weights, as stored in the file."""
    kind = words.get("kind")
    if kind not in tuple(NARROW):
        raise WeightsError(f"metadata: kind: expected one of {', '.join(NARROW)}, got {kind!r}")
    if (dtype is not None and checks.dtype(dtype) != np.float32) or device not in (None, "cpu"):
        raise WeightsError(f"dtype, device: a quantized layer is float32 on the CPU; got {dtype} and {device}")
    cell = _cell(words)
    of_cell = tuple(f"{name}_l" for name in cell.params)
    shapes = {
        name: value.shape for name, value in own.items() if not name.startswith("scale_") or name.startswith(of_cell)
    }
    config = infer(shapes, prefix, cell, **_options(words))
    scales = nn.Quantized.scales(config)
    expected = {}
    for name, shape in config.shapes().items():
        narrow = name in scales
        expected[name] = shape, NARROW[kind] if narrow else np.dtype(np.float32)
        if narrow and kind == "int8":
            expected[scales[name]] = shape[:-1], np.dtype(np.float32)
    _nothing_in(own.keys() - expected.keys(), prefix, words)
    for name, (shape, of) in expected.items():
        value = own.get(name)
        if value is None or (value.shape, value.dtype) != (shape, of):
            found = "none" if value is None else f"{value.dtype} of shape {value.shape}"
            raise WeightsError(f"{prefix}{name}: expected {of} of shape {shape}, got {found}")
        finite(value, prefix + name)
        if of == np.int8 and value.min() < -127:
            raise WeightsError(f"{prefix}{name}: expected whole numbers in ±127, got {value.min()}")
    layer = nn.Quantized.of(config, kind, {name: own[name] for name in expected})
    with np.errstate(over="ignore"):  # refused here
        for name, value in layer.widened().items():
            finite(value, prefix + name)
    return layer


def _matrix(own: Arrays, prefix: str) -> np.ndarray:
    weight = own.get("weight")
    if weight is None or weight.ndim != 2:
        found = "none" if weight is None else f"shape {weight.shape}"
        raise WeightsError(f"{prefix}weight: expected a matrix, got {found}")
    return weight


def _filled(kind: Any, sizes: Any, own: Arrays, prefix: str, dtype: Any, device: str | None, **options: Any) -> Any:
    """A layer of the class ``kind`` that holds ``own``."""
    for name, value in own.items():
        finite(value, prefix + name)
    if dtype is None:
        dtype = own["weight"].dtype if device == "cuda" else widened(own["weight"]).dtype
    layer = kind(*sizes, **options, dtype=dtype, device=device, seed=0)
    try:
        layer.load_state_dict(own)
    except ValueError as error:
        raise WeightsError(f"{prefix.rstrip('.') or 'layer'}: {error}") from error
    return layer
