"""Keras layers side by side with what gpulstm reads of their files, and with what it writes for them."""

from __future__ import annotations

import io as streams
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import io, nn

L = keras.layers
# what Keras itself, and the way it asks torch and NumPy, warn about
pytestmark = [
    pytest.mark.usefixtures("in_numpy"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file.*:UserWarning"),
]


def _filled(model: Any, seed: int = 0) -> Any:
    """``model`` with random weights: a bias of zeros would hide an order that is wrong."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.dtype.startswith("float"):
            weight.assign(rng.uniform(-0.6, 0.6, weight.shape))
    return model


def _layer(kind: str, units: int, **options: Any) -> Any:
    if kind.startswith("Bidirectional"):
        return L.Bidirectional(_layer(kind.partition(" ")[2], units, **options))
    return getattr(L, kind)(units, return_sequences=True, **options)


KINDS = ("LSTM", "GRU", "SimpleRNN", "Bidirectional LSTM", "Bidirectional GRU", "Bidirectional SimpleRNN")
SAVES: dict[str, Callable[[Any, Path], None]] = {
    "m.keras": lambda model, path: model.save(path),
    "m.weights.h5": lambda model, path: model.save_weights(path),
    "m.h5": lambda model, path: model.save(path),
}


@pytest.mark.parametrize("file", SAVES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer(kind: str, bias: bool, file: str, tmp_path: Path) -> None:
    model = _filled(keras.Sequential([L.Input((None, 5)), _layer(kind, 7, use_bias=bias)]))
    SAVES[file](model, tmp_path / file)
    ((name, layer),) = io.load_keras(tmp_path / file).items()
    assert name == model.layers[0].name
    assert type(layer) is getattr(gpulstm, kind.removeprefix("Bidirectional ").removeprefix("Simple"))
    assert (layer.config.bias, layer.config.bidirectional) == (bias, "Bidirectional" in kind)
    x = np.random.default_rng(1).standard_normal((3, 6, 5)).astype(np.float32)
    assert_close(layer(x)[0], model.predict(x, verbose=0), "keras", "float32")


@pytest.mark.parametrize("file", ["m.keras", "m.h5"])
@pytest.mark.parametrize("kind", ["SimpleRNN", "Bidirectional SimpleRNN"])
def test_rectifiers(kind: str, file: str, tmp_path: Path) -> None:
    model = _filled(keras.Sequential([L.Input((None, 5)), _layer(kind, 7, activation="relu")]))
    SAVES[file](model, tmp_path / file)
    (layer,) = io.load_keras(tmp_path / file).values()
    assert isinstance(layer, gpulstm.RNN)
    assert layer.nonlinearity == "relu"
    x = np.random.default_rng(1).standard_normal((3, 6, 5)).astype(np.float32)
    assert_close(layer(x)[0], model.predict(x, verbose=0), "keras", "float32")


def _stack() -> Any:
    """Layers of each kind and others between, two of one class, one inside an inner model."""
    x = keras.Input((None, 4), name="x")
    y = L.LSTM(6, return_sequences=True, name="zeroth")(x)
    y = L.Dense(5)(y)
    y = L.LSTM(3, return_sequences=True, dropout=0.2, recurrent_dropout=0.1, unroll=False, name="after")(y)
    inner = keras.Sequential([L.Bidirectional(L.LSTM(2, return_sequences=True), name="both")], name="inner")
    y = L.SimpleRNN(4, return_sequences=True, name="plain")(inner(y))
    return _filled(keras.Model(x, y))


@pytest.mark.parametrize("file", SAVES)
def test_layers_of_a_model(file: str, tmp_path: Path) -> None:
    model = _stack()
    SAVES[file](model, tmp_path / file)
    if file == "m.h5":  # of inner models the old format does not say which layer has which weights
        layers = io.load_keras(tmp_path / file, layers=["zeroth", "after", "plain"])
        layers |= io.load_keras(_saved(model, tmp_path / "again.keras"), layers=["both"])
    else:
        layers = io.load_keras(tmp_path / file)
    assert sorted(layers) == ["after", "both", "plain", "zeroth"]
    if file == "m.keras":
        assert list(layers) == ["zeroth", "after", "both", "plain"]
    dense = model.layers[2]
    kernel, bias = (np.asarray(weight.value.detach()) for weight in dense.weights)
    x = np.random.default_rng(2).standard_normal((2, 5, 4)).astype(np.float32)
    y, _ = layers["zeroth"](x)
    for name in ("after", "both", "plain"):
        y, _ = layers[name]((y @ kernel + bias) if name == "after" else y)
    assert_close(y, model.predict(x, verbose=0), "keras", "float32")


def _saved(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def test_names_without_attributes(tmp_path: Path) -> None:
    """Earlier versions of Keras 3 wrote no names into the weights: then the configuration tells."""
    path = _saved(_stack(), tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = streams.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "a") as file:
        file.visititems(lambda _, item: item.attrs.clear())
    parts["model.weights.h5"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert list(io.load_keras(path)) == ["zeroth", "after", "both", "plain"]


# --- CuDNN layouts: files of Keras 2, made here as its saving code made them ----------------------------------------


def _cudnn_from_keras(weights: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Keras 2's own conversion of an LSTM's weights for CuDNNLSTM (``_convert_rnn_weights``), with an uneven bias."""
    kernel, recurrent, bias = weights

    def transposed(matrix: np.ndarray, order: Any) -> np.ndarray:
        return np.hstack([part.T.reshape(part.shape, order=order) for part in np.hsplit(matrix, 4)])

    share = rng.uniform(-1, 1, bias.shape).astype(bias.dtype)
    return [
        transposed(kernel, "C"),
        np.hstack([part.T for part in np.hsplit(recurrent, 4)]),
        np.r_[share, bias - share],
    ]


def _cudnn_file(path: Path, units: int = 7, inputs: int = 5, *, bias: bool = True) -> Any:
    """An HDF5 file of Keras 2 with a CuDNNLSTM; gives the Keras LSTM with the same weights."""
    model = _filled(keras.Sequential([L.Input((None, inputs)), L.LSTM(units, return_sequences=True)]))
    weights = [np.asarray(weight.value.detach()) for weight in model.weights]
    kernels = _cudnn_from_keras(weights, np.random.default_rng(3))
    names = [f"cu_dnnlstm/{name}:0" for name in ("kernel", "recurrent_kernel", "bias")][: 3 if bias else 2]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"cu_dnnlstm"]
        group = file.create_group("cu_dnnlstm")
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, value in zip(names, kernels, strict=False):
            group[name] = value
    return model


def test_cudnn_layout_of_keras_2(tmp_path: Path) -> None:
    model = _cudnn_file(tmp_path / "old.h5")
    (layer,) = io.load_keras(tmp_path / "old.h5").values()
    x = np.random.default_rng(1).standard_normal((3, 6, 5)).astype(np.float32)
    assert_close(layer(x)[0], model.predict(x, verbose=0), "keras", "float32")
    assert np.any(layer.params["bias_hh_l0"])
    (wrong,) = io.load_keras(tmp_path / "old.h5", layout="keras").values()
    assert not np.allclose(wrong(x)[0], model.predict(x, verbose=0), atol=1e-2)


def test_cudnn_layout_without_bias_needs_the_hint(tmp_path: Path) -> None:
    model = _cudnn_file(tmp_path / "old.h5", bias=False)
    model.weights[2].assign(np.zeros(28))
    (layer,) = io.load_keras(tmp_path / "old.h5", layout="cudnn").values()
    x = np.random.default_rng(1).standard_normal((3, 6, 5)).astype(np.float32)
    assert_close(layer(x)[0], model.predict(x, verbose=0), "keras", "float32")


def test_wrong_layout_hint(tmp_path: Path) -> None:
    path = _saved(_stack(), tmp_path / "m.keras")
    with pytest.raises(io.WeightsError, match=r"layer 'zeroth': layout: 'cudnn' is an LSTM's, with two biases \(48,\)"):
        io.load_keras(path, layout="cudnn")
    with pytest.raises(ValueError, match="layout: expected one of keras, cudnn, got 'torch'"):
        io.load_keras(path, layout="torch")


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: L.GRU(3, reset_after=False), "layer 'given': reset_after = False is not supported; expected True"),
        (lambda: L.GRU(3, reset_after=False, use_bias=False), "reset_after = False is not supported; expected True"),
        (lambda: L.RNN(L.GRUCell(3, reset_after=False)), "reset_after = False is not supported; expected True"),
        (lambda: L.GRU(3, activation="relu"), "activation = 'relu' is not supported; expected 'tanh'"),
        (lambda: L.LSTM(3, activation="relu"), "activation = 'relu' is not supported; expected 'tanh'"),
        (lambda: L.LSTM(3, recurrent_activation="hard_sigmoid"), "recurrent_activation = 'hard_sigmoid' is not"),
        (lambda: L.SimpleRNN(3, activation="linear"), "activation = 'linear' is not .*; expected 'tanh' or 'relu'"),
        (lambda: L.LSTM(3, go_backwards=True), "go_backwards = True is not supported here; expected False"),
        (
            lambda: L.Bidirectional(L.LSTM(3), merge_mode="sum"),
            "merge_mode = 'sum' is not supported; expected 'concat'",
        ),
        (lambda: L.Bidirectional(L.GRU(3, reset_after=False)), "reset_after = False is not supported"),
        (
            lambda: L.Bidirectional(
                L.SimpleRNN(3), backward_layer=L.SimpleRNN(3, activation="relu", go_backwards=True)
            ),
            "expected one cell in both directions, got rnn and rnn_relu",
        ),
        (
            lambda: L.RNN([L.LSTMCell(3), L.LSTMCell(3)]),
            "layer 'given': StackedRNNCells is not supported; expected LSTM, GRU or SimpleRNN",
        ),
    ],
)
def test_layers_that_are_not_supported(layer: Callable[[], Any], message: str, tmp_path: Path) -> None:
    built = layer()
    built.name = "given"
    model = keras.Sequential([L.Input((None, 4)), L.LSTM(4, return_sequences=True, name="good"), built])
    path = _saved(model, tmp_path / "m.keras")
    with pytest.raises(io.WeightsError, match=message):
        io.load_keras(path)
    assert list(io.load_keras(path, layers=["good"])) == ["good"]


def test_a_class_of_ones_own(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class LSTM(L.LSTM):
        pass

    path = _saved(keras.Sequential([L.Input((None, 4)), LSTM(3)]), tmp_path / "m.keras")
    with pytest.raises(io.WeightsError, match="mine>LSTM is not supported"):
        io.load_keras(path)


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "SimpleRNNCell"])
def test_rnn_of_one_cell(cell: str, tmp_path: Path) -> None:
    model = _filled(keras.Sequential([L.Input((None, 4)), L.RNN(getattr(L, cell)(3), return_sequences=True)]))
    (layer,) = io.load_keras(_saved(model, tmp_path / "m.keras")).values()
    x = np.random.default_rng(1).standard_normal((3, 6, 4)).astype(np.float32)
    assert_close(layer(x)[0], model.predict(x, verbose=0), "keras", "float32")


def test_no_recurrent_layer_and_unknown_names(tmp_path: Path) -> None:
    path = _saved(keras.Sequential([L.Input((4,)), L.Dense(3)]), tmp_path / "m.keras")
    with pytest.raises(io.WeightsError, match="expected a model with LSTM, GRU or SimpleRNN layers, found none"):
        io.load_keras(path)
    with pytest.raises(io.WeightsError, match=r"expected some of \['zeroth', .*\], got \['lstm'\]"):
        io.load_keras(_saved(_stack(), path), layers=["lstm"])


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    model = _filled(keras.Sequential([L.Input((None, 4)), L.GRU(3, reset_after=False)]))
    model.save_weights(path)
    with pytest.raises(io.WeightsError, match=r"bias: expected shape \(2, 9\), .* got \(9,\); False is not supported"):
        io.load_keras(path)
    with h5py.File(path, "a") as file:
        for name, rows in (("0", 4), ("1", 3)):
            del file[f"layers/gru/cell/vars/{name}"]
            file[f"layers/gru/cell/vars/{name}"] = np.zeros((rows, 6), np.float32)
    with pytest.raises(
        io.WeightsError, match=r"\(H, 4H\) for an LSTM, \(H, 3H\) for a GRU or \(H, H\) .* got \(3, 6\)"
    ):
        io.load_keras(path)


def test_a_configuration_of_other_weights(tmp_path: Path) -> None:
    """A GRU's words beside an LSTM's weights, and the words of a GRU before there was ``reset_after``."""
    path = _saved(_filled(keras.Sequential([L.Input((None, 4)), L.GRU(3, name="a")])), tmp_path / "gru.keras")
    other = _saved(_filled(keras.Sequential([L.Input((None, 4)), L.LSTM(3, name="a")])), tmp_path / "lstm.keras")
    _mixed(path, other, tmp_path / "m.keras", lambda text: text)
    with pytest.raises(io.WeightsError, match=r"GRU: expected weights of its own, got 4 gates a unit"):
        io.load_keras(tmp_path / "m.keras")
    _mixed(path, path, tmp_path / "m.keras", lambda text: text.replace(b'"reset_after"', b'"set_after"'))
    with pytest.raises(io.WeightsError, match="reset_after = False is not supported"):
        io.load_keras(tmp_path / "m.keras")


def _mixed(words: Path, weights: Path, path: Path, change: Callable[[bytes], bytes]) -> None:
    """An archive of the configuration of one and the weights of another."""
    with zipfile.ZipFile(words) as one, zipfile.ZipFile(weights) as two, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", change(one.read("config.json")))
        archive.writestr("model.weights.h5", two.read("model.weights.h5"))


# --- the way back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [0, 7, 11, *(pytest.param(s, marks=pytest.mark.slow) for s in range(16) if s not in (0, 7, 11))]
)
def test_archive_and_weights_for_keras(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    kind = ("LSTM", "GRU", "RNN")[seed % 3]
    both, bias = bool(seed & 2), bool(seed & 4)
    inputs, hidden, layers = (int(rng.integers(2, 9)) for _ in range(3))
    options: dict[str, Any] = {"nonlinearity": ("tanh", "relu")[seed // 8]} if kind == "RNN" else {}
    layer = getattr(gpulstm, kind)(inputs, hidden, 1 + layers % 3, bias, True, 0.0, both, **options, seed=seed)
    x = rng.standard_normal((2, 5, inputs)).astype(np.float32)
    io.save_keras(layer, tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    assert_close(model.predict(x, verbose=0), layer(x)[0], "keras", "float32")

    io.save_keras(layer, tmp_path / "m.weights.h5")
    fresh = keras.models.clone_model(_filled(model))
    fresh.load_weights(tmp_path / "m.weights.h5")
    assert_close(fresh.predict(x, verbose=0), layer(x)[0], "keras", "float32")
    y = x
    for one in io.load_keras(tmp_path / "m.keras").values():
        y, _ = one(y)
    assert_close(y, layer(x)[0], "keras", "float32")


def test_loaded_layers_go_back(tmp_path: Path) -> None:
    layers = io.load_keras(_saved(_stack(), tmp_path / "m.keras"))
    io.save_keras(layers, tmp_path / "again.weights.h5")
    again = io.load_keras(tmp_path / "again.weights.h5")
    assert again.keys() == layers.keys()
    for name, layer in layers.items():
        for key, value in layer.params.items():
            np.testing.assert_array_equal(again[name].params[key], value)


@pytest.mark.parametrize("last", [False, True])
def test_whole_model(last: bool, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Embedding(9, 5, seed=1),
        nn.LSTM(5, 6, 2, bidirectional=True, seed=2),
        nn.Dropout(0.2),
        nn.GRU(12, 3, seed=3),
        nn.LastStepHead(3, 4, seed=4) if last else nn.EveryStepHead(3, 4, bias=False, seed=4),
    )
    io.save_keras(model, tmp_path / "m.keras")
    theirs = keras.models.load_model(tmp_path / "m.keras")
    ids = np.random.default_rng(1).integers(0, 9, (2, 5))
    y, _ = model(ids.T)
    assert_close(theirs.predict(ids, verbose=0), y if last else y.swapaxes(0, 1), "keras", "float32")


@pytest.mark.parametrize(
    ("layers", "file", "error", "message"),
    [
        (lambda: gpulstm.LSTM(3, 4), "m.h5", ValueError, "expected a name that ends in .keras or .weights.h5"),
        (lambda: gpulstm.LSTM(3, 4, proj_size=2), "m.keras", ValueError, "Keras has no projection, got 2"),
        (lambda: gpulstm.GRU(3, 4, heads=2), "m.keras", ValueError, "heads: expected 1, since Keras has no recurrent"),
        (lambda: nn.Recurrent("cifg", 3, 4), "m.keras", ValueError, "Keras has gru, lstm, rnn, rnn_relu, got 'cifg'"),
        (lambda: nn.Reversed(gpulstm.LSTM(3, 4)), "m.keras", ValueError, "Keras has no Reversed"),
        (lambda: nn.Dropout(0.1), "m.keras", ValueError, "expected layers with parameters"),
        (lambda: {"a": gpulstm.RNN(3, 4), "b": gpulstm.RNN(3, 4)}, "m.keras", ValueError, "b takes 3, but a gives 4"),
        (
            lambda: nn.Sequential(gpulstm.LSTM(3, 4, bidirectional=True), nn.LastStepHead(8, 2)),
            "m.keras",
            ValueError,
            "expected LastStepHead behind an LSTM, GRU or RNN of one direction",
        ),
        (
            lambda: nn.Sequential(gpulstm.LSTM(3, 4), nn.Linear(4, 4, dtype="float64")),
            "m.keras",
            ValueError,
            r"dtype: expected one for all layers, got \['float32', 'float64'\]",
        ),
        (lambda: [gpulstm.LSTM(3, 4)], "m.keras", TypeError, "layers: expected layers of gpulstm.nn by name"),
    ],
)
def test_refusals_leave_the_file(layers: Any, file: str, error: type, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"before")
    with pytest.raises(error, match=message):
        io.save_keras(layers(), tmp_path / file)
    assert (tmp_path / file).read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [tmp_path / file]


def test_archive_is_what_keras_writes(tmp_path: Path) -> None:
    """The same members, and the same bytes for the same layer."""
    layer = gpulstm.LSTM(3, 4, seed=0)
    for name in ("a.keras", "b.keras"):
        io.save_keras(layer, tmp_path / name)
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as ours,
        zipfile.ZipFile(_saved(_stack(), tmp_path / "c.keras")) as theirs,
    ):
        assert ours.namelist() == theirs.namelist()
        assert json.loads(ours.read("config.json"))["class_name"] == "Sequential"
