"""ONNX in: a model of one LSTM, GRU or RNN node as a callable, and the recurrent nodes of any model as layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import arrays, checks, nn
from . import onnx_nodes
from .common import WeightsError, check_target, recurrent

_COMPUTED = {"float32": "float32", "float64": "float64", "float16": "float32"}  # float16 is rounded at the end


def onnx_layers(
    path_or_model_proto: Any,
    *,
    nodes: Iterable[str] | None = None,
    dtype: Any = None,
    device: str | None = None,
) -> dict[str, nn.RecurrentLayer]:
    """The recurrent nodes of an ONNX model as layers, by the names of the nodes (or ``"LSTM"``, ``"LSTM_1"``, ...).

    Args:
        path_or_model_proto: a file, or an ``onnx.ModelProto``.
        nodes: the names of those that are wanted; None for all of them.
        dtype: of the layers. By default that of the weights, and float32 for half types on a CPU (exact).
        device: of the layers.

    Returns:
        ``gpulstm.LSTM``, ``gpulstm.GRU`` or ``gpulstm.RNN`` with one layer in one or two directions, and
        ``gpulstm.nn.Reversed`` of one where the direction is "reverse"; ``batch_first`` where ``layout`` is 1. Initial
        states and ``sequence_lens`` are arguments of a layer's call (states (D, B, H) in either layout), whatever the
        graph connects.

    Raises:
        ValueError: no whole ONNX model, no recurrent node, one that gpulstm cannot compute (named, with what it asks
            for), weights that the graph computes, damaged or not finite, a file above 2 GiB, external data that is a
            link or outside the model's folder.
        TypeError: an argument of another type.
        ImportError: onnx is not installed.
    """
    chosen = None if nodes is None else checks.texts(nodes, "nodes")
    check_target(dtype, device)
    model = onnx_nodes.load(path_or_model_proto)
    found = {name: (proto, constants) for name, proto, constants in onnx_nodes.nodes(model)}
    if not found:
        raise model.error("expected a model with LSTM, GRU or RNN nodes, found none")
    wanted = list(found) if chosen is None else chosen
    if unknown := [name for name in wanted if name not in found]:
        raise model.error(f"nodes: expected some of {list(found)}, got {unknown}")
    return {name: _layer(onnx_nodes.checked(model, name, *found[name]), dtype, device) for name in wanted}


def load_onnx(path_or_model_proto: Any) -> OnnxNode:
    """A model that is one LSTM, GRU or RNN node, as a function of its inputs; with Constant and Identity nodes or not.

    ``load_onnx("lstm.onnx")(X=x)["Y"]``: see :class:`OnnxNode`.

    Raises:
        ValueError: as :func:`onnx_layers`, or a model of other nodes.
        ImportError: onnx is not installed.
    """
    model = onnx_nodes.load(path_or_model_proto)
    found = list(onnx_nodes.nodes(model))
    others = sorted({node.op_type for node in model.proto.graph.node} - {*onnx_nodes.CELLS, "Constant", "Identity"})
    if len(found) != 1 or others:
        raise model.error(
            f"expected a model of exactly one LSTM, GRU or RNN node, found {[name for name, *_ in found]} and nodes of "
            f"the kinds {others}; gpulstm.io.onnx_layers reads the layers of any model"
        )
    return OnnxNode(onnx_nodes.checked(model, *found[0]))


class OnnxNode:
    """An ONNX model of one recurrent node: takes the model's inputs as keywords, gives a dict of its outputs.

    Inputs and outputs have ONNX's names, shapes (X (T, B, I), Y (T, D, B, H), Y_h and Y_c (D, B, H); batch first with
    ``layout`` 1) and meaning. W, R and B may be inputs too. ``sequence_lens`` (B,) are int32 in 0 .. T; a sequence
    of length 0 gives zeros, as in ONNX Runtime. float16 is computed in float32 and rounded at the end.

    Attributes:
        inputs: names of the inputs that a call must give.
        optional: names of those with a value in the model, which a call may replace.
        outputs: names of the outputs.
    """

    def __init__(self, node: onnx_nodes.Node) -> None:
        if not isinstance(node, onnx_nodes.Node):
            raise TypeError(f"node: expected one that gpulstm.io.load_onnx has read, got {type(node).__name__}")
        graph = node.model.proto.graph
        self._node = node
        known = {role for role, name in node.inputs.items() if node.constants.get(name) is not None}
        self._constants = {role: node.constant(role) for role in known}
        given = [entry.name for entry in graph.input]
        self.inputs = tuple(name for name in given if node.constants.get(name) is None)
        self.optional = tuple(name for name in given if name not in self.inputs)
        self.outputs = tuple(entry.name for entry in graph.output)
        if lost := sorted({name for role, name in node.inputs.items() if role not in known} - set(given)):
            raise node.error(f"expected inputs of the graph or constants, got {lost}")
        self._places = {name: place for place, name in enumerate(node.outputs) if name}
        for other in graph.node:
            if other.op_type == "Identity" and other.input[0] in self._places:
                self._places[other.output[0]] = self._places[other.input[0]]
        if lost := [name for name in self.outputs if name not in self._places]:
            raise node.error(f"expected graph outputs {list(self._places)}, got {lost} too")
        self._layer: nn.RecurrentLayer | None = None
        if {"W", "R"} <= known and ("B" in known or "B" not in node.inputs) and not self.optional:
            self._layer = self._build(self._constants)

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        """The outputs by name.

        Raises:
            TypeError: an input missing or unknown, of another dtype, or no array.
            ValueError: an input whose shape does not fit, ``sequence_lens`` outside 0 .. T.
        """
        if unknown := sorted(inputs.keys() - {*self.inputs, *self.optional}):
            raise TypeError(f"inputs: expected {list(self.inputs + self.optional)}, got {unknown} too")
        if missing := [name for name in self.inputs if name not in inputs]:
            raise TypeError(f"inputs: {missing} missing; expected {list(self.inputs)}")
        node = self._node
        values: dict[str, Any] = {
            role: arrays.to_numpy(inputs[name], name) if name in inputs else self._constants[role]
            for role, name in node.inputs.items()
        }
        dtype = values["X"].dtype
        for role, value in values.items():
            if role == "sequence_lens":
                if value.dtype != np.int32:
                    raise TypeError(f"{node.inputs[role]}: expected int32, got {value.dtype}")
            elif value.dtype.name not in _COMPUTED or value.dtype != dtype:
                raise TypeError(
                    f"{node.inputs[role]}: expected one dtype for all, of {', '.join(_COMPUTED)}, got {value.dtype} "
                    f"where {node.inputs['X']} is {dtype}"
                )
            else:
                values[role] = value.astype(_COMPUTED[dtype.name], copy=False)
        layer = self._layer or self._build(values)
        y, states = self._run(layer, values["X"], values)
        order = [y, *states]
        return {name: np.ascontiguousarray(order[self._places[name]], dtype) for name in self.outputs}

    def _run(self, layer: Any, x: np.ndarray, values: dict[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Y and the final states as ONNX lays them out."""
        node, config = self._node, (layer.layer if isinstance(layer, nn.Reversed) else layer).config
        if x.ndim != 3 or x.shape[2] != config.input_size:
            raise ValueError(f"{node.inputs['X']}: expected three axes, the last {config.input_size}, got {x.shape}")
        if x.size == 0 and values.get("sequence_lens") is None:
            raise ValueError(f"{node.inputs['X']}: expected at least one element, got shape {x.shape}")
        batch, steps = x.shape[:2] if node.batch_first else x.shape[1::-1]
        labels = ("initial_h", "initial_c")[: 1 + len(node.cell.states)]
        shape = (config.directions, batch, config.hidden_size)
        outside = (batch, config.directions, config.hidden_size) if node.batch_first else shape
        state: list[Any] = []
        for label in labels:
            value = values.get(label)
            if value is not None and value.shape != outside:
                raise ValueError(f"{node.inputs[label]}: expected shape {outside}, got {value.shape}")
            state.append(value.swapaxes(0, 1) if value is not None and node.batch_first else value)
        lengths, rows = values.get("sequence_lens"), np.arange(batch)
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.min(initial=0) < 0 or lengths.max(initial=0) > steps:
                name = node.inputs["sequence_lens"]
                raise ValueError(
                    f"{name}: expected shape ({batch},) and values in 0 .. {steps}, got {lengths.tolist()}"
                )
            rows = np.flatnonzero(lengths)  # of a length of 0 a layer would give the initial state
        y = np.zeros((*x.shape[:2], config.directions * config.hidden_size), x.dtype)
        finals = [np.zeros(shape, x.dtype) for _ in labels]
        if rows.size or lengths is None:
            at = (rows,) if node.batch_first else (slice(None), rows)
            begin = [None if value is None else value[:, rows] for value in state]
            y[at], final = layer(
                x[at], begin if len(begin) > 1 else begin[0], None if lengths is None else lengths[rows]
            )
            for whole, value in zip(finals, final if isinstance(final, tuple) else (final,), strict=True):
                whole[:, rows] = value
        y = y.reshape(*x.shape[:2], config.directions, config.hidden_size)
        if node.batch_first:
            return y, [value.swapaxes(0, 1) for value in finals]
        return y.swapaxes(1, 2), finals

    def _build(self, values: dict[str, Any]) -> nn.RecurrentLayer:
        weights = [values.get(role) for role in ("W", "R", "B")]
        for role, value in zip("WRB", weights, strict=True):
            if value is not None and value.dtype.name not in _COMPUTED:
                raise self._node.error(f"{role}: dtype {value.dtype} is not supported; expected {', '.join(_COMPUTED)}")
        return _of_weights(self._node, weights, None, None)


def _layer(node: onnx_nodes.Node, dtype: Any, device: str | None) -> nn.RecurrentLayer:
    weights = [node.constant(role) for role in ("W", "R", "B")]
    for role, value in zip("WRB", weights, strict=True):
        if value is not None and not checks.is_float(value.dtype):
            raise node.error(f"{role}: dtype {value.dtype} is not supported; expected floating point")
    return _of_weights(node, weights, dtype, device)


def _of_weights(node: onnx_nodes.Node, weights: list[Any], dtype: Any, device: str | None) -> nn.RecurrentLayer:
    try:
        config, params = node.params(*weights)
        layer = recurrent(config, params, dtype=dtype, device=device)
    except WeightsError:
        raise
    except ValueError as error:
        raise node.error(str(error)) from error
    return nn.Reversed(layer) if node.direction == "reverse" else layer
