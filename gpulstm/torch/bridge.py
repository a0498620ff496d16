"""Tensors as the arrays that backends take, and back, without a copy; and the stream that they compute on.

On a CPU the arrays are NumPy's. On a GPU they are CuPy's, and CuPy's current stream and device become torch's while a
backend runs, so that its work is ordered with torch's and nothing waits.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from gpulstm_kernels.memory import contiguous

_on_cpu = nullcontext()


def backend_device(device: torch.device) -> str:
    """The name of ``device`` in :mod:`gpulstm.dispatch`; ``"cpu"`` for a tensor without data (meta)."""
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"input: expected a tensor on cpu or cuda, got one on {device}")
    return "cuda" if device.type == "cuda" else "cpu"


def on_stream_of(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """While it lasts, backends compute where torch would compute with ``tensor``: on its device and current stream."""
    return _on_torch_stream(tensor.device) if tensor.is_cuda else _on_cpu


@contextmanager
def _on_torch_stream(device: torch.device) -> Iterator[None]:
    cupy = importlib.import_module("cupy")
    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(stream.device_index), cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index):
        yield


def to_arrays(tensors: Sequence[torch.Tensor]) -> list[Any]:
    """The tensors as C-contiguous arrays over the same memory; a tensor that is not contiguous is copied."""
    return [_to_array(tensor) for tensor in tensors]


def _to_array(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().contiguous()
    if not tensor.is_cuda:
        return contiguous(tensor.numpy())
    from_dlpack = importlib.import_module("cupy").from_dlpack
    if tensor.dtype is torch.bool:
        return from_dlpack(tensor.view(torch.uint8))  # as kernels take them
    if tensor.dtype is not torch.bfloat16:
        return from_dlpack(tensor)
    bfloat16 = importlib.import_module("ml_dtypes").bfloat16
    # DLPack carries its bits as integers: any CuPy takes those
    return from_dlpack(tensor.view(torch.int16)).view(bfloat16)


def to_tensors(arrays: Sequence[Any]) -> list[torch.Tensor]:
    """The arrays, none of which overlap, as contiguous tensors over the same memory."""
    return [_to_tensor(array) for array in arrays]


def _to_tensor(array: Any) -> torch.Tensor:
    if isinstance(array, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)
