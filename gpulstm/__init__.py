"""LSTMs you can change, at the speed of the ones you can't.

    lstm = gpulstm.LSTM(input_size, hidden_size)
    y, (h, c) = lstm(x)                               # inference
    (y, (h, c)), vjp = lstm.vjp(x)                    # training
    dx, (dh0, dc0), grads = vjp(dy)

Importing this package compiles nothing and imports neither Numba nor any GPU library; kernels come at first use.
"""

from __future__ import annotations

import sys

if getattr(sys, "argv", [])[:1] == ["-m"] and sys.orig_argv[-len(sys.argv) :][:1] == ["gpulstm"]:  # python -m gpulstm
    import gpulstm_command  # noqa: F401  # before anything that takes a while

from typing import Any

from gpulstm_kernels.cuda.device.precision import allow_tf32
from gpulstm_kernels.memory import release as release_memory

from . import cells, io, nn, optim
from .cells import cell
from .dispatch import BackendUnavailable, backends, set_backend, use_backend
from .nn import GRU, LSTM, RNN, quantize
from .threads import get_num_threads, set_num_threads
from .version import __version__
from .watching import Watched

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BackendUnavailable",
    "__version__",
    "allow_tf32",
    "backends",
    "cell",
    "cells",
    "explain",
    "get_num_threads",
    "io",
    "nn",
    "optim",
    "quantize",
    "release_memory",
    "set_backend",
    "set_num_threads",
    "use_backend",
    "watch",
]


def explain(layer: nn.Recurrent, x: Any, *, backend: str | None = None) -> str:
    """In words: which backend and kernel ``layer`` would run on ``x``, why, and why not the others."""
    if not isinstance(layer, nn.Recurrent):
        raise TypeError(f"layer: expected a recurrent layer such as gpulstm.LSTM, got {type(layer).__name__}")
    return layer.explain(x, backend=backend)


def watch(
    model: nn.Layer, x: Any, state: Any = None, lengths: Any = None, resets: Any = None, *, inputs: Any = None
) -> Watched:
    """Run ``model`` on ``x`` as in inference, and look inside: ``watch(lstm, x)["l0"].gate("f")``.

    ``model`` is a recurrent layer of any cell, or a :class:`gpulstm.nn.Sequential` with some; the other arguments are
    those of its call.

    Raises:
        TypeError: ``model`` is no layer, or has one of quantized weights; as its call.
        ValueError: resets or inputs for a model that takes none; as its call.
    """
    if not isinstance(model, nn.Layer):
        raise TypeError(f"model: expected a gpulstm layer such as gpulstm.LSTM, got {type(model).__name__}")
    if isinstance(model, nn.Recurrent):
        return model.watch(x, state, lengths, resets, inputs=inputs)
    for name, value in (("resets", resets), ("inputs", inputs)):
        if value is not None:
            kind = type(model).__name__
            raise ValueError(f"{name}: expected None, since {kind} takes none, got {type(value).__name__}")
    return model.watch(x, state, lengths)
