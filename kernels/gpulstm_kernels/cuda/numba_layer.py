"""The backend ``numba_cuda``: the backend ``cupy`` with its kernels in Python.

Host code, products and arrays are the same; of a layer's kernels none is C++. (Numba itself compiles a few lines of
C++ for bfloat16's conversions, with headers that its extra ``[cu13]`` brings.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import LayerShape
from . import layer
from .device.process import current_numba
from .layer import LayerTape, layer_backward, stream, tape_arrays, tape_layout

__all__ = [
    "describe",
    "layer_backward",
    "layer_forward",
    "stream",
    "tape_arrays",
    "tape_layout",
    "tape_of",
    "why_not",
]


def why_not(shape: LayerShape) -> str | None:
    """See :class:`gpulstm_kernels.backend.Backend`: it compiles any cell's Python."""
    return layer.refused(shape)


def layer_forward(
    shape: LayerShape,
    x: Any,
    state: tuple[Any, ...],
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    inputs: Any = None,
    resets: Any = None,
) -> tuple[Any, tuple[Any, ...], LayerTape | None]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    return layer.layer_forward(shape, x, state, weights, lengths, inputs, resets, current_numba())


def tape_of(
    shape: LayerShape,
    x: Any,
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    arrays: Sequence[Any],
    inputs: Any = None,
    resets: Any = None,
) -> LayerTape:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    return layer.tape_of(shape, x, weights, lengths, arrays, inputs, resets, current_numba())


def describe(shape: LayerShape) -> str:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    return f"Numba CUDA: {layer.describe(shape, current_numba())}"
