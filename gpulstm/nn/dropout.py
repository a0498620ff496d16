"""Dropout: each element is zero with probability p while training, and untouched in inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays, checks
from .model import Layer, Params


class Dropout(Layer):
    """Zero elements with probability ``p`` and divide the others by 1 - p, in ``vjp`` only.

    The mask comes from ``rng`` alone (a Generator, a seed, or None for a fresh one); a seed repeats it.

    Raises:
        ValueError: p outside [0, 1); x empty; dy of another shape than x.
        TypeError: x that is neither float32 nor float64; dy of another dtype than x.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = checks.real(p, "p", "[0, 1)")
        self.params = {}

    def __call__(self, x: Any) -> np.ndarray:
        return checks.array(x, "x", None, (...,), device=arrays.device_of(x))

    def vjp(self, x: Any, *, rng: Any = None) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, Params]]]:
        device = arrays.device_of(x)
        library = arrays.library(device)
        x = checks.array(x, "x", None, (...,), device=device)
        library.check_rng(rng)
        keep = library.kept(library.generator(rng), x.shape, self.p) if self.p else None

        def masked(value: np.ndarray) -> np.ndarray:
            return value if keep is None else library.drop(value, keep, self.p)

        def pullback(dy: Any) -> tuple[np.ndarray, Params]:
            return masked(checks.array(dy, "dy", x.dtype, x.shape, device=device)), {}

        return masked(x), pullback
