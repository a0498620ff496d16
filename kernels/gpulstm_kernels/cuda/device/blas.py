"""cuBLAS, called directly: products on the caller's stream that a CUDA graph can capture.

CuPy's own wrapper refuses to call cuBLAS while a stream is being captured. This one works with memory that it is
given, since cuBLAS may allocate nothing then, and with row-major matrices, so that it knows no array library.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_int, c_longlong, c_size_t, c_void_p
from typing import NamedTuple

import numpy as np

_MEBIBYTE = 2**20
_STATUS = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH",
    11: "CUBLAS_STATUS_MAPPING_ERROR",
    13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
    16: "CUBLAS_STATUS_LICENSE_ERROR",
}
# cudaDataType_t and cublasComputeType_t of library_types.h and cublas_api.h
_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_DEFAULT_ALGORITHM = -1
_NO_HALF_PARTIAL_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


class CublasError(RuntimeError):
    """A call that cuBLAS refused; the message holds its status."""


class Matrix(NamedTuple):
    """A matrix, or a batch of them, in device memory: row-major, its last axis contiguous."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes."""
    dtype: np.dtype

    @property
    def batch(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def rows(self) -> int:
        return self.shape[-2]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def leading(self) -> int:
        """Elements from one row to the next, at least one; where there is no next row the stride may say anything."""
        free = self.rows == 1 or 0 in self.shape
        return max(1, self.columns if free else self.strides[-2] // self.dtype.itemsize)

    @property
    def between(self) -> int:
        """Elements from one matrix of the batch to the next."""
        return self.strides[0] // self.dtype.itemsize if self.batch > 1 else 0

    def check(self, name: str) -> None:
        """Raise ValueError unless the matrix is what this class says."""
        if self.dtype.name not in _TYPES:
            raise ValueError(f"{name}: expected one of {', '.join(_TYPES)}, got {self.dtype}")
        size = self.dtype.itemsize
        used = [step for step, length in zip(self.strides, self.shape, strict=True) if length > 1]
        fits = all(step >= 0 and step % size == 0 for step in used) and (self.columns == 1 or self.strides[-1] == size)
        if len(self.shape) not in (2, 3) or not (fits or 0 in self.shape) or self.leading < self.columns:
            raise ValueError(
                f"{name}: expected two or three axes, the last contiguous, got shape {self.shape} with strides "
                f"{self.strides} of {self.dtype}"
            )


def workspace_size(capability: int) -> int:
    """Bytes of workspace that cuBLAS's manual recommends for a compute capability (major · 10 + minor)."""
    return (32 if capability >= 90 else 4) * _MEBIBYTE


def find(major: int = 13) -> ctypes.CDLL:
    """The cuBLAS library of the CUDA that Python packages or the system have installed.

    Args:
        major: of the CUDA version to look for first, where it is left to the system's loader.

    Raises:
        OSError: there is none.
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:
        pass
    else:
        try:
            return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        except RuntimeError:  # it knows of none: the names below may yet be found by the system's loader
            pass
    pattern = "cublas64_{}.dll" if sys.platform == "win32" else "libcublas.so.{}"
    names = [pattern.format(version) for version in sorted((13, 12), key=lambda version: version != major)]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"no cuBLAS was found (looked for {', '.join(names)}); install gpulstm[cuda13] or gpulstm[cuda12]")


class Handle:
    """A cuBLAS handle: for one device, used by one thread at a time, kept as long as the process.

    To destroy one waits for the whole device, and is forbidden while a stream is being captured.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = c_void_p()
        self._used: tuple[int, int, int] | None = None
        self._call("cublasCreate_v2", byref(self._handle))
        self._call("cublasSetMathMode", self._handle, c_int(_NO_HALF_PARTIAL_SUMS))

    def use(self, stream: int, workspace: int, size: int) -> None:
        """Work on ``stream`` from now on, with ``size`` bytes of device memory at ``workspace``."""
        if self._used == (stream, workspace, size):
            return
        self._used = None  # whatever fails below, the next call starts anew
        self._call("cublasSetStream_v2", self._handle, c_void_p(stream))  # and forgets the workspace
        self._call("cublasSetWorkspace_v2", self._handle, c_void_p(workspace), c_size_t(size))
        self._used = stream, workspace, size

    def gemm(
        self,
        a: Matrix,
        b: Matrix,
        out: Matrix,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
        tf32: bool = False,
    ) -> None:
        """As :meth:`gpulstm_kernels.cuda.device.runtime.Runtime.gemm`.

        Raises:
            ValueError: shapes, strides or dtypes that do not fit.
            CublasError: cuBLAS refused.
        """
        for matrix, name in ((a, "a"), (b, "b"), (out, "out")):
            matrix.check(name)
        m, k = (a.columns, a.rows) if transpose_a else (a.rows, a.columns)
        other, n = (b.columns, b.rows) if transpose_b else (b.rows, b.columns)
        if other != k or (out.rows, out.columns) != (m, n) or not a.batch == b.batch == out.batch:
            raise ValueError(f"b: shapes {a.shape} and {b.shape} do not multiply to {out.shape}")
        half = a.dtype.itemsize == 2
        if a.dtype != b.dtype or (out.dtype != a.dtype and not (half and out.dtype == np.float32)):
            raise ValueError(f"out: dtypes {a.dtype} and {b.dtype} do not multiply to {out.dtype}")
        if m == 0 or n == 0 or out.batch == 0:
            return
        double = a.dtype == np.float64
        compute = _COMPUTE_64F if double else _COMPUTE_32F_FAST_TF32 if tf32 and not half else _COMPUTE_32F
        scalar = ctypes.c_double if double else ctypes.c_float
        # cuBLAS reads columns first: what is out for us is outᵀ = op(b)ᵀ·op(a)ᵀ for it
        self._call(
            "cublasGemmStridedBatchedEx",
            self._handle,
            c_int(transpose_b),
            c_int(transpose_a),
            c_int(n),
            c_int(m),
            c_int(k),
            byref(scalar(1)),
            *_operand(b),
            *_operand(a),
            byref(scalar(1 if accumulate else 0)),
            *_operand(out),
            c_int(out.batch),
            c_int(compute),
            c_int(_DEFAULT_ALGORITHM),
        )

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise CublasError(f"{name}: {_STATUS.get(status, status)}")


def _operand(matrix: Matrix) -> tuple[object, ...]:
    kind = _TYPES[matrix.dtype.name]
    return c_void_p(matrix.pointer), c_int(kind), c_int(matrix.leading), c_longlong(matrix.between)
