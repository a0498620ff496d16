"""Data: reading, splitting and batching."""

from .lanes import Batch, Lanes
from .text import Corpus, read

__all__ = ["Batch", "Corpus", "Lanes", "read"]
