"""The activations that cells are written in.

Here for NumPy arrays and scalars; each backend gives Numba its own version of the same names
(:mod:`gpulstm_kernels.cpu.codegen.activations` for vector registers).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return np.tanh(x)


def sigmoid(x: Any) -> Any:
    """The logistic function 1 / (1 + exp(-x)), as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    return 0.5 * np.tanh(0.5 * x) + 0.5
