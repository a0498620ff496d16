"""Exported layers and models: ONNX Runtime gives what gpulstm gives."""

from __future__ import annotations

import stat
from typing import Any

import numpy as np
import onnx
import onnx_models
import problems
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import io, nn

pytestmark = pytest.mark.usefixtures("in_numpy")

COUPLED = gpulstm.cells.register(
    gpulstm.cells.Cell("coupled", gates=("i", "g", "o"), states=("c",), saved=3, maths="coupled_cell")
)


def _random(seed: int) -> tuple[nn.RecurrentLayer, int, int, dict[str, bool]]:
    """A random layer, T, B and options of the export."""
    rng = np.random.default_rng(seed)

    def below(high: int) -> int:
        return int(rng.integers(high))

    kind, hidden = ("LSTM", "RNN", "GRU")[seed % 3], 2 + below(30)
    options: dict[str, Any] = {
        "num_layers": 1 + below(3),
        "bias": bool(below(3)),
        "batch_first": bool(below(2)),
        "bidirectional": bool(below(2)),
        "dropout": 0.5 * below(2),
    }
    if kind == "LSTM" and below(3) == 0:
        options["proj_size"] = 1 + below(hidden - 1)
    if kind == "RNN":
        options["nonlinearity"] = ("tanh", "relu")[below(2)]
    layer = getattr(gpulstm, kind)(1 + below(20), hidden, **options, seed=seed)
    state = bool(below(2)) and not layer.config.proj_size
    model = nn.Reversed(layer) if not layer.config.bidirectional and below(3) == 0 else layer
    return model, 1 + below(8), 1 + below(6), {"state": state, "lengths": bool(below(2))}


@pytest.mark.parametrize("seed", range(120))
def test_random_layer(seed: int, tmp_path: Any) -> None:
    model, steps, batch, options = _random(seed)
    layer = getattr(model, "layer", model)
    n = problems.network(layer, steps=steps, batch=batch, ragged=options["lengths"], seed=seed)
    io.export_onnx(model, tmp_path / "m.onnx", **options, opset=(14, 17, 22, 20)[seed % 4])
    given = {"x": n.x}
    if options["lengths"]:
        given["lengths"] = n.lengths.astype(np.int32)  # type: ignore[union-attr]
    if options["state"]:
        given |= dict(zip(("h0", "c0"), problems.parts(n.state), strict=False))
    y, final = model(n.x, n.state if options["state"] else None, n.lengths)  # type: ignore[call-arg]
    found = onnx_models.run(onnx.load(tmp_path / "m.onnx"), given)
    assert list(found) == ["y", "h", "c"][: len(found)]
    for value, expected in zip(found.values(), [y, *problems.parts(final)], strict=True):
        assert_close(value, expected, "onnx", "float32", f"{model}, {options}")


def test_random_layers_cover_every_feature() -> None:
    all_ = [_random(seed) for seed in range(120)]
    configs = [getattr(case[0], "layer", case[0]).config for case in all_]
    for name, values in {
        "num_layers": {1, 2, 3},
        "bias": {True, False},
        "batch_first": {True, False},
        "bidirectional": {True, False},
    }.items():
        assert {getattr(config, name) for config in configs} == values
    assert {config.cell.name for config in configs} == {"lstm", "gru", "rnn", "rnn_relu"}
    assert sum(bool(config.proj_size) for config in configs) > 10
    assert sum(isinstance(case[0], nn.Reversed) for case in all_) > 10
    assert {(case[3]["state"], case[3]["lengths"]) for case in all_} == {(a, b) for a in (0, 1) for b in (0, 1)}


def _language_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(11, 5, seed=1),
        nn.LSTM(5, 6, 2, dropout=0.3, seed=2),
        nn.Dropout(0.5),
        nn.Sequential(nn.RNN(6, 4, bidirectional=True, seed=3), nn.EveryStepHead(8, 11, seed=4)),
    )


@pytest.mark.parametrize("state", [False, True])
def test_language_model(state: bool, tmp_path: Any) -> None:
    model = _language_model()
    ids = np.random.default_rng(0).integers(0, 11, (7, 3))
    _, begin = model(ids)
    y, (lstm, (rnn,)) = model(ids, begin if state else None)
    io.export_onnx(model, tmp_path / "m.onnx", state=state)
    given = {"ids": ids}
    if state:
        given |= {"1.h0": begin[0][0], "1.c0": begin[0][1], "3.0.h0": begin[1][0]}
    found = onnx_models.run(onnx.load(tmp_path / "m.onnx"), given)
    expected = {"y": y, "1.h": lstm[0], "1.c": lstm[1], "3.0.h": rnn}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, "onnx", "float32", name)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_classifier(batch_first: bool, ragged: bool, tmp_path: Any) -> None:
    model = nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(3, 4, bias=False, seed=1),
        nn.LSTM(4, 5, bidirectional=True, batch_first=batch_first, seed=2),
        nn.LastStepHead(10, 2, batch_first=batch_first, seed=3),
    )
    x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    lengths = np.array([6, 1, 3, 5] if batch_first else [4, 1, 3, 2, 4, 1]) if ragged else None
    y, _ = model(x, lengths=lengths)
    io.export_onnx(model, tmp_path / "m.onnx", lengths=ragged)
    given = {"x": x} | ({} if lengths is None else {"lengths": lengths.astype(np.int32)})
    assert_close(onnx_models.run(onnx.load(tmp_path / "m.onnx"), given)["y"], y, "onnx", "float32")


@pytest.mark.parametrize("opset", [14, 17, 18, 22])
@pytest.mark.parametrize("ragged", [False, True])
def test_mean_over_time(ragged: bool, opset: int, tmp_path: Any) -> None:
    model = nn.Sequential(
        nn.LSTM(3, 5, bidirectional=True, seed=2),
        nn.Linear(10, 4, seed=1),  # which makes padding other than 0
        nn.MeanOverTime(),
        nn.Linear(4, 2, seed=3),
    )
    x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    lengths = np.array([4, 1, 3, 2, 4, 1]) if ragged else None
    y, _ = model(x, lengths=lengths)
    io.export_onnx(model, tmp_path / "m.onnx", lengths=ragged, opset=opset)
    given = {"x": x} | ({} if lengths is None else {"lengths": lengths.astype(np.int32)})
    assert_close(onnx_models.run(onnx.load(tmp_path / "m.onnx"), given)["y"], y, "onnx", "float32")


def test_axes_are_named_by_the_first_layer_that_reads_sequences(tmp_path: Any) -> None:
    lstm = gpulstm.LSTM(4, 5, batch_first=True, seed=1)
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4, seed=0), nn.Dropout(0.1)), lstm)
    io.export_onnx(model, tmp_path / "m.onnx")
    axes = onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["B", "T", 3]


def test_float64_is_written_as_such_or_as_float32(tmp_path: Any) -> None:
    layer = gpulstm.LSTM(3, 4, dtype="float64", seed=0)
    io.export_onnx(layer, tmp_path / "double.onnx")
    assert onnx.load(tmp_path / "double.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
    io.export_onnx(layer, tmp_path / "float.onnx", dtype="float32")
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    found = onnx_models.run(onnx.load(tmp_path / "float.onnx"), {"x": x.astype(np.float32)})
    assert_close(found["y"], layer(x)[0], "onnx", "float32")
    (back,) = io.onnx_layers(tmp_path / "double.onnx").values()
    for name, value in layer.params.items():
        np.testing.assert_array_equal(back.params[name], value)


def test_the_same_layer_gives_the_same_bytes(tmp_path: Any) -> None:
    model = _language_model()
    for name in ("a.onnx", "b.onnx"):
        io.export_onnx(model, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (lambda: gpulstm.LSTM(3, 4, proj_size=2), {"state": True}, ValueError, "state: expected False with proj_size"),
        (lambda: nn.Linear(3, 4), {"lengths": True}, ValueError, "lengths: expected False, since no layer"),
        (lambda: nn.Dropout(0.1), {}, ValueError, "expected a layer with parameters"),
        (lambda: nn.Reversed(gpulstm.LSTM(3, 4, bidirectional=True)), {}, ValueError, "Reversed of a bidirectional"),
        (lambda: nn.Recurrent(COUPLED.name, 3, 4), {}, ValueError, "ONNX has gru, lstm, rnn, rnn_relu, got 'cou"),
        (
            lambda: gpulstm.GRU(3, 4, heads=2),
            {},
            ValueError,
            "heads: expected 1, since ONNX has no recurrent weights in",
        ),
        (lambda: gpulstm.LSTM(3, 4), {"opset": 13}, ValueError, "opset: expected 14 .. "),
        (lambda: gpulstm.LSTM(3, 4), {"opset": 10**6}, ValueError, "opset: expected 14 .. "),
        (lambda: gpulstm.LSTM(3, 4), {"dtype": "int8"}, ValueError, "dtype: expected float32 or float64"),
        (lambda: "layer", {}, TypeError, "model: expected a layer or model of gpulstm, got str"),
    ],
)
def test_refusals_leave_the_file(model: Any, options: Any, error: type, message: str, tmp_path: Any) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        io.export_onnx(model(), path, **options)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_parameter_that_is_not_finite(tmp_path: Any) -> None:
    layer = gpulstm.LSTM(3, 4, dtype="float64", seed=0)
    layer.params["bias_hh_l0"][2] = 1e300
    with pytest.raises(io.WeightsError, match="bias_hh_l0: holds NaN or infinite values"):
        io.export_onnx(layer, tmp_path / "m.onnx", dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses(tmp_path: Any) -> None:
    layer = gpulstm.LSTM(3, 4, seed=0)
    with pytest.raises(io.WeightsError, match=r"nowhere.m.onnx: could not be written: .*nothing was changed"):
        io.export_onnx(layer, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(io.WeightsError, match="is a directory"):
        io.export_onnx(layer, tmp_path)
    io.export_onnx(layer, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").stat().st_mode & stat.S_IXUSR
