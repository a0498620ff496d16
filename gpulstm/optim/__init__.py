"""Optimizers, gradient clipping and learning-rate schedules over dicts of arrays, with torch.optim's maths."""

from .clipping import clip_by_norm
from .optimizer import BLOCK, Optimizer
from .rules import OPTIMIZERS, SGD, Adam, AdamW, RMSProp, create
from .schedules import Constant, Cosine, Plateau, Schedule

__all__ = [
    "BLOCK",
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Optimizer",
    "Plateau",
    "RMSProp",
    "Schedule",
    "clip_by_norm",
    "create",
]
