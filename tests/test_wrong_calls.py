"""Wrong calls: every argument of every public function and class, given values of the wrong kind one after another.

The arguments come from the signatures, so that a new one without wrong values fails here. What is demanded of each: a
ValueError or TypeError (or a backend that cannot run) whose message names the argument and says what was expected.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import GenericAlias, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from wrong_values import ARGUMENTS, BAD_DTYPES, BAD_SHAPES, HUGE, KINDS, NO_ARRAY, NO_INTEGER, NO_STRING, ODD, OTHER

import gpulstm
import gpulstm.torch
from gpulstm import checks, data, io, nn, optim, train
from gpulstm.data import text

WORDS = ("expected", "known", "needs", "unexpected", "missing", "positional")


@dataclass(frozen=True)
class Call:
    """A call that is right, and what to put wrong in it.

    Attributes:
        function: what is called.
        right: its arguments.
        kinds: the kind of an argument where it is not that of ``ARGUMENTS``; a list is of wrong values themselves, and
            a text that is no kind says why the argument has none.
        names: what messages call an argument, where not by its name.
    """

    function: Callable[..., Any]
    right: dict[str, Any]
    kinds: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def without_none(name: str) -> list[Any]:
    return [value for value in KINDS[ARGUMENTS[name]] if value is not None]


CHOICE = without_none("kind")
NO_FUNCTION = ["", "x", [], {}, ODD, 0, 1.5, True]
BATCH_FIRST = {"batch_first": without_none("batch_first")}
X = np.random.default_rng(0).standard_normal((5, 2, 3), np.float32)
Y = np.ones((5, 2, 4), np.float32)


class Toy(train.Task):
    metric = "loss"

    def __init__(self) -> None:
        self.config = {}
        self.model = nn.Sequential(nn.Linear(3, 2, seed=0))
        self.batches = SimpleNamespace(
            steps_per_epoch=2,
            epoch=0,
            next=lambda: data.Batch({"inputs": X, "targets": np.zeros((5, 2, 2), "f4")}),
            state_dict=dict,
            load_state_dict=lambda state: None,
        )

    def loss(self, output: Any, batch: data.Batch) -> Any:
        return nn.mse(output, batch["targets"])

    def validate(self) -> dict[str, float]:
        return {"loss": 1.0}


def trained(**options: Any) -> Any:
    return train.Trainer(**({"task": Toy(), "optimizer": optim.SGD(0.1), "shown": False} | options))


@functools.cache
def lstm() -> Any:
    return gpulstm.LSTM(3, 4, seed=0)


def pullback(layer: Any, x: Any = X) -> Any:
    return layer.vjp(x)[1]


SIZES = {"input_size": 3, "hidden_size": 4}
FEATURES = {"in_features": 3, "out_features": 4}
FREE = {"x": "floats", "dy": "floats"}  # of any shape, of both dtypes
ONE_STATE = {"state": [ODD, 0, "x", {"h": 1}, (), (np.ones((1, 2, 4), "f4"),) * 2, np.ones((1, 2, 5), "f4")]}
NO_STATE = {
    name: [value for value in KINDS["state"] if not (isinstance(value, tuple) and not value)]
    for name in ("state", "dstate")
}
PER_LAYER = {"state": ["x", {"h": 1}, ODD, 0, 1.5, (), (None, None), (5,), np.ones((1, 2, 4), "f4")]}
ANY_TRUTH = "torch takes whatever is true or false"
TORCH = {
    **dict.fromkeys(("input_size", "hidden_size", "num_layers"), "size"),  # which meta tensors have in any size
    **dict.fromkeys(("bias", "batch_first", "bidirectional"), ANY_TRUTH),
    "dropout": "closed share",
    "device": "torch's to check: it raises RuntimeError",
    "dtype": "torch dtype",
}

H = torch.ones(1, 2, 4)
BAD_HX = ["", "x", [], {}, ODD, 0, 1.5, True, HUGE, H, (H,), (H, H, H), (H, None), (H[:, :1], H), (H, H.double())]
TENSORS = {"input": "tensor", "hx": [*BAD_HX, (H.to_sparse(), H), (H, H.to("meta")), (H.int(), H.int())]}
ONE_TENSOR = {"hx": ["", "x", [], {}, ODD, 0, 1.5, True, HUGE, (H,), H[:, :1], H.double(), H.to_sparse(), H.to("meta")]}
NO_FLAGS = [*("", "x", [], {}, ODD, 0, 1.5, True, HUGE, np.ones((5, 2), "?")), torch.ones(5, 2), torch.ones(2, 5) > 0]
ANY_CELL = {
    "x": "tensor",
    "state": [value for value in BAD_HX if value is not H],
    "lengths": [*("", "x", [], {}, ODD, 0, 1.5, True, HUGE, [1], [-1, 1], [1, 6], [1.0, 2.0]), torch.ones(2)],
    "resets": [*NO_FLAGS, (torch.ones(5, 2) > 0).to_sparse()],
    "inputs": [*(None, "", "x", [], {}, ODD, 0, 1.5, True, HUGE, {"gap": None}, {1: 2}), {"gap": torch.ones(5, 9)}],
}
CELL = {"input": [value for value in KINDS["tensor"] if getattr(value, "shape", None) != (7,)], "hx": BAD_HX}


DECODED = {
    "logits": [*NO_ARRAY, *(v for v in BAD_DTYPES if v.dtype != "f8"), *BAD_SHAPES[:-2], BAD_SHAPES[-1]],
    "blank": [*NO_INTEGER, -1, 3, HUGE],
}


@functools.wraps(nn.ctc)
def ctc_in_numpy(*args: Any, **kwargs: Any) -> Any:
    with gpulstm.use_backend("reference"):
        return nn.ctc(*args, **kwargs)


def compute_with(name: Any) -> None:
    with gpulstm.use_backend(name):
        pass


def model() -> Any:
    return nn.Sequential(lstm(), nn.Linear(4, 2, seed=0))


MOMENT = np.ones(3, "f4")
PARAMETERS = [
    *NO_ARRAY,
    *(np.ones((16, 4), dtype) for dtype in ("i4", "?", "c8", "O", "S3", "U3", "M8[s]", "i4,f4")),
    *(np.ones(shape, "f4") for shape in ((), (0,), (16,), (4, 16), (16, 5), (1, 16, 4))),
    *(np.full((16, 4), value) for value in (math.nan, math.inf, 1e300)),
]
LANES = data.Lanes([b"x" * 100], 2, 5)
POSITIONS = [
    *(None, "", "x", [], {}, ODD, 0, True, {1: 2}, {"epoch": 1}),
    *(LANES.state_dict() | {name: value} for name in ("epoch", "window") for value in (None, "x", -3, 1e24, math.nan)),
    LANES.state_dict() | {"window": LANES.steps_per_epoch},
]

# Made when they are tested: some compute.
CALLS: dict[str, Callable[[], Call]] = {
    "gpulstm.explain": lambda: Call(gpulstm.explain, {"layer": lstm(), "x": X}),
    "gpulstm.watch": lambda: Call(gpulstm.watch, {"model": lstm(), "x": X}),
    "gpulstm.quantize": lambda: Call(gpulstm.quantize, {"layer": lstm(), "kind": "int8"}),
    "gpulstm.use_backend": lambda: Call(compute_with, {"name": None}, {"name": CHOICE}, {"name": "backend"}),
    "gpulstm.set_backend": lambda: Call(gpulstm.set_backend, {"name": None}, {"name": CHOICE}, {"name": "backend"}),
    "gpulstm.set_num_threads": lambda: Call(
        gpulstm.set_num_threads, {"count": gpulstm.get_num_threads()}, {"count": [*NO_INTEGER, 0, -1]}
    ),
    "gpulstm.allow_tf32": lambda: Call(gpulstm.allow_tf32, {"allowed": False}),
    "cells.get": lambda: Call(gpulstm.cells.get, {"name": "lstm"}, {"name": "choice"}, {"name": "cell"}),
    # nn
    "nn.LSTM": lambda: Call(nn.LSTM, SIZES),
    "nn.RNN": lambda: Call(nn.RNN, SIZES),
    "nn.Recurrent": lambda: Call(nn.Recurrent, {"cell": "lstm"} | SIZES, {"input_size": without_none("input_size")}),
    "nn.LSTM.__call__": lambda: Call(lstm(), {"x": X}),
    "nn.LSTM.forward": lambda: Call(lstm().forward, {"x": X}),
    "nn.LSTM.vjp": lambda: Call(lstm().vjp, {"x": X}),
    "nn.LSTM.vjp with dropout": lambda: Call(
        gpulstm.LSTM(3, 4, 2, dropout=0.5).vjp, {"x": X, "rng": 0}, {"state": [5, ()]}
    ),
    "nn.LSTM pullback": lambda: Call(pullback(lstm()), {}, {"dy": without_none("dy")}),
    "nn.LSTM.explain": lambda: Call(lstm().explain, {"x": X}),
    "nn.LSTM.watch": lambda: Call(lstm().watch, {"x": X}),
    "nn.LSTM.stream": lambda: Call(lstm().stream, {"batch_size": 2}),
    "nn.LSTM.to": lambda: Call(lstm().to, {"device": "cpu"}, {"device": without_none("device")}),
    "nn.LSTM.load_state_dict": lambda: Call(lstm().load_state_dict, {"state_dict": lstm().state_dict()}),
    "nn.RNN.__call__": lambda: Call(nn.RNN(3, 4), {"x": X}, ONE_STATE),
    "nn.RNN pullback": lambda: Call(pullback(nn.RNN(3, 4)), {}, {"dstate": ONE_STATE["state"]}),
    "nn.Stream": lambda: Call(nn.Stream, {"layer": lstm(), "batch_size": 2}),
    "nn.Stream.__call__": lambda: Call(lstm().stream(2), {"x": X[0]}),
    "nn.Stream.reset": lambda: Call(lstm().stream(2).reset, {}),
    "nn.LastStepHead.to": lambda: Call(nn.LastStepHead(3, 4).to, {"device": "cpu"}, {"device": without_none("device")}),
    "nn.Reversed.to": lambda: Call(nn.Reversed(lstm()).to, {"device": "cpu"}, {"device": without_none("device")}),
    "nn.Quantized": lambda: Call(nn.Quantized, {"layer": lstm(), "kind": "bf16"}),
    "nn.Quantized.__call__": lambda: Call(gpulstm.quantize(lstm(), "int8"), {"x": X}),
    "nn.Quantized.forward": lambda: Call(gpulstm.quantize(lstm(), "int8").forward, {"x": X}),
    "nn.quantize": lambda: Call(nn.quantize, {"layer": lstm(), "kind": "int8"}),
    "nn.Reversed": lambda: Call(nn.Reversed, {"layer": lstm()}),
    "nn.Reversed.__call__": lambda: Call(nn.Reversed(lstm()), {"x": X}),
    "nn.Reversed.forward": lambda: Call(nn.Reversed(lstm()).forward, {"x": X}),
    "nn.Reversed.watch": lambda: Call(nn.Reversed(lstm()).watch, {"x": X}),
    "nn.Reversed.vjp": lambda: Call(nn.Reversed(lstm()).vjp, {"x": X}),
    "nn.Reversed pullback": lambda: Call(pullback(nn.Reversed(lstm())), {}),
    "nn.Embedding": lambda: Call(nn.Embedding, {"num_embeddings": 5, "embedding_dim": 4}),
    "nn.Embedding.__call__": lambda: Call(nn.Embedding(5, 4), {"ids": np.arange(5)}),
    "nn.Embedding.forward": lambda: Call(nn.Embedding(5, 4).forward, {"ids": np.arange(5)}, NO_STATE),
    "nn.Embedding.vjp": lambda: Call(nn.Embedding(5, 4).vjp, {"ids": np.arange(5)}, NO_STATE),
    "nn.Embedding pullback": lambda: Call(
        pullback(nn.Embedding(5, 4), np.arange(5)), {"dy": np.ones((5, 4), "f4")}, NO_STATE
    ),
    "nn.Linear": lambda: Call(nn.Linear, FEATURES),
    "nn.Linear.__call__": lambda: Call(nn.Linear(3, 4), {"x": X}, {"x": [*NO_ARRAY, *BAD_DTYPES, *BAD_SHAPES[:-1]]}),
    "nn.Linear.forward": lambda: Call(nn.Linear(3, 4).forward, {"x": X}, NO_STATE),
    "nn.Linear.vjp": lambda: Call(nn.Linear(3, 4).vjp, {"x": X}, NO_STATE),
    "nn.Linear pullback": lambda: Call(pullback(nn.Linear(3, 4)), {"dy": Y}, NO_STATE),
    "nn.EveryStepHead": lambda: Call(nn.EveryStepHead, FEATURES),
    "nn.LastStepHead": lambda: Call(nn.LastStepHead, FEATURES),
    "nn.LastStepHead.__call__": lambda: Call(nn.LastStepHead(3, 4), {"x": X}),
    "nn.LastStepHead.forward": lambda: Call(nn.LastStepHead(3, 4).forward, {"x": X}, NO_STATE),
    "nn.LastStepHead.vjp": lambda: Call(nn.LastStepHead(3, 4).vjp, {"x": X}, NO_STATE),
    "nn.LastStepHead pullback": lambda: Call(pullback(nn.LastStepHead(3, 4)), {"dy": Y[0]}, NO_STATE),
    "nn.MeanOverTime": lambda: Call(nn.MeanOverTime, {}),
    "nn.MeanOverTime.__call__": lambda: Call(nn.MeanOverTime(), {"x": X}, FREE),
    "nn.MeanOverTime.forward": lambda: Call(nn.MeanOverTime().forward, {"x": X}, FREE | NO_STATE),
    "nn.MeanOverTime.vjp": lambda: Call(nn.MeanOverTime().vjp, {"x": X}, FREE | NO_STATE),
    "nn.MeanOverTime pullback": lambda: Call(pullback(nn.MeanOverTime()), {"dy": Y[0, :, :3]}, NO_STATE),
    "nn.Dropout": lambda: Call(nn.Dropout, {}),
    "nn.Dropout.__call__": lambda: Call(nn.Dropout(), {"x": X}, FREE),
    "nn.Dropout.forward": lambda: Call(nn.Dropout().forward, {"x": X}, FREE | NO_STATE),
    "nn.Dropout.vjp": lambda: Call(nn.Dropout().vjp, {"x": X}, FREE | NO_STATE),
    "nn.Dropout(0).vjp": lambda: Call(nn.Dropout(0).vjp, {"x": X}, FREE | NO_STATE),
    "nn.Dropout pullback": lambda: Call(pullback(nn.Dropout()), {"dy": X}, NO_STATE),
    "nn.Sequential": lambda: Call(lambda layers: nn.Sequential(*layers), {"layers": [lstm()]}),
    "nn.Sequential.__call__": lambda: Call(model(), {"x": X}, PER_LAYER),
    "nn.Sequential.forward": lambda: Call(model().forward, {"x": X}, PER_LAYER),
    "nn.Sequential.watch": lambda: Call(model().watch, {"x": X}, PER_LAYER),
    "nn.Sequential.vjp": lambda: Call(model().vjp, {"x": X}, PER_LAYER),
    "nn.Sequential pullback": lambda: Call(
        pullback(model()), {"dy": np.ones((5, 2, 2), "f4")}, {"dstate": PER_LAYER["state"]}
    ),
    "nn.Sequential.to": lambda: Call(model().to, {"device": "cpu"}, {"device": without_none("device")}),
    "nn.Sequential.load_state_dict": lambda: Call(model().load_state_dict, {"state_dict": model().state_dict()}),
    "nn.cross_entropy": lambda: Call(
        nn.cross_entropy,
        {"logits": X, "targets": np.zeros((5, 2), int)},
        {
            "logits": [v for v in KINDS["floats"] if getattr(v, "dtype", None) != "f8"],
            "label_smoothing": "closed share",
        },
    ),
    "nn.ctc": lambda: Call(
        ctc_in_numpy,
        {"logits": X, "targets": np.array([[1, 2], [2, 1]])},
        {
            "logits": [
                v for v in KINDS["x"] if getattr(v, "dtype", None) != "f8" and getattr(v, "shape", 0) != (5, 2, 9)
            ],
            "input_lengths": "lengths",
            "target_lengths": [v for v in KINDS["lengths"] if not isinstance(v, list) or v != [1, 2]],
            "blank": [*NO_INTEGER, -1, 3, HUGE],
            "zero_infinity": "flag",
        },
    ),
    "nn.greedy": lambda: Call(nn.greedy, {"logits": X}, DECODED),
    "nn.beam": lambda: Call(nn.beam, {"logits": X}, DECODED | {"width": "size"}),
    "nn.huber": lambda: Call(
        nn.huber, {"prediction": X, "target": X}, {"target": "x", "delta": [*KINDS["positive"], None]}
    ),
    "nn.quantile": lambda: Call(
        nn.quantile,
        {"prediction": X, "target": X[..., 0], "levels": [0.1, 0.5, 0.9]},
        {
            "target": [*NO_ARRAY, *BAD_DTYPES, *BAD_SHAPES],
            "levels": [
                *OTHER,
                0.5,
                True,
                "abc",
                (0.1, 0.5),
                [0.1, 0.5, 1],
                [0, 0.5, 0.9],
                (0.1, math.nan, 0.9),
                [HUGE] * 3,
            ],
        },
    ),
    "nn.mse": lambda: Call(nn.mse, {"prediction": X, "target": X}, {"target": "x"}),
    # optim
    "optim.Optimizer": lambda: Call(optim.Optimizer, {"lr": 0.1, "weight_decay": 0.0}),
    "optim.SGD": lambda: Call(optim.SGD, {"momentum": 0.5}),
    "optim.RMSProp": lambda: Call(optim.RMSProp, {}),
    "optim.Adam": lambda: Call(optim.Adam, {}),
    "optim.AdamW": lambda: Call(optim.AdamW, {}),
    "optim.create": lambda: Call(optim.create, {"name": "adam", "lr": 0.1}, {"name": "choice"}, {"name": "optimizer"}),
    "optim.Adam.step": lambda: Call(
        lambda params, grads, finite: optim.Adam().step(params, grads, finite),
        {"params": {"w": np.ones(2)}, "grads": {"w": np.ones(2)}, "finite": ()},
        {"finite": [None, "", "x", ODD, 0, 1.5, {}, [None], ["x"], (1, ODD), (1, 2, 3), (1j,), (np.ones(2),)]},
    ),
    "optim.Adam.load_state_dict": lambda: Call(optim.Adam().load_state_dict, {"state_dict": optim.Adam().state_dict()}),
    "optim.Adam.lr": lambda: Call(lambda lr: setattr(optim.Adam(), "lr", lr), {"lr": 0.1}),
    "optim.clip_by_norm": lambda: Call(
        optim.clip_by_norm, {"grads": {"w": np.ones(2)}, "max_norm": 1.0}, {"grads": KINDS["arrays"]}
    ),
    "optim.Schedule": lambda: Call(optim.Schedule, {"lr": 0.1}),
    "optim.Constant": lambda: Call(optim.Constant, {"lr": 0.1}),
    "optim.Constant.__call__": lambda: Call(optim.Constant(0.1), {}),
    "optim.Constant.update": lambda: Call(optim.Constant(0.1).update, {"validation_loss": 1.0}),
    "optim.Constant.load_state_dict": lambda: Call(
        optim.Constant(0.1).load_state_dict,
        {"state_dict": {}},
        {"state_dict": [value for value in KINDS["state_dict"] if value != {}]},
    ),
    "optim.Cosine": lambda: Call(optim.Cosine, {"lr": 0.1}),
    "optim.Cosine.__call__": lambda: Call(optim.Cosine(0.1), {}),
    "optim.Plateau": lambda: Call(optim.Plateau, {"lr": 0.1}, {"patience": "count"}),
    "optim.Plateau.__call__": lambda: Call(optim.Plateau(0.1), {}),
    "optim.Plateau.update": lambda: Call(optim.Plateau(0.1).update, {"validation_loss": 1.0}),
    "optim.Plateau.load_state_dict": lambda: Call(
        optim.Plateau(0.1).load_state_dict, {"state_dict": optim.Plateau(0.1).state_dict()}
    ),
    # what state dicts hold
    "nn.LSTM.load_state_dict, a value": lambda: Call(
        lambda weight_hh_l0: lstm().load_state_dict(lstm().state_dict() | {"weight_hh_l0": weight_hh_l0}),
        {"weight_hh_l0": np.ones((16, 4))},
        {"weight_hh_l0": PARAMETERS},
    ),
    "nn.Sequential.load_state_dict, a value": lambda: Call(
        lambda weight: model().load_state_dict(model().state_dict() | {"1.weight": weight}),
        {"weight": np.ones((2, 4))},
        {"weight": PARAMETERS},
    ),
    "io.load_torch, a value": lambda: Call(
        lambda weight_hh_l0: io.load_torch(lstm().state_dict() | {"weight_hh_l0": weight_hh_l0}),
        {"weight_hh_l0": np.ones((16, 4), "f4")},
        {"weight_hh_l0": [value for value in PARAMETERS[:-1] if getattr(value, "shape", None) != (16, 5)]},
    ),
    "optim.Adam.load_state_dict, a value": lambda: Call(
        lambda lr=0.1, step=1, exp_avg=MOMENT: optim.Adam().load_state_dict(
            {"lr": lr, "step": step, "exp_avg/w": exp_avg, "exp_avg_sq/w": MOMENT}
        ),
        {},
        {"step": "count", "exp_avg": [*NO_ARRAY[:-1], *(value for value in BAD_DTYPES if value.dtype != "f8")]},
    ),
    "optim.Plateau.load_state_dict, a value": lambda: Call(
        lambda lr=0.1, best=1.0, bad=0: optim.Plateau(0.1).load_state_dict({"lr": lr, "best": best, "bad": bad}),
        {},
        {"best": "loss", "bad": "count"},
    ),
    # data
    "data.Lanes": lambda: Call(
        data.Lanes,
        {"documents": [b"x" * 100], "batch": 2, "seq_len": 5},
        {"seed": "count", "check": NO_FUNCTION},
    ),
    "data.Lanes.load_state_dict": lambda: Call(
        LANES.load_state_dict,
        {"state": LANES.state_dict()},
        {"state": POSITIONS},
    ),
    "data.text.read": lambda: Call(text.read, {"data": __file__}, {"data": "path", "progress": NO_FUNCTION}),
    # train
    "train.Trainer": lambda: Call(
        train.Trainer,
        {"task": Toy(), "optimizer": optim.SGD(0.1), "validate_every": 1},
        {"schedule": "object", "lock": NO_FUNCTION} | {name: without_none(name) for name in ("clip", "seed")},
    ),
    "train.Trainer.run, steps": lambda: Call(lambda steps: trained().run(steps=steps), {"steps": 1}),
    "train.Trainer.run, epochs": lambda: Call(lambda epochs: trained().run(epochs=epochs), {"epochs": 0.1}),
    "train.Trainer.run, minutes": lambda: Call(lambda minutes: trained().run(minutes=minutes), {"minutes": 1e-6}),
    # torch
    "torch.LSTM": lambda: Call(gpulstm.torch.LSTM, SIZES, TORCH),
    "torch.LSTM.forward": lambda: Call(gpulstm.torch.LSTM(3, 4).forward, {"input": torch.ones(5, 2, 3)}, TENSORS),
    "torch.GRU": lambda: Call(gpulstm.torch.GRU, SIZES, TORCH),
    "torch.GRU.forward": lambda: Call(
        gpulstm.torch.GRU(3, 4).forward, {"input": torch.ones(5, 2, 3)}, TENSORS | ONE_TENSOR
    ),
    "torch.RNN.forward": lambda: Call(
        gpulstm.torch.RNN(3, 4).forward, {"input": torch.ones(5, 2, 3)}, TENSORS | ONE_TENSOR
    ),
    "torch.LSTMCell.forward": lambda: Call(
        gpulstm.torch.LSTMCell(3, 4).forward, {"input": torch.ones(2, 3)}, TENSORS | CELL
    ),
    "torch.Recurrent": lambda: Call(
        gpulstm.torch.Recurrent,
        {"cell": "lstm"} | SIZES,
        {
            "input_size": [value for value in KINDS["size"] if value is not None],  # which is pre-activations
            **dict.fromkeys(("hidden_size", "num_layers", "heads"), "size"),
            **{name: TORCH[name] for name in ("device", "dtype")},
        },
    ),
    "torch.Recurrent.forward": lambda: Call(
        gpulstm.torch.Recurrent("time_gap", 3, 4).forward,
        {"x": torch.ones(5, 2, 3), "inputs": {"gap": torch.ones(5, 2)}},
        ANY_CELL,
    ),
    "torch.GRUCell": lambda: Call(gpulstm.torch.GRUCell, SIZES, TORCH | dict.fromkeys(SIZES, "count")),
    "torch.GRUCell.forward": lambda: Call(
        gpulstm.torch.GRUCell(3, 4).forward,
        {"input": torch.ones(2, 3)},
        CELL | {"hx": ["x", [], 0, (H,), H, H[0].double()]},
    ),
    "torch.RNNCell": lambda: Call(gpulstm.torch.RNNCell, SIZES, TORCH | dict.fromkeys(SIZES, "count")),
    "torch.RNNCell.forward": lambda: Call(
        gpulstm.torch.RNNCell(3, 4).forward, {"input": torch.ones(2, 3)}, CELL | {"hx": ["x", 0, (H,), H, H.double()]}
    ),
    "torch.RNN": lambda: Call(gpulstm.torch.RNN, SIZES, TORCH),
    "torch.LSTMCell": lambda: Call(gpulstm.torch.LSTMCell, SIZES, TORCH | dict.fromkeys(SIZES, "count")),
    "torch.replace": lambda: Call(gpulstm.torch.replace, {"model": torch.nn.ReLU()}, {"model": "object"}),
}


def one_node() -> Any:
    """An ONNX model of an LSTM alone."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=4)
    ends = [helper.make_tensor_value_info(name, kind, None) for name in ("X", "Y")]
    weights = [np.ones((1, 16, inputs), np.float32) for inputs in (3, 4)]
    constants = [onnx.numpy_helper.from_array(value, name) for value, name in zip(weights, "WR", strict=True)]
    return helper.make_model(helper.make_graph([node], "lstm", ends[:1], ends[1:], constants))


@pytest.fixture(scope="module")
def of_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Call]:
    """The calls that need files."""
    folder = tmp_path_factory.mktemp("files")
    tensors, graph, keras = (folder / f"l{suffix}" for suffix in (".safetensors", ".onnx", ".weights.h5"))
    io.save_safetensors(lstm(), tensors)
    io.export_onnx(lstm(), graph)
    io.save_keras(lstm(), keras)
    run = trained(out=folder / "run")
    run.run(steps=1)
    saved = train.checkpoint.load(folder / "run")
    node = io.load_onnx(one_node())
    out = folder / "out"
    wanted = [*KINDS["strings"], ["x"], [0]]
    return {
        "io.convert": Call(
            io.convert,
            {"source": graph, "target": out.with_suffix(".safetensors"), "force": True},
            {"state": "flag", "lengths": "flag", "target": "path", "layer": NO_STRING[1:]} | BATCH_FIRST,
        ),
        "io.export_onnx": Call(io.export_onnx, {"model": lstm(), "path": out}, {"state": "flag", "lengths": "flag"}),
        "io.load_keras": Call(io.load_keras, {"path": keras}, {"layers": wanted[1:]}),
        "io.load_onnx": Call(io.load_onnx, {"path_or_model_proto": one_node()}, {"path_or_model_proto": "path"}, PATH),
        "io.onnx_layers": Call(
            io.onnx_layers,
            {"path_or_model_proto": graph},
            {"path_or_model_proto": "path", "nodes": wanted[1:]},
            PATH,
        ),
        "io.load_safetensors": Call(io.load_safetensors, {"path": tensors}, BATCH_FIRST),
        "io.load_torch": Call(
            io.load_torch,
            {"source": lstm().state_dict()},
            {"source": [value for value in KINDS["path"] if value != {}]},
            {"source": "path"},
        ),
        "io.save_keras": Call(io.save_keras, {"layers": lstm(), "path": keras}, {"layers": "layer"}),
        "io.save_safetensors": Call(io.save_safetensors, {"layer": lstm(), "path": out}),
        "io.save_torch": Call(io.save_torch, {"layer": lstm()}),
        "io.OnnxNode": Call(io.OnnxNode, {"node": node._node}),
        "io.OnnxNode.__call__": Call(lambda x: node(X=x), {"x": X}, names={"x": "X"}),
        "train.Trainer.resume": Call(trained(out=folder / "other").resume, {"saved": saved}, {"schedule": "flag"}),
    }


PATH = {"path_or_model_proto": "path"}
OF_FILES = (
    *("io.convert", "io.export_onnx", "io.load_keras", "io.load_onnx", "io.onnx_layers", "io.load_safetensors"),
    *("io.load_torch", "io.save_keras", "io.save_safetensors", "io.save_torch", "io.OnnxNode", "io.OnnxNode.__call__"),
    "train.Trainer.resume",
)


def parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """Those of ``function``; LSTM and RNN hand on what Recurrent takes by keyword."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            base = inspect.signature(nn.Recurrent).parameters.values()
            yield from (other for other in base if other.kind is other.KEYWORD_ONLY)
        else:
            yield parameter


def wrong_values(call: Call, parameter: inspect.Parameter) -> list[Any]:
    kind = call.kinds.get(parameter.name) or ARGUMENTS.get(parameter.name)
    assert kind is not None, f"{parameter.name}: an argument without wrong values: say of what kind it is"
    if isinstance(kind, list):
        return kind
    return [value for value in KINDS.get(kind, []) if value is not None or parameter.default is not None]


def complaint(call: Call, name: str, value: Any) -> str | None:
    """What is amiss with the error for ``value``; None where it helps."""
    try:
        call.function(**(call.right | {name: value}))
    except (ValueError, TypeError, gpulstm.BackendUnavailable) as error:
        message = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "accepted"
    named = call.names.get(name, name)
    if not re.search(rf"(?<![A-Za-z_]){named}(?![A-Za-z_])", message):
        return f"does not name the argument: {message}"
    return None if any(word in message for word in WORDS) else f"does not say what was expected: {message}"


def complaints(call: Call) -> list[str]:
    call.function(**call.right)
    found = []
    for parameter in parameters(call.function):
        for value in wrong_values(call, parameter):
            if (text := complaint(call, parameter.name, value)) is not None:
                shown = type(value).__name__ if isinstance(value, int) else repr(value)[:60]
                found.append(f"{parameter.name}={shown}: {text[:200]}")
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_named(name: str, request: pytest.FixtureRequest) -> None:
    if name.endswith("forward"):
        request.getfixturevalue("in_numpy")
    assert not complaints(CALLS[name]())


@pytest.mark.parametrize("name", OF_FILES)
def test_a_wrong_argument_of_a_call_with_files_is_named(name: str, of_files: dict[str, Call]) -> None:
    assert not complaints(of_files[name])


# Every public name has its wrong calls

CELL_LANGUAGE = (
    *("abs", "cell", "check", "exp", "hard_sigmoid", "log", "maximum", "minimum", "named", "relu", "show", "sigmoid"),
    *("product", "row_mean", "softplus", "sqrt", "tanh", "where"),
)
EXEMPT = {
    "gpulstm.backends": "takes nothing",
    "gpulstm.get_num_threads": "takes nothing",
    "gpulstm.release_memory": "takes nothing",
    "nn.Layer": "a base without a constructor",
    "nn.RecurrentLayer": "a base without a constructor",
    "nn.Quantized.load_state_dict": "refuses every call",
    "nn.Quantized.params_for": "for streams, which hand it a module",
    "nn.Quantized.vjp": "refuses every call",
    "cells.register": "its checks are in test_cells.py",
    "cells.Cell": "a declaration, which is checked where it is registered",
    "cells.Noise": "a part of it",
    "cells.TracedCell": "made by cells.cell",
    "torch.flashrnn": "its checks are in test_dropin_flashrnn.py",
    **dict.fromkeys(
        ("gpulstm.cell", *(f"cells.{name}" for name in CELL_LANGUAGE)), "its checks are in test_language_errors.py"
    ),
    "optim.Optimizer.advance": "half of a step, which checks for both",
    "optim.Optimizer.apply": "half of a step, which checks for both",
    "optim.Optimizer.check_state": "of parameters that a step or a model has checked",
    "optim.Schedule.load_state_dict": "as Constant's",
    "train.Batches": "a protocol",
    "train.Checkpoint": "a record of what was read",
    "train.Result": "a record of how a run ended",
    "train.Task": "a base without a constructor",
    "train.Options": "a record; its fields are checked in test_tasks.py",
    "train.TorchModel": "its checks are in test_torch_model.py",
    "train.field": "a declaration in a class",
    **dict.fromkeys(
        (f"train.{kind}" for kind in ("Choice", "Choices", "Integer", "Kind", "Path", "Real", "Text")),
        "a declaration in a class",
    ),
    "data.Batch": "a record",
    "torch.Replacement": "a record of what was replaced",
}
MODULES: dict[str, ModuleType] = {
    "gpulstm": gpulstm,
    "cells": gpulstm.cells,
    "nn": nn,
    "optim": optim,
    "io": io,
    "train": train,
    "data": data,
    "torch": gpulstm.torch,
}


def public() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and the methods with arguments that a class adds, by dotted name."""
    for module, of in MODULES.items():
        names = getattr(of, "__all__", [name for name, value in vars(of).items() if is_own(value, of)])
        for name in names:
            value = getattr(of, name)
            if not callable(value) or isinstance(value, GenericAlias):
                continue
            if inspect.isclass(value) and issubclass(value, BaseException):
                continue
            yield f"{module}.{name}", value
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    known = inspect.isfunction(function) and (method == "__call__" or not method.startswith("_"))
                    if known and len(inspect.signature(function).parameters) > 1:
                        yield f"{module}.{name}.{method}", value


def is_own(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and not value.__name__.startswith("_")


def covered(name: str, value: Any) -> bool:
    """Whether ``name`` has a call: under another module too, and a method in any class that inherits it."""
    if name in EXEMPT or name.rpartition(".")[0] in EXEMPT:
        return True
    called = {key.split(",")[0].split(" ")[0] for key in (*CALLS, *OF_FILES)}
    if name.count(".") == 1:
        return any(key.split(".", 1)[1] == name.split(".")[1] for key in called)
    heirs = {other for _, other in public() if inspect.isclass(other) and issubclass(other, value)}
    return any(key.endswith(f".{heir.__name__}.{name.split('.')[2]}") for heir in heirs for key in called)


def test_every_public_name_has_its_wrong_calls() -> None:
    assert [name for name, value in public() if not covered(name, value)] == []


# Sizes beyond memory


def test_sizes_beyond_memory_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_memory", lambda: 2**20)
    gpulstm.LSTM(100, 100)
    for layers in (4, 10**8):  # nothing is listed either
        with pytest.raises(
            ValueError, match=r"num_layers: expected sizes .* memory, got \(100, 100, \d+\), which take"
        ):
            gpulstm.LSTM(100, 100, layers)
    rows = 2**20 // (2 * 100 * 4)
    gpulstm.LSTM(1, 100).stream(rows)
    for call, name in (
        (lambda: gpulstm.LSTM(1, 100).stream(rows + 1), "batch_size"),
        (lambda: nn.Linear(2**10, 2**9), "in_features, out_features"),
        (lambda: nn.Embedding(2**10, 2**9), "num_embeddings, embedding_dim"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected sizes whose arrays fit"):
            call()


def test_a_truth_of_numpy_is_one() -> None:
    assert list(gpulstm.LSTM(3, 4, bias=np.False_).params) == ["weight_ih_l0", "weight_hh_l0"]
    assert list(nn.Linear(3, 4, np.False_).params) == ["weight"]
