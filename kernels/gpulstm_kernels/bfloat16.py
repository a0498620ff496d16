"""bfloat16, which NumPy lacks: the upper halves of float32 numbers, as uint16."""

from __future__ import annotations

import numpy as np


def rounded(values: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(halves: np.ndarray) -> np.ndarray:
    """The float32 whose upper half each is."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
