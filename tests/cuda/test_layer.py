"""The CUDA backend against the float64 reference: every cell, type and awkward shape, by each walk that fits.

Buffers and shared memory are poisoned on the emulator, so what a kernel forgot to write is NaN and fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
from problems import Arrays, Problem
from tolerances import assert_close

from gpulstm_kernels import reference
from gpulstm_kernels.cuda import layer
from gpulstm_kernels.cuda.device import precision

KINDS = ["float32", "tf32", "float64", "float16", "bfloat16"]
CELLS = ["lstm", "rnn"]

# steps, batch, inputs, hidden, projection, directions, bias, ragged
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool, bool]] = {
    "one of each": (1, 1, 1, 2, 0, 1, True, False),
    "one step": (1, 5, 3, 7, 0, 2, True, True),
    "one sequence": (6, 1, 9, 37, 0, 1, True, False),
    "odd": (5, 7, 3, 33, 0, 1, True, True),
    "even": (3, 8, 16, 64, 0, 2, False, False),
    "ragged": (4, 9, 5, 12, 0, 2, True, True),
    "no bias": (4, 3, 5, 9, 0, 2, False, True),
    "projected": (5, 6, 4, 33, 7, 2, True, True),
    "projected even": (3, 2, 4, 32, 8, 1, True, False),
}


def solved(p: Problem) -> Arrays:
    """The reference's outputs and gradients, for the same numbers in float64."""
    wide = p._replace(
        x=p.x.astype("float64"),
        state=tuple(part.astype("float64") for part in p.state),
        weights=[{name: value.astype("float64") for name, value in w.items()} for w in p.weights],
        dy=p.dy.astype("float64"),
        dstate=tuple(part.astype("float64") for part in p.dstate),
    )
    outputs, tape = problems.outputs(reference, wide, training=True)
    return outputs | problems.gradients(reference, wide, tape)


def moved(runtime: Any, p: Problem) -> Problem:
    """The problem on the device."""
    return p._replace(
        x=runtime.to_device(p.x),
        state=tuple(runtime.to_device(part) for part in p.state),
        weights=[{name: runtime.to_device(value) for name, value in w.items()} for w in p.weights],
        dy=runtime.to_device(p.dy),
        dstate=tuple(runtime.to_device(part) for part in p.dstate),
    )


class OnDevice:
    """The backend for :mod:`problems`, which works with NumPy arrays."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def layer_forward(self, shape: Any, x: Any, state: Any, weights: Any, lengths: Any) -> Any:
        y, final, tape = layer.layer_forward(shape, x, state, weights, lengths, self.runtime)
        return self.runtime.to_host(y), tuple(self.runtime.to_host(part) for part in final), tape

    def layer_backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        dx, initial, grads = layer.layer_backward(tape, dy, dstate)
        host = self.runtime.to_host
        return host(dx), tuple(map(host, initial)), [{name: host(v) for name, v in grad.items()} for grad in grads]


def check(runtime: Any, p: Problem, kind: str, label: str) -> None:
    """Outputs, final states and every gradient, of training and (outputs) of inference."""
    expected = solved(p)
    backend, there = OnDevice(runtime), moved(runtime, p)
    outputs, tape = problems.outputs(backend, there, training=True)
    found = outputs | problems.gradients(backend, there, tape)
    dtype = p.x.dtype
    what = "cuda tf32" if kind == "tf32" else "cuda"
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert_close(found[name], value, what, dtype, f"{label}: {name}")
    inference, _ = problems.outputs(backend, there, training=False)
    for name, value in inference.items():
        np.testing.assert_array_equal(value, found[name], f"{label}: {name} of inference")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """A dtype, or float32 with TF32 products."""
    precision.allow_tf32(request.param == "tf32")
    yield request.param
    precision.allow_tf32(False)


def dtype_of(kind: str) -> str:
    return "float32" if kind == "tf32" else kind


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("walk", ["step", "block", "grid"])
def test_equals_the_reference(runtime: Any, walk: str, cell: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    for label, (steps, batch, inputs, hidden, projection, directions, bias, ragged) in SHAPES.items():
        p = problems.layer_problem(
            cell,
            dtype_of(kind),
            steps=steps,
            batch=batch,
            inputs=inputs,
            hidden=hidden,
            projection=projection,
            directions=directions,
            bias=bias,
            ragged=ragged,
        )
        if walk != "step" and (projection or kind == "float64"):
            continue
        check(runtime, p, kind, label)
