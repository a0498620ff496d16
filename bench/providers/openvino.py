"""OpenVINO: the same ONNX model, read by its own front end; inputs set once, float32 kept as float32."""

from __future__ import annotations

from typing import Any

import openvino

from ..problem import Outputs, Problem, Runner
from .onnx_model import inputs, serialized

config: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 where the CPU has it
    "NUM_STREAMS": 1,
}


def setup(threads: int) -> None:
    config["INFERENCE_NUM_THREADS"] = threads


def inference(problem: Problem) -> Runner:
    core = openvino.Core()
    model = core.read_model(model=serialized(problem), weights=b"")
    request = core.compile_model(model, "CPU", config).create_infer_request()
    for name, value in inputs(problem).items():
        request.set_tensor(name, openvino.Tensor(value, shared_memory=True))

    def outputs(_: Any) -> Outputs:
        shapes = problem.outputs("inference")
        return {name: request.get_tensor(name).data.reshape(shapes[name]) for name in shapes}

    return request.infer, outputs
