"""Data: reading, splitting and batching.

A task's data is read by the module that has the task's name, as :mod:`gpulstm.data.text` for :mod:`gpulstm.tasks.text`;
the other modules are shared.
"""

from .batch import Batch
from .lanes import Lanes

__all__ = ["Batch", "Lanes"]
