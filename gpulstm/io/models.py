"""Layers and models of :mod:`gpulstm.nn` in a few words of JSON beside their tensors, and back.

The words say only what names and shapes of the tensors do not, so that the two cannot contradict each other:
``{"layer": "Sequential", "layers": [{"layer": "Embedding"}, {"layer": "Dropout", "p": 0.1}]}``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .. import cells, nn
from .common import Arrays, WeightsError, finite, recurrent, widened
from .torch_names import infer, under

_HEADS = {"Linear": nn.Linear, "EveryStepHead": nn.EveryStepHead, "LastStepHead": nn.LastStepHead}


def describe(layer: Any) -> dict[str, Any]:
    """What :func:`restore` needs beside the tensors.

    Raises:
        TypeError: no layer, or one of a class that is not gpulstm's.
    """
    kind = type(layer).__name__
    if type(layer) is not getattr(nn, kind, None):
        raise TypeError(f"layer: expected a layer or model of gpulstm.nn, got {kind}")
    words: dict[str, Any] = {"layer": kind}
    if isinstance(layer, nn.Sequential):
        words["layers"] = [describe(part) for part in layer.layers]
    elif isinstance(layer, nn.Reversed):
        words["of"] = describe(layer.layer)
    elif isinstance(layer, nn.RNNBase):
        config = layer.config
        words |= {"cell": config.cell.name, "batch_first": config.batch_first, "dropout": config.dropout}
    elif isinstance(layer, nn.Dropout):
        words["p"] = layer.p
    elif isinstance(layer, nn.LastStepHead):
        words["batch_first"] = layer.batch_first
    return words


def restore(
    text: str, tensors: Arrays, *, batch_first: bool | None = None, dtype: Any = None, device: str | None = None
) -> Any:
    """The layer or model that ``text`` and ``tensors`` are of.

    Raises:
        ValueError: words that are none of :func:`describe`, tensors missing, left over, not finite or of shapes that
            are of another model; the message names the tensor.
    """
    try:
        words = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"metadata: expected JSON, got {error}") from error
    if batch_first is not None and isinstance(words, dict):
        words["batch_first"] = batch_first
    left = dict(tensors)
    model = _restore(words, left, "", dtype, device)
    if left:
        raise WeightsError(f"tensors: unexpected {sorted(left)}; the metadata says {text}")
    return model


def _restore(words: Any, left: Arrays, prefix: str, dtype: Any, device: str | None) -> Any:
    """The layer under ``prefix``, whose tensors are taken out of ``left``."""
    kind = words.get("layer") if isinstance(words, dict) else None
    if kind == "Sequential" and isinstance(words.get("layers"), list):
        parts = enumerate(words["layers"])
        return nn.Sequential(*(_restore(part, left, f"{prefix}{i}.", dtype, device) for i, part in parts))
    if kind == "Reversed":
        return nn.Reversed(_restore(words.get("of"), left, prefix, dtype, device))
    if kind == "Dropout":
        return nn.Dropout(words.get("p"))
    own = {name: left.pop(name) for name in sorted(left) if name.startswith(prefix)}
    if kind in ("LSTM", "RNN", "RNNBase"):
        params = under(own, prefix)
        shapes = {name: value.shape for name, value in params.items()}
        options = {"batch_first": words.get("batch_first", False), "dropout": words.get("dropout", 0.0)}
        return recurrent(
            infer(shapes, prefix, cells.get(words.get("cell")), **options), params, dtype=dtype, device=device
        )
    if kind == "Embedding":
        weight = _matrix(own, prefix)
        return _filled(nn.Embedding, weight.shape, own, prefix, dtype, device)
    if kind in _HEADS:
        weight = _matrix(own, prefix)
        options = {"bias": f"{prefix}bias" in own}
        if kind == "LastStepHead":
            options["batch_first"] = words.get("batch_first", False)
        return _filled(_HEADS[kind], weight.shape[::-1], own, prefix, dtype, device, **options)
    raise WeightsError(f"metadata: expected a layer of gpulstm.nn, got {words!r}")


def _matrix(own: Arrays, prefix: str) -> np.ndarray:
    weight = own.get(f"{prefix}weight")
    if weight is None or weight.ndim != 2:
        found = "none" if weight is None else f"shape {weight.shape}"
        raise WeightsError(f"{prefix}weight: expected a matrix, got {found}")
    return weight


def _filled(kind: Any, sizes: Any, own: Arrays, prefix: str, dtype: Any, device: str | None, **options: Any) -> Any:
    """A layer of the class ``kind`` that holds ``own``."""
    params = {name[len(prefix) :]: finite(value, name) for name, value in own.items()}
    if dtype is None:
        weight = params["weight"]
        dtype = weight.dtype if device == "cuda" else widened(weight).dtype
    layer = kind(*sizes, **options, dtype=dtype, device=device, seed=0)
    layer.load_state_dict(params)
    return layer
