"""What can be trained: the base of all tasks, and of the sources of their batches."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any, Protocol

from .. import checks
from ..data.batch import Batch


class Batches(Protocol):
    """An endless source of batches whose position can be stored as JSON."""

    @property
    def epoch(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    def next(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


_UNSET: Any = None  # of a part that every task sets


class Task:
    """Base of what a :class:`gpulstm.train.Trainer` trains: a model, its data, what is minimised and measured.

    Every task sets ``metric``, ``config``, ``model`` and ``batches`` and defines :meth:`loss`; one that is validated
    defines :meth:`validate`.
    """

    metric: str = _UNSET
    """What :meth:`validate` measures beside the loss."""
    config: Mapping[str, Any] = _UNSET
    """JSON that must be the same for a run to be resumed: the model's sizes, the data's digest."""
    model: Any = _UNSET
    """Has ``params``, ``device``, ``state_dict``, ``load_state_dict`` and ``vjp(x, state, lengths=, rng=)`` as
    ``nn.Sequential``; a torch module has them in a :class:`gpulstm.train.TorchModel`."""
    batches: Batches = _UNSET
    unit: str = "tokens"
    """What :attr:`gpulstm.data.Batch.tokens` counts, as people are shown it."""
    chance: float | None = None
    """The loss of a model that knows nothing, if that is known: a hundred times as much ends the run as diverged."""

    def inputs(self, batch: Batch) -> Any:
        """What the model is called with: arrays of ``batch``, on a GPU those of a batch that was copied there."""
        return batch["inputs"]

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """The mean loss of what the model made of ``batch``, and its gradient with respect to ``output``.

        On a GPU the arrays of ``batch`` lie there too, and the loss may be a 0-d array.
        """
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """{"loss": ..., metric: ...} on held-out data; plateau schedules and early stopping follow the loss."""
        raise NotImplementedError


def checked(task: Any, *, validated: bool) -> Task:
    """``task`` itself.

    Raises:
        TypeError: it is no task, or lacks a part; ``validated`` says whether :meth:`Task.validate` is one.
    """
    needed = ("model", "loss", "batches", "metric", "config", *(["validate"] if validated else []))
    if not isinstance(task, Task):
        raise TypeError(f"task: expected a gpulstm.train.Task with {', '.join(needed)}, got {checks.shown(task)}")
    lacks = {
        "model": task.model is _UNSET,
        "loss": task.loss == MethodType(Task.loss, task),
        "batches": task.batches is _UNSET,
        "metric": task.metric is _UNSET,
        "config": task.config is _UNSET,
        "validate": task.validate == MethodType(Task.validate, task),
    }
    if missing := [name for name in needed if lacks[name]]:
        raise TypeError(f"task: expected one with {', '.join(needed)}, got {type(task).__name__} without {missing}")
    return task
