"""The ONNX model that ONNX Runtime and OpenVINO run: one LSTM node, weights inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..problem import Problem, check_plain

INPUTS = ("x", "h0", "c0")
OUTPUTS = ("y", "h", "c")


def inputs(problem: Problem) -> dict[str, np.ndarray]:
    """What the model is given, by the names of its inputs."""
    return dict(zip(INPUTS, (problem.x, *problem.state), strict=True))


def serialized(problem: Problem) -> bytes:
    """Inputs x (T, B, I), h0, c0 (1, B, H); outputs y (T, 1, B, H), h, c (1, B, H)."""
    check_plain(problem.case)
    steps, batch, hidden = problem.case.steps, problem.case.batch, problem.case.hidden

    def reordered(name: str) -> np.ndarray:
        i, f, g, o = np.split(problem.params[name], 4)
        return np.concatenate([i, o, f, g])[None]  # ONNX has the gates as i, o, f, c

    weights = {
        "W": reordered("weight_ih_l0"),
        "R": reordered("weight_hh_l0"),
        "bias": np.concatenate([reordered("bias_ih_l0"), reordered("bias_hh_l0")], axis=1),
    }

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = (1, batch, hidden)
    node = helper.make_node("LSTM", ["x", "W", "R", "bias", "", "h0", "c0"], list(OUTPUTS), hidden_size=hidden)
    graph = helper.make_graph(
        [node],
        "lstm",
        [tensor("x", problem.x.shape), tensor("h0", state), tensor("c0", state)],
        [tensor("y", (steps, 1, batch, hidden)), tensor("h", state), tensor("c", state)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()
