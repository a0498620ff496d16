"""Training: the loop, its checkpoints, its progress."""

from ..files import FolderInUse
from .checkpoint import Checkpoint, CheckpointError
from .loop import Result, Task, Trainer, TrainingDiverged
from .progress import MetricsError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "FolderInUse",
    "MetricsError",
    "Result",
    "Task",
    "Trainer",
    "TrainingDiverged",
]
