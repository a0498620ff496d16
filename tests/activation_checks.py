"""The activations that cells are written in, as a GPU computes them: one function of all, and what it must give.

NumPy says that in float64. Kernels write a result of :func:`results` a row, in the order of ``NAMES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpulstm_kernels.cells.activations import (
    absolute,
    exp,
    log,
    maximum,
    minimum,
    select,
    sigmoid,
    softplus,
    sqrt,
    tanh,
)

NAMES = ("tanh", "sigmoid", "exp", "log", "sqrt", "absolute", "softplus", "maximum", "minimum", "select", "clip")
SIGNED = ("tanh", "sqrt", "absolute")  # whose zeros have the sign that NumPy gives them


def results(a: Any, b: Any) -> Any:
    """Every activation, as a cell would call it; constants among the arguments too."""
    of_one = tanh(a), sigmoid(a), exp(a), log(a), sqrt(a), absolute(a), softplus(a)
    clipped = maximum(minimum(a, 2.5), -0.5)
    return of_one + (maximum(a, b), minimum(a, b), select(a, b, 0.5, a), clipped)  # noqa: RUF005 (Numba has no *)


def numba_kernel(dtype: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    """For Numba CUDA a kernel of one thread, and the device function that it calls.

    The kernel's arguments are a, b and y, which is (activations, numbers) as one axis.
    """
    from numba import cuda

    from gpulstm_kernels.cuda.device import numba_cell
    from gpulstm_kernels.cuda.device.numba_kernel import element

    summed = element(np.dtype(dtype)).summed
    of_scalars = cuda.jit(device=True)(numba_cell._with_constants(results, summed))
    store = numba_cell.storer(len(NAMES), summed)

    def kernel(a, b, y):
        for i in range(a.size):
            store(of_scalars(a[i], b[i]), y, i, a.size)

    return kernel, of_scalars


def pairs(dtype: str, subnormal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of ordinary and extreme numbers; those below the normal ones only if ``subnormal``."""
    info = np.finfo(dtype)
    sizes = [0, info.tiny, info.eps, 0.125, 0.5, 1, 2.75, 9, 15.5, 40, 80, 104, 709.5, 745.5, info.max, np.inf]
    if subnormal:
        sizes.append(np.nextafter(info.dtype.type(0), info.dtype.type(1)))
    values = np.array([*sizes, *np.negative(sizes), np.nan], dtype)
    a, b = np.meshgrid(values, values)
    return a.ravel(), b.ravel()


def check(a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    """``found`` (activations, numbers) of ``a`` and ``b`` is right: within four units of the last place of 1."""
    x, other = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        of_one = np.tanh(x), 1 / (1 + np.exp(-x)), np.exp(x), np.log(x), np.sqrt(x), np.abs(x)
        softened = np.where(x > 40, x, np.log1p(np.exp(x)))
        of_two = np.maximum(x, other), np.minimum(x, other), np.where(x > other, 0.5, x)
        expected = np.stack([*of_one, softened, *of_two, np.clip(x, -0.5, 2.5)]).astype(a.dtype)
    assert found.dtype == a.dtype
    info = np.finfo(a.dtype)
    for name, value, right in zip(NAMES, found, expected, strict=True):
        exact = name in ("absolute", "maximum", "minimum", "select", "clip")
        rtol, atol = (0, 0) if exact else (4 * info.eps, info.tiny)  # a GPU may give zero for what is not normal
        np.testing.assert_allclose(value, right, rtol, atol, err_msg=name)
        if name in SIGNED:
            zero = x == 0
            np.testing.assert_array_equal(np.signbit(value[zero]), np.signbit(right[zero]), name)
