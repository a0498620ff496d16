"""ONNX models of one node, and ONNX Runtime to run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

Arrays = dict[str, np.ndarray]

ROLES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def weights(op: str, hidden: int, inputs: int, directions: int = 1, *, bias: bool = True, seed: int = 0) -> Arrays:
    """Random W, R and B."""
    rng = np.random.default_rng(seed)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    shapes = {"W": (directions, rows, inputs), "R": (directions, rows, hidden)}
    if bias:
        shapes["B"] = (directions, 2 * rows)
    bound = hidden**-0.5
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def model(
    op: str,
    inputs: Arrays,
    constants: Arrays,
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c"),
    opset: int = 22,
    **options: Any,
) -> ModelProto:
    """A model of one node, whose inputs have ONNX's own names; options are attributes."""
    connected = [role if role in inputs or role in constants else "" for role in ROLES]
    while not connected[-1]:
        connected.pop()
    if op != "LSTM":
        outputs = outputs[:2]
    node = helper.make_node(op, connected, list(outputs), name="node", **options)
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs["X"].dtype), None)
            for name in outputs
            if name
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))


def run(proto: ModelProto, inputs: Arrays) -> Arrays:
    """What ONNX Runtime gives, on one thread and without its log."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
