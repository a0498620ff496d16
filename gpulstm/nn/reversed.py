"""A recurrent layer that reads every sequence from its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays, checks
from .model import Params, Recurrent
from .rnn import RNNBase

if TYPE_CHECKING:
    from typing_extensions import Self


class Reversed(Recurrent):
    """``layer`` run from the last valid step to the first, as ONNX's direction "reverse".

    The output stays in the order of time: y at a step is what the layer gives there, having seen the steps after it;
    the final state is that of the first step. Shapes and errors are those of ``layer``, whose parameters these are.

    Raises:
        TypeError: ``layer`` is no recurrent layer such as ``gpulstm.LSTM``.
    """

    def __init__(self, layer: RNNBase) -> None:
        if not isinstance(layer, RNNBase):
            raise TypeError(f"layer: expected a recurrent layer such as gpulstm.LSTM, got {type(layer).__name__}")
        self.layer = layer
        self.params: Params = layer.params

    def to(self: Self, device: str) -> Self:
        self.params = self.layer.to(device).params
        return self

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        turn = self._turn(x, lengths)
        y, final = self.layer(turn(x), state, lengths)
        return turn(y), final

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, Any], Callable[..., tuple[np.ndarray, Any, Params]]]:
        turn = self._turn(x, lengths)
        (y, final), inner = self.layer.vjp(turn(x), state, lengths, rng=rng)
        shape = y.shape

        def pullback(dy: Any = None, dstate: Any = None) -> tuple[np.ndarray, Any, Params]:
            if dy is not None:
                dy = turn(checks.array(dy, "dy", y.dtype, shape, device=self.device))
            dx, initial, grads = inner(dy, dstate)
            return turn(dx), initial, grads

        return (turn(y), final), pullback

    def __repr__(self) -> str:
        return f"Reversed({self.layer!r})"

    def _turn(self, x: Any, lengths: Any) -> Callable[[Any], np.ndarray]:
        """The function that turns the valid steps of every sequence around, for arrays with the outer axes of ``x``.

        It is its own inverse, and its own transpose.
        """
        config, device = self.layer.config, self.device
        library = arrays.library(device)
        dtype = next(iter(self.params.values())).dtype
        outer = ("B", "T") if config.batch_first else ("T", "B")
        shapes = (*outer, config.input_size), ("T", config.input_size)
        shape = checks.array(x, "x", dtype, *shapes, device=device).shape[:-1]
        rows = np.arange(np.prod(shape)).reshape(shape)
        if len(shape) == 2 and config.batch_first:
            rows = rows.T
        steps = len(rows)
        if len(shape) == 2 and lengths is not None:
            valid = checks.lengths(lengths, rows.shape[1], steps)
        else:
            valid = np.full(rows.shape[1:], steps)
        times = np.arange(steps).reshape(-1, *(1,) * (len(shape) - 1))
        source = np.where(times < valid, valid - 1 - times, times)
        turned = np.take_along_axis(rows, source, axis=0)
        if len(shape) == 2 and config.batch_first:
            turned = turned.T
        ids = library.indices(np.ascontiguousarray(turned).reshape(-1))

        def turn(value: Any) -> np.ndarray:
            array = library.contiguous(library.to_array(value, "x"))
            return library.take(array.reshape(-1, array.shape[-1]), ids).reshape(array.shape)

        return turn
