"""How formats order gates and split biases. gpulstm has torch's: rows i, f, g, o, and two biases that are added."""

from __future__ import annotations

import numpy as np

from ..cells import Cell

# c is what ONNX and Keras call the gate that torch calls g
ONNX = {"lstm": ("i", "o", "f", "g"), "rnn": ("a",)}
KERAS = {"lstm": ("i", "f", "g", "o"), "rnn": ("a",)}


def reordered(value: np.ndarray, source: tuple[str, ...], target: tuple[str, ...]) -> np.ndarray:
    """``value`` (G·H, ...), whose blocks of H rows are the gates ``source``, with the gates ``target``."""
    blocks = value.reshape(len(source), -1, *value.shape[1:])
    return np.ascontiguousarray(blocks[[source.index(gate) for gate in target]].reshape(value.shape))


def from_cudnn(kernel: np.ndarray, gates: int) -> np.ndarray:
    """Keras's kernel of a CuDNN layer (K, G·H) as gpulstm's weight (G·H, K).

    CuDNNLSTM keeps cuDNN's matrix (H, K) of each gate, read row by row, in the place of a kernel (K, H).
    """
    inputs = kernel.shape[0]
    units = kernel.shape[1] // gates
    blocks = kernel.reshape(inputs, gates, units).swapaxes(0, 1)
    return np.ascontiguousarray(blocks).reshape(gates * units, inputs)


def check(cell: Cell, known: dict[str, tuple[str, ...]], format: str) -> tuple[str, ...]:
    """The gates of ``cell`` in the order of a format.

    Raises:
        ValueError: the format has no such cell.
    """
    if cell.name not in known:
        raise ValueError(f"cell: {format} has {', '.join(sorted(known))}, got {cell.name!r}")
    return known[cell.name]
