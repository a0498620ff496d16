"""Training: the loop, its checkpoints, its progress."""

from .checkpoint import Checkpoint, CheckpointError
from .loop import Result, Task, Trainer, TrainingDiverged

__all__ = ["Checkpoint", "CheckpointError", "Result", "Task", "Trainer", "TrainingDiverged"]
