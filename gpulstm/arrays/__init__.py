"""Arrays on a CPU and on a GPU: what layers need of NumPy, and the same for the arrays of the GPU's runtime.

:class:`Arrays` says what that is. ``library(device)`` is the library that does it on a device; everything above works
with what it gives and does not know which it is.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gpulstm_kernels.memory import poison

from . import numpy as on_cpu
from .numpy import gemm
from .numpy import to_array as to_numpy
from .protocol import Arrays
from .random import generator

if TYPE_CHECKING:  # library() imports it by name, which tells mypy nothing about it
    from . import cuda

    _on_gpu: Arrays = cuda

__all__ = ["Arrays", "device_of", "gemm", "generator", "library", "on_host", "poison", "to_numpy"]


def device_of(array: Any) -> str:
    """Where an array lies: ``"cuda"`` for one of the GPU's runtime, else ``"cpu"``."""
    runtime = sys.modules.get("gpulstm_kernels.cuda.device.process")
    return "cuda" if runtime is not None and runtime.owns(array) else "cpu"


def library(device: str) -> Arrays:
    """The library for arrays on ``device``; that of a GPU is imported when it is first asked for."""
    return importlib.import_module("gpulstm.arrays.cuda") if device == "cuda" else on_cpu


def on_host(value: Any, name: str) -> np.ndarray:
    """``value`` as a NumPy array: one already, DLPack on the CPU, or a copy of an array on a GPU.

    Raises:
        TypeError: it is none of these; the message calls it ``name``.
    """
    return library("cuda").to_host(value) if device_of(value) == "cuda" else to_numpy(value, name)
