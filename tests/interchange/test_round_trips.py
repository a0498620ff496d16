"""Whatever can be saved can be loaded: every layer and model in every format gives the same bits, or says why not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import safetensors.numpy

import gpulstm
from gpulstm import io, nn, parsing
from gpulstm.train import checkpoint

MINIMAL = gpulstm.cells.Cell("minimal", gates=("f", "g"), states=("a", "b"), saved=2, maths="minimal_cell")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack": {"num_layers": 2, "dropout": 0.25, "batch_first": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "float64": {"dtype": "float64"},
}


def _recurrent(**options: Any) -> dict[str, Callable[[], Any]]:
    gpulstm.cells.register(MINIMAL)
    made: dict[str, Callable[[], Any]] = {
        "LSTM": lambda: gpulstm.LSTM(3, 4, seed=0, **options),
        "RNN": lambda: gpulstm.RNN(3, 4, seed=0, **options),
        "Recurrent lstm": lambda: nn.Recurrent("lstm", 3, 4, seed=0, **options),
        "Recurrent rnn": lambda: nn.Recurrent("rnn", 3, 4, seed=0, **options),
        "RNN of rectifiers": lambda: nn.RNN(3, 4, nonlinearity="relu", seed=0, **options),
        "Recurrent of rectifiers": lambda: nn.Recurrent("rnn_relu", 3, 4, seed=0, **options),
        "Recurrent coupled": lambda: nn.Recurrent("cifg", 3, 4, seed=0, **options),
        "Recurrent minimal": lambda: nn.Recurrent("minimal", 3, 4, seed=0, **options),
        "Reversed": lambda: nn.Reversed(gpulstm.LSTM(3, 4, seed=0, **options)),
    }
    if "dtype" not in options:
        made["bf16"] = lambda: gpulstm.quantize(gpulstm.LSTM(3, 4, seed=0, **options), "bf16")
        made["int8"] = lambda: gpulstm.quantize(gpulstm.LSTM(3, 4, seed=0, **options), "int8")
        made["minimal int8"] = lambda: gpulstm.quantize(nn.Recurrent("minimal", 3, 4, seed=0, **options), "int8")
    return made


def _without_projection(**options: Any) -> dict[str, Callable[[], Any]]:
    """Cells that have none: of those that read h, and of those without a recurrent product."""
    made: dict[str, Callable[[], Any]] = {
        "GRU": lambda: gpulstm.GRU(3, 4, seed=0, **options),
        "Recurrent gru": lambda: nn.Recurrent("gru", 3, 4, seed=0, **options),
        "Reversed GRU": lambda: nn.Reversed(gpulstm.GRU(3, 4, seed=0, **options)),
        "Recurrent indrnn": lambda: nn.Recurrent("indrnn", 3, 4, seed=0, **options),
        "Recurrent mingru": lambda: nn.Recurrent("mingru", 3, 4, seed=0, **options),
        "Recurrent peephole": lambda: nn.Recurrent("peephole", 3, 4, seed=0, **options),
        "slstm with heads": lambda: nn.Recurrent("slstm", 3, 4, heads=2, seed=0, **options),
        "LSTM with heads": lambda: gpulstm.LSTM(3, 4, heads=4, seed=0, **options),
        "GRU with heads": lambda: gpulstm.GRU(3, 4, heads=2, seed=0, **options),
    }
    if "dtype" not in options:
        for kind in ("bf16", "int8"):
            for name in ("GRU", "Recurrent indrnn", "Recurrent peephole", "slstm with heads"):
                made[f"{name} {kind}"] = lambda kind=kind, of=made[name]: gpulstm.quantize(of(), kind)
    return made


RECURRENT = {f"{kind}, {name}": make for name, of in OPTIONS.items() for kind, make in _recurrent(**of).items()} | {
    f"{kind}, {name}": make
    for name, of in OPTIONS.items()
    if "proj_size" not in of
    for kind, make in _without_projection(**of).items()
}
OTHERS: dict[str, Callable[[], Any]] = {
    "Embedding": lambda: nn.Embedding(5, 3, seed=0),
    "Dropout": lambda: nn.Dropout(0.3),
    "MeanOverTime": lambda: nn.MeanOverTime(),
    "Linear": lambda: nn.Linear(3, 4, seed=0),
    "Linear, no bias": lambda: nn.Linear(3, 4, bias=False, dtype="float64", seed=0),
    "EveryStepHead": lambda: nn.EveryStepHead(3, 4, seed=0),
    "LastStepHead": lambda: nn.LastStepHead(3, 4, batch_first=True, seed=0),
}
MODELS: dict[str, Callable[[], Any]] = {
    f"Sequential of {name}": (lambda make=make: nn.Sequential(nn.Linear(3, 3, seed=1), nn.Dropout(0.1), make()))
    for name, make in (RECURRENT | OTHERS).items()
    if name != "Embedding" and "64" not in name and name != "Linear, no bias"
}
MODELS["Sequential of Sequential"] = lambda: nn.Sequential(
    nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Sequential(gpulstm.LSTM(3, 4, seed=0)), nn.Linear(4, 2, seed=0))
)
MODELS["Sequential of twelve"] = lambda: nn.Sequential(*(nn.Linear(3, 3, seed=i) for i in range(12)))
MODELS["Sequential of Dropout"] = lambda: nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2))


def _assert_same(again: Any, layer: Any) -> None:
    assert type(again) is type(layer)
    for name in ("config", "kind", "p", "batch_first", "takes_lengths"):
        assert getattr(again, name, None) == getattr(layer, name, None), name
    assert list(again.params) == list(layer.params)
    for name, value in layer.params.items():
        assert again.params[name].dtype == value.dtype, name
        np.testing.assert_array_equal(again.params[name], value, strict=True)
    for inner, expected in zip(getattr(again, "layers", ()), getattr(layer, "layers", ()), strict=True):
        _assert_same(inner, expected)


def _output(layer: Any) -> Any:
    dtype = next((value.dtype for value in layer.params.values() if value.dtype.kind == "f"), np.float32)
    x = np.random.default_rng(3).standard_normal((2, 2, 3)).astype(dtype)
    with gpulstm.use_backend("reference"):
        y = layer(np.arange(4).reshape(2, 2) if isinstance(layer, nn.Embedding) else x)
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("name", [*RECURRENT, *OTHERS, *MODELS])
def test_safetensors(name: str, tmp_path: Path) -> None:
    layer = (RECURRENT | OTHERS | MODELS)[name]()
    io.save_safetensors(layer, tmp_path / "m.safetensors")
    again = io.load_safetensors(tmp_path / "m.safetensors")
    _assert_same(again, layer)
    np.testing.assert_array_equal(_output(again), _output(layer), strict=True)


def _assert_part(part: Any, layer: Any, number: int, one_bias: bool, mute: bool = False) -> None:
    """``part`` holds the parameters of layer ``number`` of the stack ``layer``; of a ``mute`` file one of tanh."""
    assert isinstance(part, nn.Reversed) == isinstance(layer, nn.Reversed)
    part, layer = (value.layer if isinstance(value, nn.Reversed) else value for value in (part, layer))
    cell = gpulstm.cells.rnn if mute and layer.config.cell.name == "rnn_relu" else layer.config.cell
    assert (part.config.cell, part.config.bidirectional) == (cell, layer.config.bidirectional)
    expected = {}
    for end in part.config.suffixes()[0]:
        own = {kind: f"{kind}{end}".replace("_l0", f"_l{number}") for kind in ("weight_ih", "weight_hh")}
        expected |= {kind + end: layer.params[name] for kind, name in own.items()}
        if layer.config.bias:
            biases = [layer.params[own["weight_ih"].replace("weight_ih", kind)] for kind in ("bias_ih", "bias_hh")]
            summed = one_bias and not isinstance(layer, gpulstm.GRU) and layer.config.cell.name != "gru"
            both = (biases[0] + biases[1], np.zeros_like(biases[0])) if summed else biases
            expected |= {f"bias_ih{end}": both[0], f"bias_hh{end}": both[1]}
    assert part.params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(part.params[name], value, strict=True)


def _refused(name: str, *parts: str) -> bool:
    own = ("minimal", "coupled", "indrnn", "mingru", "peephole", "heads", "bf16", "int8")
    return any(part in name for part in (*parts, *own))


@pytest.mark.parametrize("name", RECURRENT)
def test_onnx(name: str, tmp_path: Path) -> None:
    """It has one layer a node, so that a stack comes back as several, and the product with a projection as R."""
    layer, path = RECURRENT[name](), tmp_path / "m.onnx"
    if _refused(name, "Reversed, both", "Reversed GRU, both", "Reversed, projected"):
        with pytest.raises((ValueError, TypeError), match=r"ONNX|Reversed of a bidirectional"):
            io.export_onnx(layer, path)
        return
    io.export_onnx(layer, path)
    parts = list(io.onnx_layers(path).values())
    for number, part in enumerate(parts if "projected" not in name else ()):
        _assert_part(part, layer, number, one_bias=False)
    assert len(parts) == getattr(layer, "layer", layer).config.num_layers


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras(suffix: str, tmp_path: Path) -> None:
    """It has one layer a Keras layer, batch first, and one bias."""
    path = tmp_path / f"m{suffix}"
    saved = {}
    for name, make in RECURRENT.items():
        if _refused(name, "Reversed", "projected"):
            with pytest.raises(ValueError, match="Keras"):
                io.save_keras(make(), path)
        elif suffix != ".keras" or name in ("LSTM, both", "RNN, plain", "GRU, both", "RNN of rectifiers, both"):
            saved[name] = make()
    for group in [saved] if suffix != ".keras" else [{name: layer} for name, layer in saved.items()]:
        io.save_keras(group, path)
        found = io.load_keras(path)
        assert len(found) == sum(layer.config.num_layers for layer in group.values())
        for name, layer in group.items():
            for number in range(layer.config.num_layers):
                part = found[f"{name}_{number}" if number else name]
                _assert_part(part, layer, number, one_bias=True, mute=suffix == ".weights.h5")


def test_names_in_keras(tmp_path: Path) -> None:
    """A name that a stack's second layer takes is no other layer's; no layer is lost."""
    layers = {"a": gpulstm.LSTM(3, 4, 2, seed=0), "a_1": gpulstm.LSTM(5, 6, seed=1), "b/c": gpulstm.LSTM(7, 8, seed=2)}
    io.save_keras(layers, tmp_path / "m.weights.h5")
    found = io.load_keras(tmp_path / "m.weights.h5")
    assert {name: layer.config.input_size for name, layer in found.items()} == {"a": 3, "a_1": 4, "a_1_1": 5, "b/c": 7}
    with pytest.raises(io.WeightsError, match="layers: expected names without NUL"):
        io.save_keras({"a\0": layers["a"]}, tmp_path / "m.weights.h5")


def test_onnx_of_two_dtypes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, seed=0), gpulstm.LSTM(3, 2, dtype="float64", seed=0))
    with pytest.raises(ValueError, match=r"dtype: expected one for all parameters, .* got \['float32', 'float64'\]"):
        io.export_onnx(model, tmp_path / "m.onnx")
    io.export_onnx(model, tmp_path / "m.onnx", dtype="float64")
    assert io.onnx_layers(tmp_path / "m.onnx").keys() == {"1.lstm_l0"}


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_that_lies_otherwise(layout: str, tmp_path: Path) -> None:
    """What is saved is an array's values, not its memory from the first element on."""
    layer, expected = gpulstm.LSTM(3, 4, batch_first=True, seed=0), gpulstm.LSTM(3, 4, batch_first=True, seed=0)
    layer.params = {name: LAYOUTS[layout](value) for name, value in layer.params.items()}
    io.save_safetensors(layer, tmp_path / "m.safetensors")
    _assert_same(io.load_safetensors(tmp_path / "m.safetensors"), expected)
    for name, value in io.save_torch(layer).items():
        np.testing.assert_array_equal(value.numpy(), expected.params[name], strict=True)
    for path, save, load in (("m.onnx", io.export_onnx, io.onnx_layers), ("m.keras", io.save_keras, io.load_keras)):
        save(layer, tmp_path / path)
        (again,) = load(tmp_path / path).values()
        np.testing.assert_array_equal(again.params["weight_ih_l0"], expected.params["weight_ih_l0"], strict=True)
    found = checkpoint.load(checkpoint.save(tmp_path / "run", 1, layer.params, layer.params, {}))
    for name, value in expected.params.items():
        np.testing.assert_array_equal(found.model[name], value)
        np.testing.assert_array_equal(found.training[name], value)


def test_files_that_name_no_declaration(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    layer = gpulstm.LSTM(3, 4, seed=0)
    text = '{"layer": "LSTM", "cell": "lstm", "batch_first": false, "dropout": 0.0}'
    safetensors.numpy.save_file(layer.params, tmp_path / "m.safetensors", {"gpulstm": text})
    _assert_same(io.load_safetensors(tmp_path / "m.safetensors"), layer)


def _faded(x: Any, s: Any, p: Any) -> Any:
    c = p.keep * s.c + gpulstm.cells.sigmoid(x.i) * x.g
    return gpulstm.cells.tanh(c), {"c": c}


def test_a_file_names_a_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was saved is loaded where a cell of the name and declaration is known, and nowhere else."""
    path = tmp_path / "m.safetensors"
    monkeypatch.setattr(gpulstm.cells, "_cells", dict(gpulstm.cells._cells))
    cell = gpulstm.cell(gates="i g", states="c", params="keep")(_faded)
    for layer in (nn.Recurrent(cell, 3, 4, seed=0), gpulstm.quantize(nn.Recurrent(cell, 3, 4, seed=0), "int8")):
        io.save_safetensors(layer, path)
        words = json.loads(safetensors.safe_open(path, "np").metadata()["gpulstm"])
        assert words["cell"] == "_faded"
        assert words["declaration"] == {"gates": "i g", "states": "c", "params": "keep"}
        _assert_same(io.load_safetensors(path), layer)
        del gpulstm.cells._cells["_faded"]
        with pytest.raises(io.WeightsError, match=r"m.safetensors: metadata: cell: unknown cell '_faded'.*gates='i g'"):
            io.load_safetensors(path)
        gpulstm.cell(gates="g i", states="c", params="keep")(_faded)
        with pytest.raises(
            io.WeightsError, match=r"here, gates='g i', states='c', .* got gates='i g', states='c', par"
        ):
            io.load_safetensors(path)
        gpulstm.cells._cells["_faded"] = cell


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_ih_l0": None}, r"scale_ih_l0: expected float32 of shape \(16,\), got none"),
        ({"scale_ih_l0": np.ones(15, np.float32)}, r"scale_ih_l0: expected float32 of shape \(16,\), got float32 of"),
        ({"scale_hh_l0": np.full(16, np.inf, np.float32)}, "scale_hh_l0: holds NaN or infinite"),
        ({"scale_hh_l0": np.full(16, 3e38, np.float32)}, "weight_hh_l0: holds NaN or infinite"),
        ({"scale_hr_l0": np.ones(16, np.float32)}, r"tensors: unexpected \['scale_hr_l0'\]"),
        ({"weight_ih_l0": np.zeros((16, 3), np.float32)}, "weight_ih_l0: expected int8 of shape .*, got float32"),
        ({"weight_ih_l0": np.full((16, 3), -128, np.int8)}, "weight_ih_l0: expected whole numbers in ±127, got -128"),
        ({"bias_ih_l0": np.zeros(16, np.float64)}, "bias_ih_l0: expected float32 of shape .*, got float64"),
        ({"weight_hh_l0": np.zeros((16, 4), np.uint16)}, "weight_hh_l0: expected int8 of shape .*, got uint16"),
    ],
)
def test_quantized_files_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    layer = gpulstm.quantize(gpulstm.LSTM(3, 4, seed=0), "int8")
    words = {"layer": "Quantized", "cell": "lstm", "kind": "int8"}
    tensors = {name: value for name, value in (layer.params | change).items() if value is not None}
    for kind in ("int8", "float8"):
        text = json.dumps(words | {"kind": kind})
        safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"gpulstm": text})
        expected = message if kind == "int8" else "kind: expected one of bf16, int8, got 'float8'"
        with pytest.raises(io.WeightsError, match=rf"m.safetensors: .*{expected}"):
            io.load_safetensors(tmp_path / "m.safetensors")


def test_scales_that_no_weights_are_for(tmp_path: Path) -> None:
    for cell, kind, name in (("indrnn", "int8", "scale_hh_l0"), ("lstm", "bf16", "scale_ih_l0")):
        layer = gpulstm.quantize(nn.Recurrent(cell, 3, 4, seed=0), kind)
        words = {"layer": "Quantized", "cell": cell, "kind": kind}
        tensors = layer.params | {name: np.ones(16, np.float32)}
        safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"gpulstm": json.dumps(words)})
        with pytest.raises(io.WeightsError, match=rf"m.safetensors: tensors: unexpected \['{name}'\]"):
            io.load_safetensors(tmp_path / "m.safetensors")


def test_a_model_of_many_layers_loads_in_linear_time(tmp_path: Path) -> None:
    """In quadratic time these take minutes."""
    count = 16_000
    words = {"layer": "Sequential", "layers": [{"layer": "Embedding"}] * count}
    tensors = {f"{i}.weight": np.zeros((1, 1), np.float32) for i in range(count)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"gpulstm": json.dumps(words)})
    node = onnx_models.model("LSTM", {"X": np.zeros((1, 1, 1), np.float32)}, onnx_models.weights("LSTM", 1, 1))
    for _ in range(count):
        node.graph.node.add().CopyFrom(node.graph.node[0])
    begun = time.monotonic()
    assert len(io.load_safetensors(tmp_path / "m.safetensors").layers) == count
    with pytest.raises(io.WeightsError, match="exactly one LSTM, GRU or RNN node"):
        io.load_onnx(node)
    assert time.monotonic() - begun < 20


def _nested(depth: int) -> str:
    return '{"layer": "Reversed", "of": ' * depth + "null" + "}" * depth


@pytest.mark.parametrize(
    "text",
    ["[" * 3000 + "]" * 3000, _nested(90), _nested(300), "1" * 5000, "NaN", '{"p": 1e999}', '{"a": 1, "a": 2}', ""],
)
def test_words_that_are_out_of_bounds(text: str, tmp_path: Path) -> None:
    safetensors.numpy.save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "m.safetensors", {"gpulstm": text})
    with pytest.raises(io.WeightsError, match=r"m.safetensors: metadata: expected"):
        io.load_safetensors(tmp_path / "m.safetensors")


def test_models_inside_each_other(tmp_path: Path) -> None:
    """Each depth that can be saved can be loaded."""
    model: Any = nn.Linear(1, 1, seed=0)
    for _ in range(parsing.DEPTH // 2):
        io.save_safetensors(model, tmp_path / "m.safetensors")
        _assert_same(io.load_safetensors(tmp_path / "m.safetensors"), model)
        model = nn.Sequential(model)
    for _ in range(200):
        with pytest.raises(ValueError, match=r"nests? at most"):
            io.save_safetensors(model, tmp_path / "m.safetensors")
        model = nn.Sequential(model)
