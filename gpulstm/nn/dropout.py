"""Dropout: each element is zero with probability p while training, and untouched in inference."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import arrays, checks
from .model import Layer, Params, Pullback


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

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, tuple[()]]:
        self.check_unused(state, lengths)
        return checks.array(x, "x", None, (...,), device=arrays.device_of(x)), ()

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, tuple[()]], Pullback]:
        self.check_unused(state, lengths)
        device = arrays.device_of(x)
        library = arrays.library(device)
        x = checks.array(x, "x", None, (...,), device=device)
        library.check_rng(rng)
        mask = library.dropout_mask(library.generator(rng), x.shape, self.p) if self.p else None

        def masked(value: np.ndarray) -> np.ndarray:
            return value if mask is None else library.drop(value, mask, self.p)

        def pullback(dy: Any, dstate: Any = None) -> tuple[np.ndarray, tuple[()], Params]:
            self.check_unused(dstate, name="dstate")
            return masked(checks.array(dy, "dy", x.dtype, x.shape, device=device)), (), {}

        return (masked(x), ()), pullback
