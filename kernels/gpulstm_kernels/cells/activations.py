"""The functions that cells are written in.

Here for NumPy arrays and scalars; each backend gives Numba its own version of the same names
(:mod:`gpulstm_kernels.cpu.codegen.activations` for vector registers). Arrays keep their dtype. As NumPy does, these
warn of infinities and NaN that come from finite numbers, which kernels do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return np.tanh(x)


def sigmoid(x: Any) -> Any:
    """The logistic function 1 / (1 + exp(-x)), which cannot overflow, nor lose the places of small results."""
    e = np.exp(-np.absolute(x))
    return select(x, 0.0, 1.0, e) / (1.0 + e)


def exp(x: Any) -> Any:
    """e to the power of ``x``; infinity where that is too large."""
    return np.exp(x)


def log(x: Any) -> Any:
    """The natural logarithm: minus infinity of 0, NaN of negative numbers."""
    return np.log(x)


def sqrt(x: Any) -> Any:
    """The square root: NaN of negative numbers, -0 of -0."""
    return np.sqrt(x)


def absolute(x: Any) -> Any:
    """``x`` without its sign."""
    return np.absolute(x)


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), as max(x, 0) + log1p(exp(-|x|)), which cannot overflow, nor lose the places of small results."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.absolute(x)))


def maximum(a: Any, b: Any) -> Any:
    """The larger one, NaN if either is; of 0 and -0 any. ``a`` is an array, ``b`` an array or a Python number."""
    return np.maximum(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one, NaN if either is; of 0 and -0 any. ``a`` is an array, ``b`` an array or a Python number."""
    return np.minimum(a, b)


def select(a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x`` where ``a > b``, else ``y``, also where ``a`` or ``b`` is NaN; in the dtype of ``a``.

    ``a`` is an array, each of the others an array or a Python number. Both ``x`` and ``y`` are computed everywhere.
    """
    dtype = np.asarray(a).dtype
    return np.where(a > b, np.asarray(x, dtype), np.asarray(y, dtype))[()]  # a number where all are
