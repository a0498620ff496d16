"""ONNX out: layers and models of :mod:`gpulstm.nn` as graphs of standard operators that ONNX Runtime runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import checks, nn
from ..version import __version__
from . import gate_order, onnx_nodes
from .common import Arrays, PathLike, WeightsError, on_host, path_of, require, write

_LARGEST = 2**31 - 1  # bytes of a protobuf message
_OLDEST = 14  # the first opset whose LSTM, Squeeze and GatherND are those written here

# the operator of each cell, and its activations
_OPS = {cell.name: (op, list(of)) for op, cells in onnx_nodes.CELLS.items() for of, cell in cells.items()}
_ATTRIBUTES: dict[str, dict[str, Any]] = {"gru": {"linear_before_reset": 1}}

Shape = list[Any]  # an int is a size, a str the name of one that may be anything


def export_onnx(
    model: nn.Layer,
    path: PathLike,
    *,
    state: bool = False,
    lengths: bool = False,
    opset: int = 17,
    dtype: Any = None,
) -> None:
    """Write ``model`` as an ONNX file that gives the same output: inference, without dropout.

    Inputs: ``x``, laid out as the layer takes it, T and B free; or int64 ``ids`` where the first layer is an
    Embedding; with ``lengths`` int32 ``lengths`` (B,) in 1 .. T; with ``state`` ``h0`` (L·D, B, H) and for an LSTM
    ``c0``. Outputs: ``y``, ``h``, and ``c``. In a model the names of states begin with the layer's position, such as
    ``1.h0``.

    Args:
        model: ``LSTM``, ``GRU``, ``RNN``, ``Reversed`` of one, Embedding, Linear, a head, or a ``Sequential`` of these,
            Dropout and MeanOverTime.
        path: the file, written whole or not at all.
        state, lengths: whether the model takes initial states, and lengths.
        opset: version of ONNX's operators, 14 or newer.
        dtype: of the model. By default that of the parameters, half types as float32. ONNX Runtime's CPU kernels run
            float32 only.

    Raises:
        ValueError: a cell that ONNX has not, heads, ``state`` with ``proj_size`` (ONNX has no projection: it is folded
            into R, which leaves no room for a projected state), ``lengths`` where no layer takes them, a parameter that
            is not finite, more than 2 GiB, a disk that refuses.
        TypeError: a layer of another class.
        ImportError: onnx is not installed.
    """
    path = path_of(path)
    proto = to_model(model, state=state, lengths=lengths, opset=opset, dtype=dtype)
    if proto.ByteSize() > _LARGEST:
        raise WeightsError(f"{path}: the model is of {proto.ByteSize()} bytes, expected at most {_LARGEST} in one file")
    write(path, proto.SerializeToString())


def to_model(model: nn.Layer, *, state: bool = False, lengths: bool = False, opset: int = 17, dtype: Any = None) -> Any:
    """What :func:`export_onnx` writes, as an ``onnx.ModelProto``."""
    onnx = require("onnx", "onnx")
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST <= checks.integer(opset, "opset") <= newest:
        raise ValueError(f"opset: expected {_OLDEST} .. {newest}, as the installed onnx has, got {checks.shown(opset)}")
    for name, value in (("state", state), ("lengths", lengths)):
        checks.flag(value, name)
    if not isinstance(model, nn.Layer):
        raise TypeError(f"model: expected a layer or model of gpulstm, got {type(model).__name__}")
    params = on_host(model, dtype)
    if not params:
        raise ValueError("model: expected a layer with parameters, got none")
    if lengths and not model.takes_lengths:
        raise ValueError("lengths: expected False, since no layer of this model takes them")
    graph = _Graph(params, state, lengths)
    graph.add(model)
    if len(dtypes := {value.dtype for value in params.values()}) > 1:
        raise ValueError(f"dtype: expected one for all parameters, or dtype=..., got {sorted(map(str, dtypes))}")
    return graph.finish(opset)


class _Graph:
    """A graph under construction: ``value`` is the tensor that the next layer takes, ``shape`` its axes."""

    def __init__(self, params: Arrays, state: bool, lengths: bool) -> None:
        from onnx import TensorProto, helper

        self.helper, self.types = helper, TensorProto
        self.params = params
        self.dtype = next(iter(params.values())).dtype
        self.state = state
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.lengths = self.input("lengths", TensorProto.INT32, ["B"]) if lengths else ""
        self.value = ""
        self.shape: Shape = []

    def add(self, layer: nn.Layer, prefix: str = "") -> None:
        """Append ``layer``, whose parameters are under ``prefix``."""
        if not self.value:
            self._begin(layer)
        if isinstance(layer, nn.Sequential):
            for position, part in enumerate(layer.layers):
                self.add(part, f"{prefix}{position}.")
        elif isinstance(layer, nn.Reversed):
            self._recurrent(layer.layer, prefix, "reverse")
        elif isinstance(layer, nn.Recurrent):
            self._recurrent(layer, prefix, "bidirectional" if layer.config.bidirectional else "forward")
        elif isinstance(layer, nn.Embedding):
            self.value = self.op("Gather", [self.parameter(f"{prefix}weight"), self.value])
            self.shape = [*self.shape, layer.embedding_dim]
        elif isinstance(layer, nn.LastStepHead):
            self._last_step(layer.batch_first)
            self._linear(layer.linear, prefix)
        elif isinstance(layer, nn.MeanOverTime):
            self._mean_over_time()
        elif isinstance(layer, nn.Linear):
            self._linear(layer, prefix)
        elif not isinstance(layer, nn.Dropout):
            raise TypeError(f"model: expected layers of gpulstm.nn that ONNX has, got {type(layer).__name__}")

    def finish(self, opset: int) -> Any:
        """The whole model."""
        from onnx import checker, numpy_helper

        self.nodes.append(self.helper.make_node("Identity", [self.value], ["y"]))
        y = self.helper.make_tensor_value_info("y", self.float_type, self.shape)
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = self.helper.make_graph(self.nodes, "gpulstm", self.inputs, [y, *self.outputs], constants)
        imports = [self.helper.make_opsetid("", opset)]
        model = self.helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=self.helper.find_min_ir_version_for(imports),
            producer_name="gpulstm",
            producer_version=__version__,
        )
        if model.ByteSize() <= _LARGEST:
            checker.check_model(model, full_check=True)
        return model

    @property
    def float_type(self) -> int:
        return self.helper.np_dtype_to_tensor_dtype(self.dtype)

    def input(self, name: str, kind: int, shape: Shape) -> str:
        self.inputs.append(self.helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(value).reshape(value.shape)
        return name

    def parameter(self, name: str) -> str:
        return self.constant(name, self.params[name])

    def numbers(self, *values: int) -> str:
        """A constant of int64, such as axes."""
        return self.constant("int64_" + "_".join(map(str, values)), np.array(values, np.int64))

    def op(self, kind: str, inputs: list[str], outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        """Append a node; its output's name, or a list of those of several."""
        name = name or f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{k}" for k in range(outputs)]
        self.nodes.append(self.helper.make_node(kind, inputs, names, name, **attributes))
        return names[0] if outputs == 1 else names

    def _begin(self, model: nn.Layer) -> None:
        """The model's first input."""
        first, outer = model, ["T", "B"]
        while isinstance(first, nn.Sequential):
            first = next((part for part in first.layers if not isinstance(part, nn.Dropout)), first.layers[0])
        if _batch_first(model):
            outer.reverse()
        if isinstance(first, nn.Embedding):
            self.shape, kind, name = outer, int(self.types.INT64), "ids"
        else:
            inner: nn.Layer = first
            if isinstance(first, nn.Reversed):
                inner = first.layer
            elif isinstance(first, nn.LastStepHead):
                inner = first.linear
            if not isinstance(inner, (nn.Linear, nn.Recurrent)):
                raise TypeError(f"model: expected layers of gpulstm.nn that ONNX has, got {type(first).__name__}")
            features = inner.in_features if isinstance(inner, nn.Linear) else inner.config.input_size
            self.shape, kind, name = [*outer, features], self.float_type, "x"
        self.value = self.input(name, kind, self.shape)

    def _linear(self, layer: nn.Linear, prefix: str) -> None:
        weight = self.constant(f"{prefix}weight.T", self.params[f"{prefix}weight"].T)
        self.value = self.op("MatMul", [self.value, weight])
        if f"{prefix}bias" in self.params:
            self.value = self.op("Add", [self.value, self.parameter(f"{prefix}bias")])
        self.shape = [*self.shape[:-1], layer.out_features]

    def _last_step(self, batch_first: bool) -> None:
        """(T, B, F) or (B, T, F) to the last valid step of each sequence, (B, F)."""
        if not self.lengths:
            index = self.constant("last", np.array(-1, np.int64))
            self.value = self.op("Gather", [self.value, index], axis=1 if batch_first else 0)
        else:
            rows = self.value if batch_first else self.op("Transpose", [self.value], perm=[1, 0, 2])
            last = self.op("Cast", [self.lengths], to=self.types.INT64)
            last = self.op("Sub", [last, self.numbers(1)])
            last = self.op("Unsqueeze", [last, self.numbers(1)])
            self.value = self.op("GatherND", [rows, last], batch_dims=1)
        self.shape = [self.shape[0 if batch_first else 1], self.shape[-1]]

    def _mean_over_time(self) -> None:
        """(T, B, F) to the mean of the valid steps of each sequence, (B, F)."""
        first, one = (self.constant(f"number_{value}", np.array(value, np.int64)) for value in (0, 1))
        count = self.op("Gather", [self.op("Shape", [self.value]), first])
        if self.lengths:
            steps = self.op("Unsqueeze", [self.op("Range", [first, count, one]), self.numbers(1)])
            valid = self.op("Less", [steps, self.op("Cast", [self.lengths], to=self.types.INT64)])
            valid = self.op("Unsqueeze", [valid, self.numbers(2)])
            zero = self.constant("zero", np.zeros((), self.dtype))
            self.value = self.op("Where", [valid, self.value, zero])
            count = self.op("Unsqueeze", [self.lengths, self.numbers(1)])
        total = self.op("ReduceSum", [self.value, self.numbers(0)], keepdims=0)
        self.value = self.op("Div", [total, self.op("Cast", [count], to=self.float_type)])
        self.shape = [self.shape[1], self.shape[-1]]

    def _recurrent(self, layer: nn.Recurrent, prefix: str, direction: str) -> None:
        """One node a layer: ONNX's operators have no stacks, and no batch-first that runtimes run."""
        config = layer.config
        gates = gate_order.check(config, gate_order.ONNX, "ONNX")
        kind, activations = _OPS[config.cell.name]
        attributes = {"hidden_size": config.hidden_size, "direction": direction}
        attributes |= _ATTRIBUTES.get(config.cell.name, {})
        if activations == ["Relu"]:  # the others are ONNX's default
            attributes["activations"] = activations * config.directions
        if direction == "reverse" and config.bidirectional:
            raise ValueError("model: Reversed of a bidirectional layer cannot be exported; expected one direction")
        if self.state and config.proj_size:
            raise ValueError(f"state: expected False with proj_size, got True and proj_size = {config.proj_size}")
        begins = [self._states(prefix + name, layer) for name in ("h0", "c0")[: 1 + len(config.cell.states)]]
        value = self.op("Transpose", [self.value], perm=[1, 0, 2]) if config.batch_first else self.value
        finals: list[list[str]] = []
        for number, ends in enumerate(config.suffixes()):
            name = f"{prefix}{config.cell.name}_l{number}"
            weights = self._weights(layer, prefix, ends, gates, name)
            inputs = [value, *weights[:3], self.lengths, *(begin[number] for begin in begins)]
            while not inputs[-1]:
                inputs.pop()
            y, *final = self.op(kind, inputs, 1 + len(begins), name, **attributes)
            if config.proj_size:
                y, final[0] = (self.op("MatMul", [part, weights[3]]) for part in (y, final[0]))
            if config.bidirectional:
                y = self.op("Transpose", [y], perm=[0, 2, 1, 3])
                value = self.op("Reshape", [y, self.numbers(0, 0, -1)])
            else:
                value = self.op("Squeeze", [y, self.numbers(1)])
            finals.append(final)
        self.value = self.op("Transpose", [value], perm=[1, 0, 2]) if config.batch_first else value
        self.shape = [*self.shape[:-1], config.directions * config.output_size]
        for parts, name, shape in zip(zip(*finals, strict=True), ("h", "c"), config.state_shapes(1), strict=False):
            output = prefix + name
            self.nodes.append(self.helper.make_node("Concat", list(parts), [output], axis=0))
            axes: Shape = [shape[0], "B", shape[2]]
            self.outputs.append(self.helper.make_tensor_value_info(output, self.float_type, axes))

    def _states(self, name: str, layer: nn.Recurrent) -> list[str]:
        """The initial state called ``name`` of each layer of the stack."""
        config = layer.config
        if not self.state:
            return [""] * config.num_layers
        whole = self.input(name, self.float_type, [config.num_layers * config.directions, "B", config.hidden_size])
        if config.num_layers == 1:
            return [whole]
        return self.op(
            "Split", [whole, self.numbers(*[config.directions] * config.num_layers)], config.num_layers, axis=0
        )

    def _weights(
        self, layer: nn.Recurrent, prefix: str, ends: list[str], gates: tuple[str, ...], name: str
    ) -> list[str]:
        """Names of W, R, B ("" without biases) and, with a projection, the matrix (D, H, P) for h and y."""
        config = layer.config
        own = gate_order.TORCH[config.cell.name]

        def stacked(parameter: str) -> np.ndarray:
            values = [self.params[f"{prefix}{parameter}{end}"] for end in ends]
            return np.stack([gate_order.reordered(value, own, gates) for value in values])

        w, r = stacked("weight_ih"), stacked("weight_hh")
        names = [self.constant(f"{name}.W", w), "", ""]
        if config.bias:
            names[2] = self.constant(f"{name}.B", np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1))
        if config.proj_size:  # R acts on h before its projection: weight_hh·(weight_hr·h)
            projection = np.stack([self.params[f"{prefix}weight_hr{end}"] for end in ends])
            r = (r.astype(np.float64) @ projection.astype(np.float64)).astype(self.dtype)
            names.append(self.constant(f"{name}.weight_hr.T", projection.swapaxes(1, 2)))
        names[1] = self.constant(f"{name}.R", r)
        return names


def _batch_first(layer: nn.Layer) -> bool:
    """Whether the first layer that tells sequences from batches takes (B, T, ...)."""
    if isinstance(layer, nn.Sequential):
        first = next((part for part in layer.layers if part.takes_lengths), None)
        return first is not None and _batch_first(first)
    if isinstance(layer, nn.LastStepHead):
        return layer.batch_first
    inner = layer.layer if isinstance(layer, nn.Reversed) else layer
    return isinstance(inner, nn.Recurrent) and inner.config.batch_first
