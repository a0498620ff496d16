"""The one table of tolerances: by what is compared and dtype. The worst error seen stands beside each line.

An error is max |actual - expected| / max(1, max |expected|). ``pytest -v`` prints the worst errors of its run.
Never loosened for one machine: a line that fails elsewhere is a finding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCES: dict[tuple[str, str], float] = {
    # a kernel against the float64 reference, given the same (rounded) parameters
    ("kernel", "float32"): 2e-5,
    ("kernel", "float64"): 1e-13,
    # a whole network against torch.nn.LSTM and torch.nn.RNN
    ("torch", "float32"): 1e-5,
    ("torch", "float64"): 1e-13,
    # matrix products against NumPy's
    ("product", "float32"): 1e-5,
    ("product", "float64"): 1e-13,
    # activations over the whole range
    ("activation", "float32"): 1e-6,
    ("activation", "float64"): 1e-15,
    # two ways to write a cell
    ("cell", "float64"): 1e-14,
    # an exact gradient against central differences with a step of 1e-5
    ("differences", "float64"): 1e-7,
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
