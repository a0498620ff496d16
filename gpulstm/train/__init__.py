"""Training: the loop, its checkpoints, its progress."""

from ..files import FolderInUse
from .checkpoint import Checkpoint, CheckpointError
from .ends import TrainingDiverged
from .loop import Result, Trainer
from .metrics import MetricsError
from .task import Task

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
