"""One update of a model: forward, loss, backward, clipping, optimizer; on a GPU as one CUDA graph.

A training step of a small model is hundreds of short kernels, and the host takes longer to launch them than the GPU
to run them. Where inputs keep their shape the step is captured at its second call and launched whole from then on.
The arrays of a batch, the state, the optimizer's rates and the seed of dropout are copied into fixed arrays, which each
replay reads anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import arrays, optim
from ..arrays.random import CounterGenerator, seed_words
from ..data.batch import Batch
from .task import Task

logger = logging.getLogger("gpulstm")


class Outcome(NamedTuple):
    """What an update was like: loss and norm are floats, or 0-d arrays on a GPU; state is carried to the next."""

    loss: Any
    norm: Any
    state: Any


class _Captured(NamedTuple):
    """A graph and the arrays that it reads."""

    graph: Any
    batch: Batch
    state: Any
    words: Any


class Update:
    """Updates a task's model by batches; call it with a batch, the state carried to it, and the generator of dropout.

    Args:
        task: its ``model`` and what it says of ``inputs`` and ``loss``.
        optimizer: whose ``lr`` is read at every call.
        clip: largest norm of the gradient.
        graph: whether to capture steps on a GPU.

    Where the loss or the norm is not finite, no parameter changes.
    """

    def __init__(self, task: Task, optimizer: optim.Optimizer, clip: float, graph: bool = True) -> None:
        self.task, self.optimizer, self.clip = task, optimizer, clip
        self.why_not: str | None = None if graph else "graph=False"
        """Why steps are not captured, once that is known; None where they may be."""
        self._seen: dict[tuple[Any, ...], _Captured | None] = {}
        self._final: Any = None  # the last update's state: what a zero one looks like

    def __call__(self, batch: Batch, state: Any, rng: np.random.Generator) -> Outcome:
        device = self.task.model.device
        self.optimizer.advance(self.task.model.params)
        if device == "cpu":
            return self._update(batch, state, rng)
        library = arrays.library(device)
        key = tuple((name, value.shape, str(value.dtype)) for name, value in batch.arrays.items())
        if self.why_not is None and key in self._seen and batch.lengths is None:
            state = _mapped(lambda part: library.zeros(part.shape, part.dtype), self._final) if state is None else state
            captured = self._seen[key] or self._capture(key, batch, state)
            if captured is not None:
                for name, value in batch.arrays.items():
                    library.assign(captured.batch[name], _for_kernels(value))
                library.assign(captured.words, seed_words(rng))
                _copy_state(library, state, captured.state)
                captured.graph.launch()
                loss, norm = captured.graph.result
                return Outcome(loss, norm, captured.state)
        self._seen.setdefault(key, None)
        outcome = self._update(_on_device(library, batch), state, library.generator(rng))
        self._final = outcome.state
        return outcome

    def _update(self, batch: Batch, state: Any, rng: Any) -> Outcome:
        model = self.task.model
        (output, state), pullback = model.vjp(self.task.inputs(batch), state, lengths=batch.lengths, rng=rng)
        loss, doutput = self.task.loss(output, batch)
        _, _, grads = pullback(doutput)
        norm = optim.clip_by_norm(grads, self.clip)
        self.optimizer.apply(model.params, grads, (loss, norm))
        return Outcome(loss, norm, state)

    def _capture(self, key: tuple[Any, ...], batch: Batch, state: Any) -> _Captured | None:
        from gpulstm_kernels.cuda.device.process import current

        library = arrays.library("cuda")
        held_batch = _on_device(library, batch)
        words = library.zeros((2,), np.uint32)
        held = _mapped(library.copy, state)

        def enqueue() -> tuple[Any, Any]:
            loss, norm, final = self._update(held_batch, held, CounterGenerator(words))
            _copy_state(library, final, held)
            return loss, norm

        try:
            captured = _Captured(current().capture(enqueue), held_batch, held, words)
        except Exception as error:  # whatever a layer does that a graph cannot hold: it still works without
            self.why_not = f"the training step could not be captured in a CUDA graph: {error}"
            logger.warning("%s; training continues without", self.why_not)
            return None
        self._seen[key] = captured
        return captured


def _on_device(library: Any, batch: Batch) -> Batch:
    """``batch`` with its arrays copied to the device."""
    return replace(batch, arrays={name: library.from_host(_for_kernels(value)) for name, value in batch.arrays.items()})


def _for_kernels(value: np.ndarray) -> np.ndarray:
    """A batch's array as kernels take it: int32 for ids."""
    return value.astype(np.int32) if value.dtype.kind in "iu" else np.ascontiguousarray(value)


def _mapped(function: Callable[[Any], Any], state: Any) -> Any:
    """A state, nested tuples of arrays, with each array replaced by what ``function`` makes of it."""
    return tuple(_mapped(function, part) for part in state) if isinstance(state, tuple) else function(state)


def _copy_state(library: Any, source: Any, target: Any) -> None:
    """Copy a state into the arrays of another; nothing to do where they are the same."""
    if source is target:
        return
    if isinstance(target, tuple):
        for part, into in zip(source, target, strict=True):
            _copy_state(library, part, into)
    else:
        library.copy_into(target, source)
