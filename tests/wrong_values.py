"""Values of the wrong kind, for every kind of argument that the public API has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpulstm

HUGE = 10**400  # an integer that no float holds
PRINTED = 10**5000  # and one that Python refuses to print


class Odd:
    """What no argument is; says so in few words."""

    def __repr__(self) -> str:
        return "Odd()"


ODD = Odd()
OTHER: list[Any] = [None, "", "x", b"x", [], {}, (), ODD, Odd, 1j, np.ones(2), np.array("x")]
NO_NUMBER = [*OTHER, True, np.True_, "1", [1]]
NO_INTEGER = [*NO_NUMBER, 1.5, 2.0, math.nan, math.inf, np.float32(1)]
NO_STRING = [value for value in OTHER if not isinstance(value, str)] + [0, 1.5, True, HUGE]
NO_ARRAY = [*(None, "", "x", b"x", [], {}, (), ODD, Odd, 0, 1.5, True, [[1.0]], HUGE), np.ma.masked_array(np.ones(3))]
BAD_DTYPES = [
    np.ones((5, 2, 3), dtype) for dtype in ("f2", "f8", ">f4", "i4", "?", "c8", "O", "S3", "U3", "M8[s]", "i4,f4")
]
BAD_SHAPES = [np.ones(shape, "f4") for shape in ((), (0,), (7,), (5, 2, 0), (0, 2, 3), (5, 0, 3), (5, 2, 9), (1,) * 5)]

# Values of the wrong kind. None is left out where an argument's default is None.
KINDS: dict[str, list[Any]] = {
    "size": [*NO_INTEGER, 0, -1, -HUGE, -PRINTED],
    "allocated": [*NO_INTEGER, 0, -1, -HUGE, 10**15, HUGE, PRINTED],
    "count": [*NO_INTEGER, -1, -HUGE, -PRINTED],
    "integer": NO_INTEGER,
    "share": [*NO_NUMBER, -0.1, 1, 2, math.nan, math.inf, HUGE, -HUGE, PRINTED],
    "closed share": [*NO_NUMBER, -0.1, 1.1, math.nan, math.inf, HUGE, -HUGE],
    "open share": [*NO_NUMBER, 0, 1, math.nan, math.inf, HUGE],
    "positive": [*NO_NUMBER, 0, -1, math.nan, math.inf, HUGE, -HUGE, PRINTED],
    "norm": [*NO_NUMBER, 0, -1, math.nan, HUGE, -HUGE],
    "rate": [*NO_NUMBER, -1, math.nan, math.inf, HUGE, -HUGE],
    "loss": [*NO_NUMBER, math.nan, HUGE],
    "pair": [*OTHER, 0.5, True, "ab", (0.9,), (0.9, 0.9, 0.9), (1, 0.5), (0.5, math.nan), (0.9, HUGE), (None, None)],
    "flag": [*OTHER, 0, 1, math.nan, HUGE],
    "dtype": [*OTHER, 0, 1.5, True, HUGE, "int8", "float16", "bfloat16", "f4,f4", "(((", ">f4", object, [("a", "f4")]],
    "device": [*OTHER, 0, 1.5, True, HUGE, "gpu", "CPU", "cuda", "cuda:0"],
    "seed": [*OTHER, 1.5, math.nan, True, -1, -HUGE, "1", np.random.RandomState(0)],
    "choice": [*OTHER, 0, 1.5, True, HUGE, ("x",), np.str_("x")],
    "string": NO_STRING,
    "strings": [None, "", "x", b"x", ODD, Odd, 0, 1.5, True, HUGE, [0], ("x", None), np.array("x")],
    "path": [None, "", b"x", [], {}, ODD, Odd, 0, 1.5, True, HUGE, "a\0b", Path("a\0b")],
    "x": [*NO_ARRAY, *BAD_DTYPES, *BAD_SHAPES],
    "floats": [*NO_ARRAY, *[value for value in BAD_DTYPES if value.dtype != "f8"], np.ones((0, 3), "f4")],
    "ids": [*NO_ARRAY, np.ones(2), np.ones(2, "?"), np.array([-1]), np.array([9]), np.zeros(0, int), np.ones(2, "c8")],
    "lengths": [
        *("", "x", b"x", [], {}, (), ODD, Odd, 0, True, HUGE, [1], [1, 2, 3], [-1, 1], [1, 6], [None, 1]),
        *([1.0, 2.0], [True, True], [[1], [1, 2]], [1, HUGE], np.ones(2), np.ones((2, 1), int), np.ones(2, "O")),
    ],
    "resets": [
        *("", "x", b"x", [], {}, (), ODD, Odd, 0, True, HUGE, [[True]]),
        *(np.ones((5, 2), dtype) for dtype in ("f4", "i4", "u1", "O")),
        *(np.ones(shape, "?") for shape in ((), (5,), (2, 5), (5, 2, 1), (5, 0))),
    ],
    "no inputs": ["", "x", b"x", [], {}, (), ODD, Odd, 0, 1.5, True, HUGE, {"keep": np.ones((5, 2), "f4")}],
    "no noise": ["", "x", b"x", [], (), ODD, Odd, 0, 1.5, True, HUGE, {"mask": 0.5}, {1: 0.5}],
    "state": [
        *("", "x", b"x", [], {}, (), {"h": 1}, ODD, Odd, 0, 1.5, True, HUGE, [1, 2], (None, 5), iter(()), np.ones(2)),
        *((np.ones((1, 2, 4), dtype),) * 2 for dtype in ("f8", "i4", "c8", "O")),
        *((np.ones(shape, "f4"),) * 2 for shape in ((), (1, 2, 5), (2, 4), (1, 1, 4), (1, 2, 0))),
        *((np.ones((1, 2, 4), "f4"),) * count for count in (1, 3)),
    ],
    "arrays": [
        *(None, "", "x", b"x", [], (), ODD, Odd, 0, 1.5, True, HUGE, {1: 2}, {1: 2, "w": 3}, {"w": None}, {"w": [1.0]}),
        *({"w": np.ones(3, dtype)} for dtype in ("i4", "c8", "O", "f2")),
    ],
    "state_dict": [
        *(None, "", "x", b"x", [], (), ODD, Odd, 0, 1.5, True, HUGE, {}, {1: 2}, {1: 2, "a": 3}, {"a": 3}),
    ],
    "layer": [*OTHER, 0, True, HUGE, gpulstm.LSTM, torch.nn.LSTM(3, 4)],
    "layers": [[part] for part in (*OTHER, 0, True, gpulstm.LSTM, torch.nn.LSTM(3, 4))] + [[]],
    "object": [*OTHER, 0, 1.5, True, HUGE],
    "JSON": ["", "x", b"x", [], (), ODD, Odd, 0, 1.5, True, HUGE, {1: 2}],
    "documents": [None, "", "x", b"x", ODD, 0, 1.5, HUGE, ["x" * 100], [0], [None], "x" * 100, [b"x" * 100, "x"]],
    "bytes": [None, "", "x", [], {}, (), ODD, 0, 1.5, True, HUGE, np.ones(2)],
    "tensor": [
        *(None, "", "x", [], {}, (), ODD, Odd, 0, 1.5, True, HUGE, np.ones((5, 2, 3), "f4")),
        *(torch.ones(5, 2, 3, dtype=dtype) for dtype in (torch.float64, torch.int64, torch.bool, torch.complex64)),
        *(torch.ones(shape) for shape in ((), (7,), (5, 2, 9), (0, 2, 3)[:1], (1,) * 5)),
        torch.ones(5, 2, 3).to_sparse(),
        torch.ones(5, 2, 3, device="meta"),
    ],
    "torch dtype": [
        *("", "x", [], {}, ODD, 0, True, HUGE, "float32", np.float32, np.ones(2)),
        *(torch.int64, torch.bool, torch.complex64),
    ],
}

# The kind of an argument, by its name.
ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(("input_size", "hidden_size", "num_layers", "in_features", "out_features"), "allocated"),
    **dict.fromkeys(("num_embeddings", "embedding_dim", "batch_size"), "allocated"),
    **dict.fromkeys(("batch", "seq_len", "keep", "patience", "steps", "count"), "size"),
    **dict.fromkeys(("save_every", "validate_every", "proj_size"), "count"),
    "opset": "allocated",
    "ignore_index": "integer",
    **dict.fromkeys(("dropout", "weight_dropout", "p", "momentum", "alpha", "warmup"), "share"),
    "final": "closed share",
    "factor": "open share",
    **dict.fromkeys(("epochs", "minutes"), "positive"),
    **dict.fromkeys(("clip", "max_norm"), "norm"),
    **dict.fromkeys(("lr", "eps", "weight_decay", "threshold", "minimum", "progress"), "rate"),
    "validation_loss": "loss",
    "betas": "pair",
    **dict.fromkeys(("bias", "batch_first", "bidirectional", "nesterov", "force", "shown", "graph", "allowed"), "flag"),
    "dtype": "dtype",
    "device": "device",
    **dict.fromkeys(("seed", "rng"), "seed"),
    **dict.fromkeys(("init", "cell", "kind", "backend", "layout", "nonlinearity"), "choice"),
    "prefix": "string",
    **dict.fromkeys(("metrics", "nodes"), "strings"),
    **dict.fromkeys(("path", "source", "target", "out"), "path"),
    **dict.fromkeys(("x", "dy", "logits"), "x"),
    "ids": "ids",
    "targets": "ids",
    **dict.fromkeys(("prediction", "target"), "floats"),
    "lengths": "lengths",
    "resets": "resets",
    "inputs": "no inputs",
    "noise": "no noise",
    "heads": "size",
    **dict.fromkeys(("state", "dstate"), "state"),
    **dict.fromkeys(("params", "grads"), "arrays"),
    "state_dict": "state_dict",
    **dict.fromkeys(("layer", "model"), "layer"),
    "layers": "layers",
    **dict.fromkeys(("task", "optimizer", "saved", "node"), "object"),
    "settings": "JSON",
    "documents": "documents",
    "separator": "bytes",
}
