"""The backend ``numba_cuda``: the backend ``cupy`` with its kernels in Python.

Host code, products and arrays are the same; of a layer's kernels none is C++. (Numba itself compiles a few lines of
C++ for bfloat16's conversions, with headers that its extra ``[cu13]`` brings.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..cells import Cell
from . import layer
from .device.numba_runtime import current
from .device.runtime import Runtime
from .layer import LayerTape, layer_backward, tape_arrays, tape_layout

__all__ = ["describe", "layer_backward", "layer_forward", "tape_arrays", "tape_layout", "tape_of"]


def layer_forward(
    cell: Cell,
    x: Any,
    state: tuple[Any, ...],
    weights: Sequence[Mapping[str, Any]],
    lengths: Any,
    keep: bool,
) -> tuple[Any, tuple[Any, ...], LayerTape]:
    """See :func:`gpulstm_kernels.reference.layer_forward`."""
    return layer.layer_forward(cell, x, state, weights, lengths, keep, cast(Runtime, current()))


def tape_of(cell: Cell, x: Any, weights: Sequence[Mapping[str, Any]], lengths: Any, arrays: Sequence[Any]) -> LayerTape:
    """See :func:`gpulstm_kernels.reference.tape_of`."""
    return layer.tape_of(cell, x, weights, lengths, arrays, cast(Runtime, current()))


def describe(cell: Cell, steps: int, batch: int, weights: Sequence[Mapping[str, Any]]) -> str:
    """In words: how :func:`layer_forward` would walk such a call, and ``layer_backward`` after it."""
    return f"Numba CUDA: {layer.describe(cell, steps, batch, weights, cast(Runtime, current()))}"
