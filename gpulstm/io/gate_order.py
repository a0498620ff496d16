"""How formats order gates. gpulstm has torch's order: rows i, f, g, o, or r, z, n, in both weights and both biases."""

from __future__ import annotations

import numpy as np

from ..config import Config

# n of a GRU is a gate of the input's and one of h's product, the last rows of both
TORCH = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("a",), "rnn_relu": ("a",)}
# c is what ONNX and Keras call the gate that torch calls g, and h the one that it calls n
ONNX = TORCH | {"lstm": ("i", "o", "f", "g"), "gru": ("z", "r", "n")}
KERAS = TORCH | {"gru": ("z", "r", "n")}


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


def check(config: Config, known: dict[str, tuple[str, ...]], format: str) -> tuple[str, ...]:
    """The gates of a layer's cell in the order of a format.

    Raises:
        ValueError: the format has no such cell, or the layer has heads, or is given pre-activations.
    """
    name = config.cell.name
    if name not in known:
        raise ValueError(f"cell: {format} has {', '.join(sorted(known))}, got {name!r}")
    if config.heads > 1:
        raise ValueError(f"heads: expected 1, since {format} has no recurrent weights in blocks, got {config.heads}")
    if config.input_size is None:
        raise ValueError(f"input_size: expected a number, since {format} has no layers of pre-activations, got None")
    return known[name]
