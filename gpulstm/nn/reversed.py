"""A recurrent layer that reads every sequence from its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays, checks
from ..watching import Watched
from .model import Params, Pullback, RecurrentLayer
from .recurrent import Recurrent

if TYPE_CHECKING:
    from typing_extensions import Self


class Reversed(RecurrentLayer):
    """``layer`` run from the last valid step to the first, as ONNX's direction "reverse".

    The output stays in the order of time: y at a step is what the layer gives there, having seen the steps after it;
    the final state is that of the first step. Shapes and errors are those of ``layer``, whose parameters these are.

    Raises:
        TypeError: ``layer`` is no recurrent layer such as ``gpulstm.LSTM``.
    """

    def __init__(self, layer: Recurrent) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"layer: expected a recurrent layer such as gpulstm.LSTM, got {type(layer).__name__}")
        self.layer = layer
        self.params: Params = layer.params

    def to(self: Self, device: str) -> Self:
        self.params = self.layer.to(device).params
        return self

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        turn = self._turn(x, lengths)
        y, final = self.layer(turn(x), state, lengths)
        return turn(y), final

    def watch(self, x: Any, state: Any = None, lengths: Any = None) -> Watched:
        turn = self._turn(x, lengths)
        found = self.layer.watch(turn(x), state, lengths)
        return Watched(turn(found.y), found.state, {name: layer.changed(turn) for name, layer in found.items()})

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, Any], Pullback]:
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
        shape = checks.array(x, "x", dtype, *config.input_shapes, device=device).shape[:-1]
        batch_first = config.batch_first and len(shape) == 2
        rows = np.arange(math.prod(shape)).reshape(shape if len(shape) == 2 else (*shape, 1))
        rows = rows.T if batch_first else rows
        steps, batch = rows.shape
        valid = np.full(batch, steps) if lengths is None else checks.lengths(lengths, batch, steps)
        times = np.arange(steps)[:, None]
        turned = np.take_along_axis(rows, np.where(times < valid, valid - 1 - times, times), axis=0)
        ids = library.indices(np.ascontiguousarray(turned.T if batch_first else turned).reshape(-1))

        def turn(value: Any) -> np.ndarray:
            array = library.contiguous(library.to_array(value, "x"))
            return library.take(array.reshape(-1, array.shape[-1]), ids).reshape(array.shape)

        return turn
