"""Tensors as arrays and back: no copies, and on a GPU torch's device and stream (here with stand-ins for both)."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from gpulstm.torch import bridge


def test_cpu_tensors_are_numpy_arrays_over_the_same_memory() -> None:
    tensor = torch.randn(3, 4, requires_grad=True)
    (array,) = bridge.to_arrays([tensor])
    assert array.ctypes.data == tensor.data_ptr()
    (again,) = bridge.to_tensors([array])
    assert again.data_ptr() == tensor.data_ptr()
    (copied,) = bridge.to_arrays([tensor.mT])
    assert copied.flags.c_contiguous
    np.testing.assert_array_equal(copied, tensor.detach().numpy().T)
    with bridge.on_stream_of(tensor):
        pass


def test_a_tensor_at_an_odd_address_is_copied() -> None:
    tensor = torch.frombuffer(bytearray(17), dtype=torch.float32, count=4, offset=1)
    (array,) = bridge.to_arrays([tensor])
    assert array.flags.aligned
    np.testing.assert_array_equal(array, 0)


@pytest.mark.parametrize(("device", "name"), [("cpu", "cpu"), ("meta", "cpu"), ("cuda:1", "cuda")])
def test_where_a_tensor_is_computed(device: str, name: str) -> None:
    assert bridge.backend_device(torch.device(device)) == name


def test_other_devices_have_no_backend() -> None:
    with pytest.raises(ValueError, match="input: expected a tensor on cpu or cuda, got one on mps"):
        bridge.backend_device(torch.device("mps"))


class CudaTensor:
    """Stands for a tensor on a GPU."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype, steps: tuple[str, ...] = ()) -> None:
        self.dtype, self.steps, self.device = dtype, steps, torch.device("cuda", 1)

    def detach(self) -> CudaTensor:
        return CudaTensor(self.dtype, (*self.steps, "detach"))

    def contiguous(self) -> CudaTensor:
        return CudaTensor(self.dtype, (*self.steps, "contiguous"))

    def view(self, dtype: torch.dtype) -> CudaTensor:
        return CudaTensor(dtype, (*self.steps, "view"))


class CupyArray:
    """Stands for an array of CuPy, over NumPy's memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype = array, array.dtype

    def view(self, dtype: Any) -> CupyArray:
        return CupyArray(self.array.view(dtype))

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy as far as the bridge knows it, telling what was asked of it."""
    fake: Any = types.ModuleType("cupy")
    fake.log, fake.taken = [], []

    def entering(kind: str) -> Any:
        @contextmanager
        def context(*arguments: int) -> Iterator[None]:
            fake.log.append((kind, *arguments))
            yield
            fake.log.append(("left", kind))

        return context

    def from_dlpack(value: Any) -> CupyArray:
        fake.taken.append(value)
        return CupyArray(np.ones(2, {torch.int16: np.int16, torch.float32: np.float32}[value.dtype]))

    fake.cuda = types.SimpleNamespace(Device=entering("device"), ExternalStream=entering("stream"))
    fake.from_dlpack = from_dlpack
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_cupy_works_on_torchs_device_and_stream(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def current_stream(device: torch.device) -> Any:
        asked.append(device)
        return types.SimpleNamespace(device_index=1, cuda_stream=0xBEEF)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    with bridge.on_stream_of(CudaTensor(torch.float32)):  # type: ignore[arg-type]
        cupy.log.append("work")
    assert asked == [torch.device("cuda", 1)]
    assert cupy.log == [("device", 1), ("stream", 0xBEEF, 1), "work", ("left", "stream"), ("left", "device")]


def test_cuda_tensors_cross_by_dlpack(cupy: Any) -> None:
    single, half = bridge.to_arrays([CudaTensor(torch.float32), CudaTensor(torch.bfloat16)])  # type: ignore[list-item]
    assert [value.steps for value in cupy.taken] == [("detach", "contiguous"), ("detach", "contiguous", "view")]
    assert (single.dtype, half.dtype) == (np.float32, ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_cupy_arrays_come_back_without_a_copy(dtype: Any) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    (tensor,) = bridge.to_tensors([CupyArray(values)])
    assert str(tensor.dtype) == f"torch.{values.dtype.name}"
    assert tensor.data_ptr() == values.ctypes.data
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
