"""The row-major products of blas.py over a cuBLAS that reads columns first, as its manual says, written in NumPy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from gpulstm_kernels.cuda.device import blas

ml_dtypes = pytest.importorskip("ml_dtypes")

TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}
COMPUTE = {68: "fp32", 70: "fp64", 77: "tf32"}
SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15


def columns_first(pointer: Any, kind: Any, rows: int, columns: int, leading: Any, between: Any, batch: int) -> Any:
    """The matrices (batch, rows, columns) that cuBLAS sees at an address."""
    dtype = np.dtype(TYPES[kind.value])
    count = (batch - 1) * between.value + (columns - 1) * leading.value + rows
    memory = np.ctypeslib.as_array((ctypes.c_ubyte * (count * dtype.itemsize)).from_address(pointer.value)).view(dtype)
    steps = (between.value * dtype.itemsize, dtype.itemsize, leading.value * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(memory, (batch, rows, columns), steps)


class FakeCublas:
    """Its calls, recorded; each answers with ``status``."""

    def __init__(self, status: int = SUCCESS) -> None:
        self.status = status
        self.calls: list[str] = []
        self.compute = ""
        self.workspace: int | None = None

    def cublasCreate_v2(self, handle: Any) -> int:
        handle._obj.value = 1
        self.calls.append("create")
        return self.status

    def cublasSetMathMode(self, handle: Any, mode: Any) -> int:
        assert mode.value == 16  # sums of half types stay in float
        return SUCCESS

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self.calls.append(f"stream {stream.value or 0}")
        self.workspace = None
        return self.status

    def cublasSetWorkspace_v2(self, handle: Any, workspace: Any, size: Any) -> int:
        self.calls.append(f"workspace {workspace.value} {size.value}")
        self.workspace = workspace.value
        return self.status

    def cublasGemmStridedBatchedEx(
        self,
        handle: Any,
        transpose_a: Any,
        transpose_b: Any,
        m: Any,
        n: Any,
        k: Any,
        alpha: Any,
        a: Any,
        a_type: Any,
        lda: Any,
        a_between: Any,
        b: Any,
        b_type: Any,
        ldb: Any,
        b_between: Any,
        beta: Any,
        c: Any,
        c_type: Any,
        ldc: Any,
        c_between: Any,
        batch: Any,
        compute: Any,
        algorithm: Any,
    ) -> int:
        assert self.workspace is not None
        self.calls.append("gemm")
        self.compute = COMPUTE[compute.value]
        a_shape = (k.value, m.value) if transpose_a.value else (m.value, k.value)
        b_shape = (n.value, k.value) if transpose_b.value else (k.value, n.value)
        if lda.value < max(1, a_shape[0]) or ldb.value < max(1, b_shape[0]) or ldc.value < max(1, m.value):
            return INVALID_VALUE
        if (compute.value == 70) != (a_type.value == 1) or a_type.value != b_type.value:
            return NOT_SUPPORTED
        sums = np.float64 if compute.value == 70 else np.float32
        product: Any = 0
        if k.value:
            left = columns_first(a, a_type, *a_shape, lda, a_between, batch.value).astype(sums)
            right = columns_first(b, b_type, *b_shape, ldb, b_between, batch.value).astype(sums)
            left = left.swapaxes(1, 2) if transpose_a.value else left
            right = right.swapaxes(1, 2) if transpose_b.value else right
            product = alpha._obj.value * (left @ right)
        out = columns_first(c, c_type, m.value, n.value, ldc, c_between, batch.value)
        out[...] = product + (beta._obj.value * out.astype(sums) if beta._obj.value else 0)
        return self.status


def described(array: np.ndarray) -> blas.Matrix:
    return blas.Matrix(array.ctypes.data, array.shape, array.strides, array.dtype)


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, **flags: bool) -> FakeCublas:
    library: Any = FakeCublas()
    handle = blas.Handle(library)
    handle.use(7, 4096, 1024)
    handle.gemm(described(a), described(b), described(out), **flags)
    return library


def whole(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Small integers: every sum of products is exact in every type."""
    rng = np.random.default_rng(abs(hash(shape)) % 1000)
    return rng.integers(-3, 4, shape).astype(dtype)


VIEWS = {
    "whole": lambda array: array,
    "columns of a wider matrix": lambda array: widened(array)[..., 3 : 3 + array.shape[-1]],
    "every third of a batch": lambda array: np.repeat(array, 3, axis=0)[::3] if array.ndim == 3 else array,
}


def widened(array: np.ndarray) -> np.ndarray:
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(3, 2)], constant_values=1)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
@pytest.mark.parametrize(
    ("dtype", "result"),
    [*((kind, kind) for kind in TYPES.values()), *((kind, np.float32) for kind in list(TYPES.values())[2:])],
)
def test_products_of_views(dtype: Any, result: Any, batch: tuple[int, ...], transposed: Any, view: Any) -> None:
    m, n, k = 4, 5, 6
    a = whole((*batch, *((k, m) if transposed[0] else (m, k))), dtype)
    b = whole((*batch, *((n, k) if transposed[1] else (k, n))), dtype)
    before = whole((*batch, m, n), result)
    wide = [x.astype(np.float64) for x in (a, b, before)]
    product = (wide[0].swapaxes(-1, -2) if transposed[0] else wide[0]) @ (
        wide[1].swapaxes(-1, -2) if transposed[1] else wide[1]
    )
    for accumulate in (False, True):
        out = view(before.copy())
        around = (out.base if out.base is not None and out.base.dtype == out.dtype else out).copy()
        library = multiply(
            view(a), view(b), out, transpose_a=transposed[0], transpose_b=transposed[1], accumulate=accumulate
        )
        np.testing.assert_array_equal(out.astype(np.float64), product + (wide[2] if accumulate else 0))
        assert library.compute == ("fp64" if dtype is np.float64 else "fp32")
        if out.base is not None and around.shape != out.shape:
            changed = (out.base.astype(np.float64) != around.astype(np.float64)).sum()
            assert changed <= out.size  # and nothing around it


@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_sizes_of_none_and_one(m: int, n: int, k: int) -> None:
    a, b = np.ones((2, m, k), np.float32), np.ones((2, k, n), np.float32)
    for transposed in (False, True):
        out = np.full((2, m, n), 5, np.float32)
        multiply(a.swapaxes(1, 2).copy() if transposed else a, b, out, transpose_a=transposed)
        np.testing.assert_array_equal(out, np.full((2, m, n), k))
        multiply(a, b.swapaxes(1, 2).copy() if transposed else b, out, transpose_b=transposed, accumulate=True)
        np.testing.assert_array_equal(out, np.full((2, m, n), 2 * k))


def test_an_axis_of_one_may_have_any_stride() -> None:
    row = np.lib.stride_tricks.as_strided(whole((1, 4), np.float32), (1, 4), (0, 4))
    column = np.arange(16, dtype=np.float32).reshape(4, 4)[:, 1:2]
    one = np.lib.stride_tricks.as_strided(row, (1, 1, 4), (12, 1, 4))
    out = np.empty((1, 1), np.float32)
    multiply(row, column, out)
    np.testing.assert_array_equal(out, row @ column)
    multiply(row, np.lib.stride_tricks.as_strided(column, (4, 1), (16, 7)), out)
    np.testing.assert_array_equal(out, row @ column)
    multiply(one, column[None], out[None])
    np.testing.assert_array_equal(out, row @ column)


def test_tf32_only_where_allowed() -> None:
    a = np.ones((2, 2), np.float32)
    assert multiply(a, a, a.copy()).compute == "fp32"
    assert multiply(a, a, a.copy(), tf32=True).compute == "tf32"
    half, double = a.astype(np.float16), a.astype(np.float64)
    assert multiply(half, half, half.copy(), tf32=True).compute == "fp32"
    assert multiply(double, double, double.copy(), tf32=True).compute == "fp64"


def test_what_cannot_be_multiplied() -> None:
    a, b, out = (np.ones(shape, np.float32) for shape in ((3, 4), (4, 5), (3, 5)))
    with pytest.raises(ValueError, match="shapes"):
        multiply(a, b, out, transpose_a=True)
    with pytest.raises(ValueError, match="shapes"):
        multiply(np.ones((2, 3, 4), np.float32), b, out)
    with pytest.raises(ValueError, match="dtypes"):
        multiply(a, b.astype(np.float16), out)
    with pytest.raises(ValueError, match="dtypes"):
        multiply(a, b, out.astype(np.float64))
    with pytest.raises(ValueError, match="a: expected one of float32"):
        multiply(a.astype(np.int32), b, out)
    for view in (b.T.copy().T, b[::-1], np.broadcast_to(b[:1], (4, 5))):
        with pytest.raises(ValueError, match="b: expected two or three axes, the last contiguous"):
            multiply(a, view, out)
    with pytest.raises(ValueError, match="a: expected two or three axes"):
        multiply(np.ones((2, 3, 4), np.float32)[::-1], np.ones((2, 4, 5), np.float32), np.ones((2, 3, 5), np.float32))
    packed = np.zeros(4, [("x", np.float32, 5), ("odd", np.uint16)])
    with pytest.raises(ValueError, match="b: expected"):
        multiply(a, packed["x"], out)


def test_a_stream_is_set_only_when_it_changes() -> None:
    library: Any = FakeCublas()
    handle = blas.Handle(library)
    for stream, workspace in ((0, 4096), (0, 4096), (0, 8192), (9, 8192)):
        handle.use(stream, workspace, 64)
    assert library.calls == [
        "create",
        *("stream 0", "workspace 4096 64"),
        *("stream 0", "workspace 8192 64"),
        *("stream 9", "workspace 8192 64"),
    ]


def test_a_failure_is_named_and_leaves_nothing_set() -> None:
    broken: Any = FakeCublas(status=3)
    with pytest.raises(blas.CublasError, match="cublasCreate_v2: CUBLAS_STATUS_ALLOC_FAILED"):
        blas.Handle(broken)
    library: Any = FakeCublas()
    handle = blas.Handle(library)
    library.status = 99
    with pytest.raises(blas.CublasError, match="cublasSetStream_v2: 99"):
        handle.use(1, 4096, 64)
    library.status = 0
    handle.use(1, 4096, 64)
    assert library.calls[-2:] == ["stream 1", "workspace 4096 64"]
    library.status = 99
    with pytest.raises(blas.CublasError):
        handle.use(2, 8192, 64)
    library.status = 0
    handle.use(1, 4096, 64)
    assert library.calls[-2:] == ["stream 1", "workspace 4096 64"]


def test_workspaces_are_what_the_manual_recommends() -> None:
    assert [blas.workspace_size(capability) for capability in (75, 89, 90, 120)] == [2**22, 2**22, 2**25, 2**25]


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(name: str, *_: Any) -> Any:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(blas.ctypes, "CDLL", refuse)
    monkeypatch.setitem(blas.sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(blas.sys, "platform", "linux")
    with pytest.raises(OSError, match=r"install gpulstm\[cuda13\] or gpulstm\[cuda12\]"):
        blas.find(12)
    assert asked == ["libcublas.so.12", "libcublas.so.13"]


@pytest.mark.gpu
def test_the_real_library_has_the_calls() -> None:
    library = blas.find()
    for name in vars(FakeCublas):
        assert not name.startswith("cublas") or hasattr(library, name)
