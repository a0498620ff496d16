"""What :mod:`gpulstm_kernels.reference` promises of a backend's tapes, for the tests of every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems

OPTIONS: list[dict[str, Any]] = [
    {"hidden": 7, "dtype": "float64"},
    {"hidden": 5, "directions": 2, "ragged": True, "dtype": "float32"},
    {"hidden": 9, "projection": 4, "directions": 2, "ragged": True, "dtype": "float64"},
    {"hidden": 64, "steps": 9, "batch": 5, "bias": False, "dtype": "float32"},
    {"hidden": 33, "projection": 1, "batch": 1, "steps": 1, "dtype": "float64"},
]


def name(options: dict[str, Any]) -> str:
    """Of a case."""
    return "-".join([*map(str, options.values()), *["projected"] * ("projection" in options)])


def check_tape(backend: Any, p: problems.Problem, **runtime: Any) -> None:
    """Arrays as announced, and the same gradients from the tape that they make again."""
    shape = p.shape(training=True)
    y, _, tape = backend.layer_forward(shape, *p.arguments, **runtime)
    arrays = backend.tape_arrays(tape)
    assert [(array.shape, array.dtype.name) for array in arrays] == backend.tape_layout(shape)
    again = backend.tape_of(shape, p.x, p.weights, p.lengths, arrays, p.inputs, p.resets, **runtime)
    found = [problems.gradients(backend, p, one) for one in (tape, again)]
    host = np.asarray if not runtime else runtime["runtime"].to_host
    np.testing.assert_array_equal(host(arrays[0])[1:-1], host(y))
    for name, value in found[0].items():
        np.testing.assert_array_equal(host(value), host(found[1][name]), err_msg=name)
