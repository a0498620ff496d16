"""Layers, models and losses."""

from .dropout import Dropout
from .embedding import Embedding
from .linear import EveryStepHead, LastStepHead, Linear
from .losses import cross_entropy, mse
from .model import Layer, Params, Recurrent, Sequential

__all__ = [
    "Dropout",
    "Embedding",
    "EveryStepHead",
    "LastStepHead",
    "Layer",
    "Linear",
    "Params",
    "Recurrent",
    "Sequential",
    "cross_entropy",
    "mse",
]
