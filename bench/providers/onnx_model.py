"""The ONNX model that ONNX Runtime and OpenVINO run: one LSTM or GRU node, weights inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..problem import Problem, check_plain, named

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}  # of ONNX's gates in torch's: i, o, f, c and z, r, h


def inputs(problem: Problem) -> dict[str, np.ndarray]:
    """What the model is given, by the names of its inputs."""
    return {"x": problem.x, **named(problem.case, problem.state, suffix="0")}


def serialized(problem: Problem) -> bytes:
    """Inputs x (T, B, I), h0, c0 (1, B, H); outputs y (T, 1, B, H), h, c (1, B, H)."""
    check_plain(problem.case)
    case = problem.case
    steps, batch, hidden, order = case.steps, case.batch, case.hidden, ORDER[case.cell]

    def reordered(name: str) -> np.ndarray:
        gates = np.split(problem.params[name], len(order))
        return np.concatenate([gates[k] for k in order])[None]

    weights = {
        "W": reordered("weight_ih_l0"),
        "R": reordered("weight_hh_l0"),
        "bias": np.concatenate([reordered("bias_ih_l0"), reordered("bias_hh_l0")], axis=1),
    }

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = (1, batch, hidden)
    x, *initial = inputs(problem)
    y, *final = problem.outputs("inference")
    options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
    names = [x, "W", "R", "bias", "", *initial]
    node = helper.make_node(case.cell.upper(), names, [y, *final], hidden_size=hidden, **options)
    graph = helper.make_graph(
        [node],
        case.cell,
        [tensor(x, problem.x.shape), *(tensor(name, state) for name in initial)],
        [tensor(y, (steps, 1, batch, hidden)), *(tensor(name, state) for name in final)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()
