"""What a layer needs around its walk; ``layer.cu`` has the launch shapes, the same here.

Conversions between the element type and the type of sums, the bias of the gates, and sums of gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from ..device.numba_kernel import BYTE, INT, POINTER, Twin, element


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
    """sums[c] = Σ over rows of values[row, c], each column by eight threads in a fixed order; ``width`` a row."""
    T, A = element(dtype)

    def kernel(values, sums, rows, columns, width):
        partial = cuda.shared.array((8, 32), A)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        column = cuda.blockIdx.x * 32 + x
        total = A(0)
        if column < columns:
            for row in range(y, rows, 8):
                total += A(values[row * width + column])
        partial[y, x] = total
        cuda.syncthreads()
        if y == 0 and column < columns:
            for other in range(1, 8):
                total += partial[other, x]
            sums[column] = T(total)

    return Twin(kernel, (POINTER(T), POINTER(T), *(INT,) * 3))


def sum_columns(dtype: np.dtype) -> Twin:
    """sums[row] = Σ of the ``columns`` values of each row from ``first``, by 32 threads in a fixed order."""
    T, A = element(dtype)

    def kernel(values, sums, rows, first, columns, width):
        partial = cuda.shared.array((8, 32), A)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        row = cuda.blockIdx.x * 8 + y
        total = A(0)
        if row < rows:
            for column in range(x, columns, 32):
                total += A(values[row * width + first + column])
        partial[y, x] = total
        cuda.syncthreads()
        if x == 0 and row < rows:
            for other in range(1, 32):
                total += partial[y, other]
            sums[row] = T(total)

    return Twin(kernel, (POINTER(T), POINTER(T), *(INT,) * 4))


def h_before(dtype: np.dtype) -> Twin:
    """h before each step of a direction (T, B, P) out of ys (T+2, B, D·P): zero where a sequence begins anew."""
    T, A = element(dtype)

    def kernel(ys, resets, before, direction, directions, steps, batch, outputs):
        i = cuda.grid(1)
        row = i // outputs
        if row >= steps * batch:
            return
        if row // batch + direction < steps and resets[row + direction * batch] != 0:
            before[i] = T(A(0))
        else:
            before[i] = ys[((row + 2 * direction * batch) * directions + direction) * outputs + i % outputs]

    return Twin(kernel, (POINTER(T), POINTER(BYTE), POINTER(T), *(INT,) * 5))


def clear_columns(dtype: np.dtype) -> Twin:
    """values[row, first ...] = 0 in each of the rows, of ``width`` elements."""
    _, A = element(dtype)

    def kernel(values, rows, first, width):
        i, columns = cuda.grid(1), width - first
        row = i // columns
        if row < rows:
            values[row * width + first + i % columns] = A(0)

    return Twin(kernel, (POINTER(A), *(INT,) * 3))
