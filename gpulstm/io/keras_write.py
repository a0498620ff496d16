"""Keras out: weights that ``model.load_weights`` takes, and archives that ``keras.models.load_model`` takes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .. import nn
from . import gate_order
from .common import Arrays, PathLike, WeightsError, free_name, on_host, path_of, require, write
from .keras_files import CONFIG, WEIGHTS, snake_case, unique

_CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN", "rnn_relu": "SimpleRNN"}
_OPTIONS: dict[str, dict[str, Any]] = {"gru": {"reset_after": True}, "rnn_relu": {"activation": "relu"}}


@dataclass
class _Entry:
    """A Keras layer: ``variables`` by the path of their group below the layer's."""

    kind: str
    config: dict[str, Any]
    variables: dict[str, list[np.ndarray]]
    inputs: int | None  # features that it takes; None for ids
    outputs: int


def save_keras(layers: nn.Layer | Mapping[str, nn.Recurrent], path: PathLike) -> None:
    """Write ``layers`` for Keras 3.

    Args:
        layers: a recurrent layer, a ``Sequential`` model of recurrent layers, Embedding, Linear, heads and Dropout,
            or a dict of recurrent layers by name, as :func:`load_keras` gives it. A stack of L layers becomes L Keras
            layers.
        path: ``….weights.h5`` for the weights of a Keras model that has these layers in this order, or ``….keras``
            for the whole model, a ``keras.Sequential`` whose recurrent layers return sequences.

    The two biases of gpulstm are summed, since Keras has one; its GRU has both.

    Raises:
        ValueError: another suffix, a layer that Keras has not (a projection, heads, ``Reversed``, another cell,
            ``LastStepHead`` behind two directions), layers whose sizes do not follow on each other in an archive, a
            parameter that is not finite, a disk that refuses.
        TypeError: ``layers`` is none of these.
        ImportError: h5py is not installed.
    """
    path = path_of(path)
    if not path.name.endswith((".keras", ".weights.h5")):
        raise WeightsError(f"{path}: expected a name that ends in .keras or .weights.h5")
    h5py = require("h5py", "keras")
    named = layers if isinstance(layers, Mapping) else {"": layers}
    entries: list[_Entry] = []
    taken: dict[str, int] = {}
    for name, layer in named.items():
        if not isinstance(layer, nn.Layer) or not isinstance(name, str):
            raise TypeError(f"layers: expected layers of gpulstm.nn by name, got {name!r}: {type(layer).__name__}")
        if "\0" in name:
            raise WeightsError(f"layers: expected names without NUL, got {name!r}")
        for entry in _entries(layer, on_host(layer), "", entries):
            entry.config["name"] = free_name(name or snake_case(entry.kind), taken)
            entries.append(entry)
    if not any(entry.variables for entry in entries):
        raise WeightsError("layers: expected layers with parameters, got none")
    weights = _hdf5(h5py, entries)
    write(path, weights if path.name.endswith(".weights.h5") else _archive(entries, weights))


def _entries(layer: nn.Layer, params: Arrays, prefix: str, before: list[_Entry]) -> Iterator[_Entry]:
    """``layer`` as Keras layers; ``before`` are those that its input went through."""

    def own(name: str) -> np.ndarray:
        return params[prefix + name]

    if isinstance(layer, nn.Sequential):
        for position, part in enumerate(layer.layers):
            yield from _entries(part, params, f"{prefix}{position}.", before)
    elif isinstance(layer, nn.Recurrent):
        yield from _stack(layer, params, prefix)
    elif isinstance(layer, nn.Embedding):
        sizes = {"input_dim": layer.num_embeddings, "output_dim": layer.embedding_dim}
        yield _Entry("Embedding", sizes, {"": [own("weight")]}, None, layer.embedding_dim)
    elif isinstance(layer, nn.Dropout):
        yield _Entry("Dropout", {"rate": layer.p}, {}, None, 0)
    elif isinstance(layer, (nn.Linear, nn.LastStepHead)):
        linear = layer.linear if isinstance(layer, nn.LastStepHead) else layer
        if isinstance(layer, nn.LastStepHead):
            last = next((entry for entry in reversed(before) if entry.kind != "Dropout"), None)
            if last is None or last.kind not in _CLASSES.values():
                raise WeightsError(
                    "layers: expected LastStepHead behind an LSTM, GRU or RNN of one direction, for Keras"
                )
            last.config["return_sequences"] = False
        bias = f"{prefix}bias" in params
        variables = [own("weight").T, own("bias")] if bias else [own("weight").T]
        config = {"units": linear.out_features, "use_bias": bias}
        yield _Entry("Dense", config, {"": variables}, linear.in_features, linear.out_features)
    else:
        raise WeightsError(f"layers: Keras has no {type(layer).__name__}")


def _stack(layer: nn.Recurrent, params: Arrays, prefix: str) -> Iterator[_Entry]:
    """One Keras layer a layer."""
    c = layer.config
    order = gate_order.check(c, gate_order.KERAS, "Keras")
    own = gate_order.TORCH[c.cell.name]
    if c.proj_size:
        raise WeightsError(f"proj_size: expected 0, since Keras has no projection, got {c.proj_size}")
    kind, inputs = _CLASSES[c.cell.name], c.input_size
    for ends in c.suffixes():
        config = {"units": c.hidden_size, "use_bias": c.bias, "return_sequences": True}
        config |= _OPTIONS.get(c.cell.name, {})
        variables = []
        for end in ends:
            weights = [params[f"{prefix}weight_{part}{end}"] for part in ("ih", "hh")]
            values = [gate_order.reordered(value, own, order).T for value in weights]
            if c.bias:
                both = [params[f"{prefix}bias_{part}{end}"] for part in ("ih", "hh")]
                both = [gate_order.reordered(value, own, order) for value in both]
                values.append(np.stack(both) if c.cell.name == "gru" else both[0] + both[1])
            variables.append(values)
        if len(ends) == 1:
            yield _Entry(kind, config, {"cell": variables[0]}, inputs, c.hidden_size)
        else:
            sides = ("forward", "backward")
            inner = [
                _serialized(kind, config | {"name": f"{side}_{snake_case(kind)}", "go_backwards": side == "backward"})
                for side in sides
            ]
            outer = {"merge_mode": "concat", "layer": inner[0], "backward_layer": inner[1]}
            named = {f"{side}_layer/cell": part for side, part in zip(sides, variables, strict=True)}
            yield _Entry("Bidirectional", outer, named, inputs, 2 * c.hidden_size)
        inputs = c.output_size * c.directions


def _hdf5(h5py: Any, entries: list[_Entry]) -> bytes:
    """The weights as Keras lays them out: groups by class and order, each with its name beside."""
    buffer = io.BytesIO()
    taken: dict[str, int] = {}
    with h5py.File(buffer, "w") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        for entry in entries:
            group = file.create_group(f"layers/{unique(snake_case(entry.kind), taken)}")
            group.require_group("vars").attrs["name"] = entry.config["name"]
            for place, values in entry.variables.items():
                own = group.require_group(f"{place}/vars".lstrip("/"))
                for position, value in enumerate(values):
                    own.create_dataset(str(position), data=value)
    return buffer.getvalue()


def _archive(entries: list[_Entry], weights: bytes) -> bytes:
    """A whole model."""
    chain = [entry for entry in entries if entry.kind != "Dropout"]
    for before, entry in pairwise(chain):
        if entry.inputs != before.outputs:
            raise WeightsError(
                f"layers: {entry.config['name']} takes {entry.inputs or 'ids'}, but {before.config['name']} gives "
                f"{before.outputs} features; expected layers that follow on each other (or a .weights.h5 file)"
            )
    first = chain[0]
    shape = [None, None] if first.inputs is None else [None, None, first.inputs]
    dtypes = {value.dtype.name for entry in entries for values in entry.variables.values() for value in values}
    if len(dtypes) != 1:
        raise WeightsError(f"dtype: expected one for all layers, got {sorted(dtypes)}")
    (dtype,) = dtypes
    begin = {"batch_shape": shape, "dtype": "int32" if first.inputs is None else dtype, "name": "input_layer"}
    layers = [_serialized("InputLayer", begin)]
    layers += [_serialized(entry.kind, entry.config | {"dtype": dtype}) for entry in entries]
    model = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "sequential", "dtype": dtype, "layers": layers},
        "registered_name": None,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (
            ("metadata.json", json.dumps({"keras_version": "3.0.0"}).encode()),
            (CONFIG, json.dumps(model).encode()),
            (WEIGHTS, weights),
        ):
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time: the same model gives the same bytes
    return buffer.getvalue()


def _serialized(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}
