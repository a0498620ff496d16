"""The recurrent nodes of an ONNX model: found, their attributes checked, their weights read. Nothing is run.

What a node asks for that gpulstm cannot do (peepholes, other activations, ``clip``, ``input_forget``, a GRU with
``linear_before_reset`` 0) is refused by its name. Weights come from initializers (inside the file, or in files beside
it) and from Constant nodes.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..cells import Cell, gru, lstm, rnn, rnn_relu
from ..config import Config
from . import gate_order
from .common import Arrays, WeightsError, finite, free_name, path_of, read, require

DIRECTIONS = ("forward", "reverse", "bidirectional")
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
# of each operator its cells by their activations; the first are ONNX's default
CELLS: dict[str, dict[tuple[str, ...], Cell]] = {
    "LSTM": {("Sigmoid", "Tanh", "Tanh"): lstm},
    "GRU": {("Sigmoid", "Tanh"): gru},
    "RNN": {("Tanh",): rnn, ("Relu",): rnn_relu},
}
_OTHERS = {("com.microsoft", "DynamicQuantizeLSTM"), ("com.microsoft", "AttnLSTM")}
_KNOWN = (1, 3, 7, 14, 22)  # the opsets that changed LSTM, GRU (3 too) and RNN
_MAIN = ("", "ai.onnx")
Constants = ChainMap[str, Any]  # TensorProto by name of the graph, None for a name that has no value known
_MOST = (1 << 31) - 1  # bytes that protobuf reads; larger models have their weights in files beside them
_MOST_BESIDE = 1 << 33


@dataclass(frozen=True)
class Model:
    """A model as read: for messages its name, for external data its folder."""

    proto: Any
    label: str
    folder: Path | None

    def error(self, text: str) -> WeightsError:
        return WeightsError(f"{self.label}: {text}")


@dataclass(frozen=True)
class Node:
    """A recurrent node that gpulstm can compute; ``inputs`` names what is connected, ``constants`` what is known."""

    model: Model
    name: str
    cell: Cell
    direction: str
    batch_first: bool
    hidden_size: int | None
    inputs: Mapping[str, str]  # from X, W, R, ... to names of the graph
    outputs: tuple[str, ...]  # Y, Y_h, Y_c; "" where one is not connected
    constants: Constants

    def error(self, text: str) -> WeightsError:
        return self.model.error(f"node {self.name!r}: {text}")

    def constant(self, role: str) -> np.ndarray | None:
        """The value of an input that is known, None for one that is not connected.

        Raises:
            WeightsError: it is computed or given at run time, damaged, or not finite.
        """
        name = self.inputs.get(role)
        if name is None:
            return None
        if self.constants.get(name) is None:
            raise self.error(
                f"{role}: expected an initializer or a Constant, but {name!r} is computed by the graph or an input of "
                f"it; fold constants first"
            )
        array = _to_array(self.model, self.constants[name])
        return finite(array, f"{self.model.label}: node {self.name!r}: {role} ({name!r})")

    def params(self, w: np.ndarray, r: np.ndarray, b: np.ndarray | None) -> tuple[Config, Arrays]:
        """The layer of this node's weights W, R and B: its configuration, and its parameters under torch's names."""
        order = gate_order.ONNX[self.cell.name]
        directions = 2 if self.direction == "bidirectional" else 1
        if w.ndim != 3 or r.ndim != 3 or 0 in w.shape + r.shape:
            raise self.error(f"W, R: expected three axes, none of them empty, got {w.shape} and {r.shape}")
        hidden, inputs = r.shape[2], w.shape[2]
        if self.hidden_size not in (None, hidden):
            raise self.error(f"hidden_size: expected {hidden} as of R {r.shape}, got {self.hidden_size}")
        rows = len(order) * hidden
        for role, value, shape in (
            ("W", w, (directions, rows, inputs)),
            ("R", r, (directions, rows, hidden)),
            *([] if b is None else [("B", b, (directions, 2 * rows))]),
        ):
            if value.shape != shape:
                raise self.error(f"{role}: expected shape {shape} for direction {self.direction}, got {value.shape}")
        config = Config(
            self.cell,
            inputs,
            hidden,
            bias=b is not None,
            batch_first=self.batch_first,
            bidirectional=directions == 2,
        )
        params: Arrays = {}
        for direction, end in enumerate(config.suffixes()[0]):
            parts = {"weight_ih": w[direction], "weight_hh": r[direction]}
            if b is not None:
                parts |= {"bias_ih": b[direction, :rows], "bias_hh": b[direction, rows:]}
            for name, value in parts.items():
                params[name + end] = gate_order.reordered(value, order, gate_order.TORCH[self.cell.name])
        return config, params


def load(source: Any) -> Model:
    """The model in a file, or a ``ModelProto`` as it is.

    Raises:
        WeightsError: no whole ONNX model.
        TypeError: neither a path nor a ``ModelProto``.
        ImportError: onnx is not installed.
    """
    onnx = require("onnx", "onnx")
    if isinstance(source, onnx.ModelProto):
        model = Model(source, "model", None)
    else:
        protobuf = require("google.protobuf.message", "onnx")
        path = path_of(source, "path_or_model_proto")
        try:
            model = Model(onnx.ModelProto.FromString(read(path, _MOST)), str(path), path.parent)
        except protobuf.DecodeError as error:
            raise WeightsError(f"{path}: expected a whole ONNX model, got {error}") from error
    if not model.proto.HasField("graph") or not model.proto.opset_import:
        raise model.error("expected an ONNX model with a graph and opset_import, as a whole one has")
    return model


def nodes(model: Model) -> Iterator[tuple[str, Any, Constants]]:
    """Every recurrent node, also of subgraphs: a name of its own, its ``NodeProto``, the constants that it can see."""
    for function in model.proto.functions:
        if any(_is_recurrent(node) for node in function.node):
            raise model.error(f"function {function.name!r}: recurrent nodes inside functions are not supported")
    taken: dict[str, int] = {}
    for proto, constants in _walk(model.proto.graph, ChainMap()):
        yield free_name(proto.name or proto.op_type, taken), proto, constants


def checked(model: Model, name: str, proto: Any, constants: Constants) -> Node:
    """The node as one that gpulstm can compute.

    Raises:
        WeightsError: it asks for something else; the message names it.
    """
    from onnx import defs, helper

    def error(text: str) -> WeightsError:
        return model.error(f"node {name!r}: {text}")

    op = proto.op_type
    if op not in CELLS or proto.domain not in _MAIN:
        raise error(f"op {op} is not supported; expected one of {', '.join(CELLS)}")
    versions = [entry.version for entry in model.proto.opset_import if entry.domain in _MAIN]
    since = defs.get_schema(op, versions[0]).since_version if versions and versions[0] > 0 else None
    if since not in _KNOWN:
        raise error(f"opset {versions or 'missing'} is not supported; expected one whose {op} is that of {_KNOWN}")
    given = {attribute.name: _text(helper.get_attribute_value(attribute)) for attribute in proto.attribute}
    direction, batchwise, hidden = (given.pop(key, None) for key in ("direction", "layout", "hidden_size"))
    if direction not in (None, *DIRECTIONS):
        raise error(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if batchwise not in (None, 0, 1):
        raise error(f"layout: expected 0 or 1, got {batchwise!r}")
    if hidden is not None and (not isinstance(hidden, int) or hidden < 1):
        raise error(f"hidden_size: expected an integer >= 1, got {hidden!r}")
    activations = [_text(entry) for entry in given.pop("activations", [])]
    by_activations = {of * (2 if direction == "bidirectional" else 1): cell for of, cell in CELLS[op].items()}
    known = {tuple(map(str.lower, of)): cell for of, cell in by_activations.items()}
    cell = known.get(tuple(str(entry).lower() for entry in activations) if activations else next(iter(known)))
    if cell is None:
        expected = " or ".join(str(list(of)) for of in by_activations)
        raise error(f"activations {activations} are not supported; expected {expected}")
    if op == "GRU" and (before := given.pop("linear_before_reset", 0)) != 1:
        raise error(
            f"linear_before_reset = {before} is not supported; expected 1, where the reset gate scales the product of h"
        )
    for key in ("input_forget", "output_sequence"):
        if given.get(key) == 0:
            del given[key]
    for key, value in given.items():
        raise error(f"attribute {key} = {value} is not supported; expected none")
    inputs = {role: entry for role, entry in zip(INPUTS, proto.input, strict=False) if entry}
    if op != "LSTM" and "initial_c" in inputs:
        raise error("expected at most six inputs")
    if missing := {"X", "W", "R"} - inputs.keys():
        raise error(f"inputs {sorted(missing)} are missing")
    node = Node(
        model,
        name,
        cell,
        direction or "forward",
        batchwise == 1,
        hidden,
        {role: entry for role, entry in inputs.items() if role != "P"},
        tuple(proto.output),
        constants,
    )
    if "P" in inputs and (
        constants.get(inputs["P"]) is None or np.any(_to_array(model, constants[inputs["P"]]))
    ):  # some exporters write zeros
        raise error(f"input P ({inputs['P']!r}): peepholes are not supported")
    return node


def _text(value: Any) -> Any:
    """A string attribute as str."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _is_recurrent(proto: Any) -> bool:
    main = proto.domain in _MAIN
    return (main and proto.op_type in CELLS) or ("" if main else proto.domain, proto.op_type) in _OTHERS


def _walk(graph: Any, outer: Constants) -> Iterator[tuple[Any, Constants]]:
    """Recurrent nodes in order, each with the constants in sight."""
    from onnx import AttributeProto

    constants = constants_of(graph, outer)
    for node in graph.node:
        if _is_recurrent(node):
            yield node, constants
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for subgraph in inner:
                yield from _walk(subgraph, constants)


def constants_of(graph: Any, outer: Constants) -> Constants:
    """What a graph knows before it runs, over what is known around it; None hides a name of that."""
    from onnx import helper

    constants = outer.new_child({entry.name: None for entry in graph.input})
    constants.update((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.domain not in _MAIN or len(node.output) != 1:
            continue
        if node.op_type == "Constant" and len(node.attribute) == 1:
            value = helper.get_attribute_value(node.attribute[0])
            if node.attribute[0].name == "value":
                constants[node.output[0]] = value
        elif node.op_type == "Identity" and node.input and constants.get(node.input[0]) is not None:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _to_array(model: Model, tensor: Any) -> np.ndarray:
    """A tensor's values, read from a file beside the model if that is where they are."""
    from onnx import TensorProto, numpy_helper

    try:
        if tensor.data_location == TensorProto.EXTERNAL:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copy.raw_data = _external(model, tensor)
            copy.data_location = TensorProto.DEFAULT
            del copy.external_data[:]
            tensor = copy
        return numpy_helper.to_array(tensor)
    except WeightsError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise model.error(f"tensor {tensor.name!r}: expected its values, got {error}") from error


def _external(model: Model, tensor: Any) -> bytes:
    """The bytes of a tensor that lie in another file, which must be in the folder of the model or below it."""
    from onnx import helper

    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"tensor {tensor.name!r}: external data"
    if model.folder is None:
        raise model.error(f"{where}: expected a path to the model, since its weights are in files beside it")
    location = entries.get("location", "")
    folder = model.folder.resolve()
    try:
        file = (folder / location).resolve()
    except (OSError, ValueError) as error:  # a ring of links, a NUL
        raise model.error(f"{where}: expected a file in the folder of the model, got {location!r}: {error}") from error
    if not location or not file.is_relative_to(folder):
        raise model.error(f"{where}: expected a file in the folder of the model, got {location!r}")
    numbers = [entries.get("offset", "0"), entries.get("length", "0")]
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        raise model.error(f"{where}: expected an offset and a length in bytes, got {entries}")
    offset, length = map(int, numbers)
    needed = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * math.prod(tensor.dims)
    if "length" in entries and length != needed:
        raise model.error(f"{where}: expected {needed} bytes for shape {tuple(tensor.dims)}, got length {length}")
    try:
        return files.read(folder / location, _MOST_BESIDE, offset=offset, length=needed, alone=True)
    except OSError as error:
        raise model.error(f"{where}: {location!r} could not be read: {error.strerror or error}") from error
