"""A layer that makes one vector of a sequence: the mean of its valid steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import arrays, checks
from .model import Layer, Params, Pullback


class MeanOverTime(Layer):
    """The mean over the valid steps of each sequence: (T, B, F) to (B, F).

    ``lengths`` (B,) are integers in 1..T, all of them T if not given.

    Raises:
        ValueError: x of other axes or empty; lengths of the wrong size or out of range; dy of another shape than y.
        TypeError: x that is no floating-point array; lengths that are no integers; dy of another dtype than x.
    """

    takes_lengths = True

    def __init__(self) -> None:
        self.params: Params = {}

    def __call__(self, x: Any, lengths: Any = None) -> np.ndarray:
        """Inference: the means. There is no state, so ``lengths`` comes second here, as in ``LastStepHead``."""
        return self.forward(x, None, lengths)[0]

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, tuple[()]]:
        (y, _), _ = self.vjp(x, state, lengths)
        return y, ()

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, tuple[()]], Pullback]:
        self.check_unused(state)
        device = arrays.device_of(x)
        library = arrays.library(device)
        library.check_rng(rng)
        x = library.contiguous(checks.array(x, "x", None, ("T", "B", "F"), device=device))
        steps, batch, features = x.shape
        times = np.full(batch, steps) if lengths is None else checks.lengths(lengths, batch, steps, least=1)
        if lengths is not None:
            x = library.clear_padding(x, library.lengths(times))  # which may hold NaN, and that times 0 is NaN
        # a product with the share that each of all steps (T·B) has in each mean
        shares = np.zeros((batch, steps, batch))
        for sequence, time in enumerate(times):
            shares[sequence, :time, sequence] = 1 / time
        weights = library.from_host(shares.reshape(batch, steps * batch).astype(x.dtype))
        y = library.gemm(weights, x.reshape(steps * batch, features))

        def pullback(dy: Any, dstate: Any = None) -> tuple[np.ndarray, tuple[()], Params]:
            self.check_unused(dstate, name="dstate")
            upstream = library.contiguous(checks.array(dy, "dy", x.dtype, y.shape, device=device))
            return library.gemm(weights, upstream, transpose_a=True).reshape(x.shape), (), {}

        return (y, ()), pullback
