"""Training: the loop, its checkpoints, its progress, and what the author of a task needs.

A task is a :class:`Task`; one with a command of its own is a :class:`gpulstm.tasks.CommandTask`, whose settings are a
class of :func:`field` that inherits :class:`Options`.
"""

from ..files import FolderInUse
from .checkpoint import Checkpoint, CheckpointError
from .ends import TrainingDiverged
from .loop import Result, Trainer
from .metrics import MetricsError
from .options import Options
from .settings_fields import Choice, Choices, Integer, Kind, Path, Real, Text, field
from .task import Batches, Task

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
    "Trainer",
    "TrainingDiverged",
    "field",
]
