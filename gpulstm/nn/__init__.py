"""Layers, models and losses."""

from .dropout import Dropout
from .embedding import Embedding
from .linear import EveryStepHead, LastStepHead, Linear
from .losses import cross_entropy, mse
from .model import Layer, Params, RecurrentLayer, Sequential
from .quantized import Quantized, quantize
from .recurrent import GRU, LSTM, RNN, Recurrent
from .reversed import Reversed
from .stream import Stream

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Dropout",
    "Embedding",
    "EveryStepHead",
    "LastStepHead",
    "Layer",
    "Linear",
    "Params",
    "Quantized",
    "Recurrent",
    "RecurrentLayer",
    "Reversed",
    "Sequential",
    "Stream",
    "cross_entropy",
    "mse",
    "quantize",
]
