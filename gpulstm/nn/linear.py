"""Linear layers, and the two heads that read a recurrent layer: at every step, or at the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays, checks
from .model import Layer, Params

Pullback = Callable[[np.ndarray], tuple[np.ndarray, Params]]


class Linear(Layer):
    """``y = x·weightᵀ + bias`` over the last axis, whatever the axes before it.

    ``weight`` (out, in) and ``bias`` (out,) start uniform in ±1/√in, as torch's. Calls take x (..., in) of
    the layer's dtype and give y (..., out).

    Raises:
        ValueError: a size below 1; x empty or of another last size.
        TypeError: x or dy of another dtype than the layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        self.in_features = checks.integer(in_features, "in_features")
        self.out_features = checks.integer(out_features, "out_features")
        self.dtype = checks.dtype(dtype)
        rng = arrays.generator(seed, "seed")
        bound = self.in_features**-0.5
        shapes = {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}
        if not bias:
            del shapes["bias"]
        self.params = {name: rng.uniform(-bound, bound, shape).astype(self.dtype) for name, shape in shapes.items()}

    def __call__(self, x: Any) -> np.ndarray:
        x = checks.array(x, "x", self.dtype, (..., self.in_features))
        y = arrays.gemm(x.reshape(-1, self.in_features), self.params["weight"], transpose_b=True)
        if "bias" in self.params:
            y += self.params["bias"]
        return y.reshape(*x.shape[:-1], self.out_features)

    def vjp(self, x: Any, *, rng: Any = None) -> tuple[np.ndarray, Pullback]:
        x = checks.array(x, "x", self.dtype, (..., self.in_features))
        y = self(x)

        def pullback(dy: Any) -> tuple[np.ndarray, Params]:
            flat_dy = checks.array(dy, "dy", self.dtype, y.shape).reshape(-1, self.out_features)
            flat_x = x.reshape(-1, self.in_features)
            grads = {"weight": arrays.gemm(flat_dy, flat_x, transpose_a=True)}
            if "bias" in self.params:
                ones = np.ones((1, len(flat_dy)), self.dtype)  # a product sums rows faster than sum(0)
                grads["bias"] = arrays.gemm(ones, flat_dy)[0]
            return arrays.gemm(flat_dy, self.params["weight"]).reshape(x.shape), grads

        return y, pullback


class EveryStepHead(Linear):
    """A prediction at every step: (T, B, in) to (T, B, out), in either order of axes, batched or not.

    Steps past a sequence's length are computed too (they see the zeros of the layer below): leave them out of
    the loss with ``ignore_index``.
    """


class LastStepHead(Layer):
    """One prediction a sequence, from its last valid step: (T, B, in) to (B, out), and (T, in) to (out,).

    With ``batch_first`` x is (B, T, in). ``lengths`` (B,) are integers in 1..T, all of them T if not given.

    Raises:
        ValueError: as for Linear; lengths of the wrong size, out of range, or given for unbatched x.
        TypeError: as for Linear; lengths that are no integers.
    """

    takes_lengths = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        batch_first: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        self.linear = Linear(in_features, out_features, bias, dtype=dtype, seed=seed)
        self.batch_first = batch_first
        self.params = self.linear.params

    def __call__(self, x: Any, lengths: Any = None) -> np.ndarray:
        x, last = self._last(x, lengths)
        return self.linear(x[last])

    def vjp(self, x: Any, lengths: Any = None, *, rng: Any = None) -> tuple[np.ndarray, Pullback]:
        x, last = self._last(x, lengths)
        shape = x.shape
        y, linear_pullback = self.linear.vjp(x[last])

        def pullback(dy: Any) -> tuple[np.ndarray, Params]:
            dlast, grads = linear_pullback(dy)
            dx = np.zeros(shape, dlast.dtype)
            dx[last] = dlast
            return dx, grads

        return y, pullback

    def _last(self, x: Any, lengths: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
        """``x`` checked, and the index of its last valid steps."""
        outer = ("B", "T") if self.batch_first else ("T", "B")
        features = self.linear.in_features
        x = checks.array(x, "x", self.linear.dtype, (*outer, features), ("T", features))
        if x.ndim == 2:
            if lengths is not None:
                raise ValueError(f"lengths: expected None for an unbatched x of shape {x.shape}, got {lengths!r}")
            return x, (-1,)
        steps, batch = x.shape[1::-1] if self.batch_first else x.shape[:2]
        times = np.full(batch, steps) if lengths is None else checks.lengths(lengths, batch, steps)
        rows = np.arange(batch)
        return x, (rows, times - 1) if self.batch_first else (times - 1, rows)
