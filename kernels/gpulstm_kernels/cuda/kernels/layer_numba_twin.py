"""What a layer needs around its walk; ``layer.cu`` has the launch shapes, the same here.

Conversions between the element type and the type of sums, the bias of the gates, and its gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from ..device.numba_kernel import INT, POINTER, Twin, element


def to_accumulate(dtype: np.dtype) -> Twin:
    """Elements as sums."""
    T, A = element(dtype)
    return _convert(T, A)


def from_accumulate(dtype: np.dtype) -> Twin:
    """Sums as elements."""
    T, A = element(dtype)
    return _convert(A, T)


def _convert(source: Any, target: Any) -> Twin:
    def kernel(values, converted, count):
        i = cuda.grid(1)
        if i < count:
            converted[i] = target(values[i])

    return Twin(kernel, (POINTER(source), POINTER(target), INT))


def add_biases(dtype: np.dtype) -> Twin:
    """bias = bias_ih + bias_hh."""
    T, A = element(dtype)

    def kernel(bias_ih, bias_hh, bias, count):
        i = cuda.grid(1)
        if i < count:
            bias[i] = A(bias_ih[i]) + A(bias_hh[i])

    return Twin(kernel, (POINTER(T), POINTER(T), POINTER(A), INT))


def sum_rows(dtype: np.dtype) -> Twin:
    """sums[c] = Σ over rows of values[row, c], each column by eight threads in a fixed order."""
    T, A = element(dtype)

    def kernel(values, sums, rows, columns):
        partial = cuda.shared.array((8, 32), A)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        column = cuda.blockIdx.x * 32 + x
        total = A(0)
        if column < columns:
            for row in range(y, rows, 8):
                total += A(values[row * columns + column])
        partial[y, x] = total
        cuda.syncthreads()
        if y == 0 and column < columns:
            for other in range(1, 8):
                total += partial[other, x]
            sums[column] = T(total)

    return Twin(kernel, (POINTER(T), POINTER(T), INT, INT))
