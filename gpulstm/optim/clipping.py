"""Gradient clipping by the joint norm of all gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import arrays, checks
from .optimizer import Params
from .state_checks import check_array


def clip_by_norm(grads: Params, max_norm: float) -> Any:
    """Scale ``grads`` in place to a joint Euclidean norm of at most ``max_norm``; give the norm before.

    It is a float, or on a GPU a 0-d float64 array there, so that nothing waits for it.

    A norm that is NaN or infinite is returned and the gradients are left alone. ``max_norm`` may be infinite.

    Raises:
        ValueError: max_norm not above 0, or a read-only gradient.
        TypeError: a gradient that is no float32 or float64 array.
    """
    max_norm = checks.real(max_norm, "max_norm", "(0, inf]")
    for name, gradient in checks.named(grads, "grads").items():
        check_array(gradient, f"grads[{name!r}]", writeable=True)
    if arrays.device_of(next(iter(grads.values()), None)) == "cuda":
        from . import kernels_cuda

        return kernels_cuda.clip_by_norm(list(grads.values()), max_norm)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(sum(_square_sum(gradient) for gradient in grads.values()))
    if math.isfinite(norm) and norm > max_norm:
        for gradient in grads.values():
            gradient *= max_norm / norm
    return norm


def _square_sum(value: np.ndarray) -> float:
    """The sum of squares in float64, block by block: float32 would overflow from 1e19 on."""
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    with np.nditer([value], flags, [["readonly"]], op_dtypes=["f8"], buffersize=8192) as blocks:
        return sum(float(np.dot(block, block)) for block in blocks)
