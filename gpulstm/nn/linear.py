"""Linear layers, and the two heads that read a recurrent layer: at every step, or at the last one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays, checks, dispatch
from .model import Layer, Params, Pullback, on_device

if TYPE_CHECKING:
    from typing_extensions import Self


class Linear(Layer):
    """``y = x·weightᵀ + bias`` over the last axis, whatever the axes before it.

    ``weight`` (out, in) and ``bias`` (out,) start uniform in ±1/√in, as torch's. Calls take x (..., in) of
    the layer's dtype and give y (..., out).

    Raises:
        ValueError: a size below 1 or beyond memory; x empty or of another last size.
        TypeError: x or dy of another dtype than the layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        device: str | None = None,
        seed: Any = None,
    ) -> None:
        device = dispatch.check_device(device)
        self.in_features = checks.integer(in_features, "in_features")
        self.out_features = checks.integer(out_features, "out_features")
        self.dtype = checks.dtype(dtype, device)
        sizes = self.in_features, self.out_features
        checks.fits(math.prod(sizes) * self.dtype.itemsize, "in_features, out_features", sizes)
        rng = arrays.generator(seed, "seed")
        bound = self.in_features**-0.5
        shapes = {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}
        if not checks.flag(bias, "bias"):
            del shapes["bias"]
        params = {name: rng.uniform(-bound, bound, shape).astype(self.dtype) for name, shape in shapes.items()}
        self.params = on_device(params, device)

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, tuple[()]]:
        self.check_unused(state, lengths)
        library = arrays.library(self.device)
        x = library.contiguous(checks.array(x, "x", self.dtype, (..., self.in_features), device=self.device))
        y = library.gemm(x.reshape(-1, self.in_features), self._param("weight"), transpose_b=True)
        if "bias" in self.params:
            library.add_bias(y, self._param("bias"))
        return y.reshape(*x.shape[:-1], self.out_features), ()

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, tuple[()]], Pullback]:
        device, library = self.device, arrays.library(self.device)
        library.check_rng(rng)
        x = library.contiguous(checks.array(x, "x", self.dtype, (..., self.in_features), device=device))
        y, _ = self.forward(x, state, lengths)

        def pullback(dy: Any, dstate: Any = None) -> tuple[np.ndarray, tuple[()], Params]:
            self.check_unused(dstate, name="dstate")
            upstream = library.contiguous(checks.array(dy, "dy", self.dtype, y.shape, device=device))
            flat_dy, flat_x = upstream.reshape(-1, self.out_features), x.reshape(-1, self.in_features)
            grads = {"weight": library.gemm(flat_dy, flat_x, transpose_a=True)}
            if "bias" in self.params:
                grads["bias"] = library.sum_rows(flat_dy)
            return library.gemm(flat_dy, self._param("weight")).reshape(x.shape), (), grads

        return (y, ()), pullback

    def _param(self, name: str) -> np.ndarray:
        """A parameter of the layer's sizes: a product would read past the end of a smaller one."""
        value: Any = self.params.get(name)
        shape = (self.out_features, self.in_features) if name == "weight" else (self.out_features,)
        if getattr(value, "shape", None) != shape or value.dtype != self.dtype:
            value = checks.array(value, name, self.dtype, shape, device=self.device)
        return value


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
        device: str | None = None,
        seed: Any = None,
    ) -> None:
        self.linear = Linear(in_features, out_features, bias, dtype=dtype, device=device, seed=seed)
        self.batch_first = checks.flag(batch_first, "batch_first")
        self.params = self.linear.params

    def to(self: Self, device: str) -> Self:
        self.params = self.linear.to(device).params
        return self

    def __call__(self, x: Any, lengths: Any = None) -> np.ndarray:
        """Inference: the prediction. A head has no state, so ``lengths`` comes second here, third in the others."""
        return self.forward(x, None, lengths)[0]

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, tuple[()]]:
        self.check_unused(state)
        x, last = self._last(x, lengths)
        return self.linear.forward(self._taken(x, last))

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, tuple[()]], Pullback]:
        self.check_unused(state)
        x, last = self._last(x, lengths)
        shape = x.shape
        output, linear_pullback = self.linear.vjp(self._taken(x, last), rng=rng)

        def pullback(dy: Any, dstate: Any = None) -> tuple[np.ndarray, tuple[()], Params]:
            dlast, dstate, grads = linear_pullback(dy, dstate)
            rows = dlast.reshape(-1, shape[-1])
            dx = arrays.library(self.device).scatter_rows(rows, last.reshape(-1), math.prod(shape[:-1]))
            return dx.reshape(shape), dstate, grads

        return output, pullback

    def _taken(self, x: np.ndarray, last: np.ndarray) -> np.ndarray:
        return arrays.library(self.device).take(x.reshape(-1, x.shape[-1]), last)

    def _last(self, x: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        """``x`` checked, and which of its rows, counted over all axes but the last, are the last valid steps."""
        outer = ("B", "T") if self.batch_first else ("T", "B")
        features = self.linear.in_features
        library = arrays.library(self.device)
        shapes = (*outer, features), ("T", features)
        x = library.contiguous(checks.array(x, "x", self.linear.dtype, *shapes, device=self.device))
        if x.ndim == 2:
            if lengths is not None:
                raise ValueError(f"lengths: expected None for an unbatched x of shape {x.shape}, got {lengths!r}")
            return x, library.indices(np.array(len(x) - 1))
        steps, batch = x.shape[1::-1] if self.batch_first else x.shape[:2]
        times = np.full(batch, steps) if lengths is None else checks.lengths(lengths, batch, steps, least=1)
        rows = np.arange(batch)
        return x, library.indices(rows * steps + times - 1 if self.batch_first else (times - 1) * batch + rows)
