"""Layers, models, losses and decoding."""

from .ctc import ctc
from .decoding import beam, greedy
from .dropout import Dropout
from .embedding import Embedding
from .linear import EveryStepHead, LastStepHead, Linear
from .losses import cross_entropy, huber, mse, quantile
from .mean_over_time import MeanOverTime
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
    "MeanOverTime",
    "Params",
    "Quantized",
    "Recurrent",
    "RecurrentLayer",
    "Reversed",
    "Sequential",
    "Stream",
    "beam",
    "cross_entropy",
    "ctc",
    "greedy",
    "huber",
    "mse",
    "quantile",
    "quantize",
]
