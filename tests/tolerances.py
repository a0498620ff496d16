"""The one table of tolerances: by what is compared and dtype. The worst error seen stands beside each line.

An error is max |actual - expected| / max(1, max |expected|). ``pytest -v`` prints the worst errors of its run; those
noted here are the worst of three kinds of x86-64: AVX-512, AVX2, and SSE2 without fused multiply-add. Never loosened
for one machine: a line that fails elsewhere is a finding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCES: dict[tuple[str, str], float] = {
    # a kernel against the float64 reference, given the same (rounded) parameters
    ("kernel", "float32"): 8e-6,  # 1.4e-6
    ("kernel", "float64"): 1e-14,  # 2.7e-15
    # the same of cells whose values nothing bounds, so that they multiply what is rounded
    ("kernel of a random cell", "float64"): 1e-13,  # 1.3e-14
    # two orders of the same sums, with h rounded to bfloat16 at every step: a last bit may decide how
    ("bfloat16 sums", "float32"): 1e-3,  # 1.1e-7
    # a CUDA kernel against the float64 reference, for the same rounded parameters; half types round h at every step
    ("cuda", "float32"): 8e-6,  # 7.6e-7
    ("cuda", "float64"): 1e-14,  # 8.6e-16
    ("cuda", "float16"): 4e-3,  # 0.0012
    ("cuda", "bfloat16"): 3e-2,  # 0.0066
    ("cuda tf32", "float32"): 4e-3,  # 0.00078
    # a whole network against torch.nn.LSTM and torch.nn.RNN
    ("torch", "float32"): 5e-6,  # 7.7e-7
    ("torch", "float64"): 1e-14,  # 2.2e-15
    # a layer or model against ONNX Runtime, Keras and a jax.lax.scan, given the same parameters
    ("onnx", "float32"): 5e-6,  # 4.8e-7
    ("keras", "float32"): 5e-6,  # 1.9e-7
    ("jax", "float32"): 5e-6,  # 5.1e-7
    ("jax", "float64"): 1e-14,  # 6.6e-16
    # matrix products against NumPy's in float64
    ("product", "float32"): 5e-6,  # 7.2e-7
    ("product", "float64"): 5e-15,  # 1.1e-15
    # activations over the whole range
    ("activation", "float32"): 1e-6,  # 3.2e-7
    ("activation", "float64"): 1e-15,  # 3.3e-16
    # two ways to write a cell
    ("cell", "float64"): 2e-15,  # 2.2e-16
    # an exact gradient against central differences with a step of 1e-5
    ("differences", "float64"): 4e-9,  # 4.0e-10
}

worst: dict[tuple[str, str], float] = {}  # seen in this process


def error(actual: Any, expected: Any) -> float:
    """The error as defined above, in float64; NaN if either side has any."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.max(np.abs(actual - expected)) / max(1.0, np.max(np.abs(expected))))


def assert_close(actual: Any, expected: Any, what: str, dtype: Any, label: str = "") -> None:
    """Fail, naming ``label``, unless ``actual`` is within the tolerance for comparing ``what`` in ``dtype``."""
    line = what, np.dtype(dtype).name
    found = error(actual, expected)
    assert found <= TOLERANCES[line], f"{label or what}: error {found:.3g}, tolerance {TOLERANCES[line]:.3g}"
    worst[line] = max(found, worst.get(line, 0.0))
