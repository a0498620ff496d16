"""One update of a model: forward, loss, backward, clipping, optimizer; on a GPU as one CUDA graph.

A training step of a small model is hundreds of short kernels, and the host takes longer to launch them than the GPU
to run them. Where inputs keep their shape the step is captured at its second call and launched whole from then on.
Batches, the state, the optimizer's rates and the seed of dropout lie in fixed places that each replay reads anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import arrays, optim
from ..arrays.random import CounterGenerator, seed_words
from ..data.lanes import Batch

logger = logging.getLogger("gpulstm")


class Outcome(NamedTuple):
    """What an update was like: loss and norm are floats, or 0-d arrays on a GPU; state is carried to the next."""

    loss: Any
    norm: Any
    state: Any


class _Captured(NamedTuple):
    """A graph and the places that it reads."""

    graph: Any
    inputs: Any
    targets: Any
    state: Any
    words: Any


class Step:
    """Updates ``model`` by batches; call it with a batch, the state carried to it, and the generator of dropout.

    Args:
        model: as :class:`gpulstm.nn.Sequential`.
        loss: ``loss, doutput = loss(output, targets)``.
        optimizer: whose ``lr`` is read at every call.
        clip: largest norm of the gradient.
        graph: whether to capture steps on a GPU.

    Where the loss or the norm is not finite, no parameter changes.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[[Any, Any], tuple[Any, Any]],
        optimizer: optim.Optimizer,
        clip: float,
        graph: bool = True,
    ) -> None:
        self.model, self.loss, self.optimizer, self.clip = model, loss, optimizer, clip
        self.why_not: str | None = None if graph else "graph=False"
        """Why steps are not captured, once that is known; None where they may be."""
        self._seen: dict[tuple[Any, ...], _Captured | None] = {}
        self._final: Any = None  # the last update's state: what a zero one looks like

    def __call__(self, batch: Batch, state: Any, rng: np.random.Generator) -> Outcome:
        device = self.model.device
        if device == "cpu":
            self.optimizer.advance(self.model.params)
            return self._update(batch.inputs, batch.targets, batch.lengths, state, rng)
        library = arrays.library(device)
        self.optimizer.advance(self.model.params)
        key = (batch.inputs.shape, batch.targets.shape, str(batch.inputs.dtype), str(batch.targets.dtype))
        if self.why_not is None and key in self._seen and batch.lengths is None:
            state = _mapped(lambda part: library.zeros(part.shape, part.dtype), self._final) if state is None else state
            captured = self._seen[key] or self._capture(key, batch, state)
            if captured is not None:
                library.assign(captured.inputs, _placed(batch.inputs))
                library.assign(captured.targets, _placed(batch.targets))
                library.assign(captured.words, seed_words(rng))
                _carry(library, state, captured.state)
                captured.graph.launch()
                loss, norm = captured.graph.result
                return Outcome(loss, norm, captured.state)
        self._seen.setdefault(key, None)
        inputs, targets = (library.from_host(_placed(value)) for value in (batch.inputs, batch.targets))
        outcome = self._update(inputs, targets, batch.lengths, state, library.generator(rng))
        self._final = outcome.state
        return outcome

    def _update(self, inputs: Any, targets: Any, lengths: Any, state: Any, rng: Any) -> Outcome:
        (output, state), pullback = self.model.vjp(inputs, state, lengths=lengths, rng=rng)
        loss, doutput = self.loss(output, targets)
        _, _, grads = pullback(doutput)
        norm = optim.clip_by_norm(grads, self.clip)
        self.optimizer.apply(self.model.params, grads, (loss, norm))
        return Outcome(loss, norm, state)

    def _capture(self, key: tuple[Any, ...], batch: Batch, state: Any) -> _Captured | None:
        from gpulstm_kernels.cuda.device.runtime import current

        library = arrays.library("cuda")
        inputs, targets = (library.from_host(_placed(value)) for value in (batch.inputs, batch.targets))
        words = library.zeros((2,), np.uint32)
        held = _mapped(library.copy, state)

        def enqueue() -> tuple[Any, Any]:
            loss, norm, final = self._update(inputs, targets, None, held, CounterGenerator(words))
            _carry(library, final, held)
            return loss, norm

        try:
            captured = _Captured(current().capture(enqueue), inputs, targets, held, words)
        except Exception as error:  # whatever a layer does that a graph cannot hold: it still works without
            self.why_not = f"the training step could not be captured in a CUDA graph: {error}"
            logger.warning("%s; going on without", self.why_not)
            return None
        self._seen[key] = captured
        return captured


def _placed(value: np.ndarray) -> np.ndarray:
    """A batch's array as kernels take it: int32 for ids."""
    return value.astype(np.int32) if value.dtype.kind in "iu" else np.ascontiguousarray(value)


def _mapped(function: Callable[[Any], Any], state: Any) -> Any:
    """A state, nested tuples of arrays, with each array replaced by what ``function`` makes of it."""
    return tuple(_mapped(function, part) for part in state) if isinstance(state, tuple) else function(state)


def _carry(library: Any, source: Any, target: Any) -> None:
    """Copy a state into another place; nothing to do where it is there already."""
    if source is target:
        return
    if isinstance(target, tuple):
        for part, place in zip(source, target, strict=True):
            _carry(library, part, place)
    else:
        library.copy_into(target, source)
