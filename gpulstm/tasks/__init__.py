"""Tasks: settings, data, model, loss and metric, one file each.

A task reads its data with the module of :mod:`gpulstm.data` that has its name. :data:`TASKS` is what the command line
and :func:`gpulstm.io.convert` know of; a task's module is imported when the task is asked for, and imports what takes
long when that is used.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checks, parsing
from ..train import checkpoint
from ..train.checkpoint import RECORD, Checkpoint, CheckpointError
from .base import CommandTask, Data

__all__ = ["TASKS", "USES", "CommandTask", "Data", "Use", "load", "named", "restored"]

TASKS = {
    "text": "gpulstm.tasks.text:TextTask",
    "forecast": "gpulstm.tasks.forecast:ForecastTask",
    "classify": "gpulstm.tasks.classify:ClassifyTask",
    "speech": "gpulstm.tasks.speech:SpeechTask",
    "recall": "gpulstm.tasks.recall:RecallTask",
}
"""Where the class of each task is, a :class:`gpulstm.tasks.base.CommandTask`."""


@dataclass(frozen=True)
class Use:
    """A command for what a user does with a trained model: its help, and what it does in a participle.

    ``task`` is the name of the one that has it, in :attr:`gpulstm.tasks.base.CommandTask.uses`.
    """

    help: str
    participle: str
    task: str


USES = {
    "sample": Use("Let a trained character model go on from a prompt.", "sampled", "text"),
    "forecast": Use("Forecast what comes after the end of a series.", "used for forecasts", "forecast"),
    "classify": Use("Say the class of each series, and how probable it is.", "used to classify series", "classify"),
    "transcribe": Use("Write down what a trained recogniser hears in recordings.", "used to transcribe", "speech"),
    "recall": Use("Ask a trained memory for one of the values that it is told.", "asked to recall", "recall"),
}
"""The commands for trained models, by name."""


def named(name: str) -> type[CommandTask]:
    """The task called ``name``.

    Raises:
        ValueError: there is none.
    """
    return pkgutil.resolve_name(TASKS[checks.choice(name, "task", TASKS)])


def load(path: str | Path) -> tuple[type[CommandTask], Checkpoint]:
    """The checkpoint at ``path``, as :func:`gpulstm.train.checkpoint.load` takes it, and the task that it is of.

    Raises:
        CheckpointError: it cannot be read, or is of no task that is known.
    """
    saved = checkpoint.load(path)
    try:
        config = parsing.Fields(saved.record, "record").fields("config").value
        known = " or ".join(map(repr, TASKS))
        if "task" not in config:
            raise ValueError(f"record.config.task: missing; expected {known}")
        name = config["task"]
        if not isinstance(name, str) or name not in TASKS:
            raise ValueError(f"record.config: task is {checks.shown(name)}, expected {known}")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{saved.path / RECORD}: {error}") from error
    return named(name), saved


def restored(path: str | Path, device: str = "cpu") -> Any:
    """The model of the checkpoint at ``path``, on ``device``.

    Raises:
        CheckpointError: it cannot be read, is of no task that is known, or holds other parameters than it describes.
    """
    task, saved = load(path)
    return task.restored(saved, device)
