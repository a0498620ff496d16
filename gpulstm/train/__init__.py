"""Training: the loop, its checkpoints, its progress, and what the author of a task needs.

A task is a :class:`Task`; one with a command of its own is a :class:`gpulstm.tasks.CommandTask`, whose settings are a
class of :func:`field` that inherits :class:`Options`. A model is one of :mod:`gpulstm.nn`, or a torch module in a
:class:`TorchModel`.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from ..files import FolderInUse
from .checkpoint import Checkpoint, CheckpointError
from .ends import TrainingDiverged
from .loop import Result, Trainer
from .metrics import MetricsError
from .task import Batches, Task

if TYPE_CHECKING:
    from .options import Options
    from .settings_fields import Choice, Choices, Integer, Kind, Path, Real, Text, field
    from .torch_model import TorchModel

__all__ = [
    "Batches",
    "Checkpoint",
    "CheckpointError",
    "Choice",
    "Choices",
    "FolderInUse",
    "Integer",
    "Kind",
    "MetricsError",
    "Options",
    "Path",
    "Real",
    "Result",
    "Task",
    "Text",
    "TorchModel",
    "Trainer",
    "TrainingDiverged",
    "field",
]
# what is imported when it is asked for, since it needs attrs or torch, and where it is
_LATE = {"Options": "options", "TorchModel": "torch_model"}
_LATE |= dict.fromkeys(("Choice", "Choices", "Integer", "Kind", "Path", "Real", "Text", "field"), "settings_fields")


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(f"{__name__}.{_LATE[name]}:{name}")
