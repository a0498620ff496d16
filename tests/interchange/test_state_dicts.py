"""torch state dicts and safetensors: both ways, against torch and safetensors themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import REPEATABLE
from tolerances import assert_close

import gpulstm
from gpulstm import io, nn

pytestmark = pytest.mark.filterwarnings(
    # torch says so once a process where a build has no oneDNN path for proj_size; the result is the same
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)


@st.composite
def modules(draw: st.DrawFn) -> tuple[str, Any, torch.nn.Module]:
    """A recurrent module of torch's, its kind and its options."""
    kind, hidden = draw(st.sampled_from(["LSTM", "GRU", "RNN"])), draw(st.integers(2, 19))
    options: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 3)),
        **{name: draw(st.booleans()) for name in ("bias", "bidirectional", "batch_first")},
    }
    if kind == "LSTM" and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    torch.manual_seed(0)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return kind, options, getattr(torch.nn, kind)(draw(st.integers(1, 19)), hidden, **options, dtype=dtype)


@pytest.mark.slow  # for kernels of every kind
@settings(REPEATABLE, max_examples=60)
@given(drawn=modules(), way=st.sampled_from(["tensors", "arrays", "file"]))
def test_configuration_is_inferred(
    drawn: tuple[str, Any, torch.nn.Module], way: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, options, module = drawn
    batch_first = options["batch_first"]
    state: Any = {f"encoder.{name}": value for name, value in module.state_dict().items()} | {
        "head.weight": torch.ones(3)
    }
    if way == "arrays":
        state = {name: value.numpy() for name, value in state.items()}
    if way == "file":
        file = tmp_path_factory.mktemp("state") / "m.safetensors"
        safetensors.torch.save_file(state, file)
        state = file
    layer = io.load_torch(state, "encoder.", batch_first=batch_first)
    assert type(layer) is getattr(gpulstm, kind)
    found = {name: getattr(layer.config, name) for name in options}
    assert found == options
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    shape = (2, 4) if batch_first else (4, 2)
    x = np.random.default_rng(0).standard_normal((*shape, layer.config.input_size)).astype(dtype)
    assert_close(layer(x)[0], module(torch.from_numpy(x))[0].detach(), "torch", dtype)


@settings(REPEATABLE, max_examples=20)
@given(drawn=modules())
def test_back_to_torch(drawn: tuple[str, Any, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> None:
    _, options, module = drawn
    tmp_path = tmp_path_factory.mktemp("state")
    layer = io.load_torch(module.state_dict(), batch_first=options["batch_first"])
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    saved = io.save_torch(layer)
    module.load_state_dict(saved)
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), layer.params[name])
    saved["weight_ih_l0"].zero_()
    assert np.any(layer.params["weight_ih_l0"])  # a copy went out
    io.save_safetensors(layer, tmp_path / "m.safetensors")
    module.load_state_dict(safetensors.torch.load_file(tmp_path / "m.safetensors"))
    assert list(io.save_torch(layer, "lstm.")) == [f"lstm.{name}" for name in layer.params]
    again = io.load_safetensors(tmp_path / "m.safetensors")
    assert repr(again) == repr(layer)
    assert again.config == layer.config
    for name, value in layer.params.items():
        np.testing.assert_array_equal(again.params[name], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["tensors", "file"])
def test_half_types_are_widened(dtype: torch.dtype, way: str, tmp_path: Path) -> None:
    module = torch.nn.LSTM(3, 4).to(dtype)
    state: Any = module.state_dict()
    if way == "file":
        safetensors.torch.save_file(state, tmp_path / "m.safetensors")
        state = tmp_path / "m.safetensors"
    layer = io.load_torch(state)
    for name, value in module.state_dict().items():
        assert layer.params[name].dtype == np.float32
        np.testing.assert_array_equal(layer.params[name], value.float().numpy())
    assert io.load_torch(state, dtype="float64").params["weight_hh_l0"].dtype == np.float64


def test_numpy_float16_and_big_endian() -> None:
    layer = gpulstm.LSTM(3, 4, seed=0)
    halves = {name: value.astype(np.float16) for name, value in layer.params.items()}
    assert io.load_torch(halves).params["bias_ih_l0"].dtype == np.float32
    swapped = {name: value.astype(">f4") for name, value in layer.params.items()}
    loaded = io.load_torch(swapped)
    for name, value in layer.params.items():
        assert loaded.params[name].dtype.isnative
        np.testing.assert_array_equal(loaded.params[name], value)


@pytest.mark.usefixtures("in_numpy")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_model_and_back(dtype: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": dtype, "seed": 1}
    model = nn.Sequential(
        nn.Embedding(9, 5, **options),
        nn.LSTM(5, 6, 2, bidirectional=True, proj_size=3, dropout=0.25, **options),
        nn.Dropout(0.5),
        nn.Sequential(nn.Reversed(nn.RNN(6, 4, **options)), nn.Linear(4, 4, bias=False, **options)),
        nn.LastStepHead(4, 2, **options),
    )
    io.save_safetensors(model, tmp_path / "m.safetensors")
    again = io.load_safetensors(tmp_path / "m.safetensors")
    assert list(again.params) == list(model.params)
    assert again.layers[1].config == model.layers[1].config  # type: ignore[attr-defined]
    assert again.layers[2].p == 0.5
    ids = np.random.default_rng(0).integers(0, 9, (7, 3))
    np.testing.assert_array_equal(again(ids)[0], model(ids)[0])
    inner = io.load_safetensors(tmp_path / "m.safetensors", "1.")
    np.testing.assert_array_equal(inner.params["weight_hr_l1"], model.params["1.weight_hr_l1"])


def test_a_cell_of_ones_own_and_batch_first(tmp_path: Path) -> None:
    cell = gpulstm.cells.register(
        gpulstm.cells.Cell("coupled", gates=("i", "g", "o"), states=("c",), saved=3, maths="coupled_cell")
    )
    layer = nn.Recurrent(cell.name, 3, 4, batch_first=True, seed=0)
    io.save_safetensors(layer, tmp_path / "m.safetensors")
    again = io.load_safetensors(tmp_path / "m.safetensors")
    assert again.config == layer.config
    assert not io.load_safetensors(tmp_path / "m.safetensors", batch_first=False).config.batch_first


@pytest.mark.usefixtures("in_numpy")
def test_cells_that_are_named(tmp_path: Path) -> None:
    """Of a state dict that does not say: torch's names of the RNN of rectifiers are those of the one of tanh."""
    module = torch.nn.RNN(3, 4, 2, bidirectional=True, nonlinearity="relu")
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({f"a.{name}": value for name, value in module.state_dict().items()}, path)
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    for layer in (io.load_torch(module.state_dict(), cell="rnn_relu"), io.load_torch(path, "a.", cell="rnn_relu")):
        assert repr(layer) == "RNN(3, 4, num_layers=2, bidirectional=True, nonlinearity='relu')"
        assert_close(layer(x)[0], module(torch.from_numpy(x))[0].detach(), "torch", "float32")
    assert io.load_torch(path, "a.").config.cell is gpulstm.cells.rnn
    for cell in (gpulstm.cells.peephole, gpulstm.cells.indrnn, gpulstm.cells.mingru):
        layer = nn.Recurrent(cell, 3, 4, 2, bidirectional=True, seed=0)
        again = io.load_torch(io.save_torch(layer, "a."), "a.", cell=cell)
        assert again.config == layer.config
        for name, value in layer.params.items():
            np.testing.assert_array_equal(again.params[name], value)
    state = nn.Recurrent("peephole", 3, 4, seed=0).state_dict()
    for wrong, message in (
        ("time_gap", r"expected torch's names \(weight_ih_l0, ..., w_gap_l0, b_gap_l0\) .* got \['p_f_l0', 'p_i_l0', "),
        ("unheard_of", "cell: unknown cell 'unheard_of'"),
    ):
        with pytest.raises(ValueError, match=message):
            io.load_torch(state, cell=wrong)
    heads = io.load_torch(gpulstm.LSTM(3, 4, heads=2, seed=0).state_dict())
    assert repr(heads) == "Recurrent('lstm', 3, 4, heads=2)"
    io.save_safetensors(heads, path)
    assert io.load_safetensors(path, cell="lstm").config == heads.config
    with pytest.raises(
        io.WeightsError, match=r"m.safetensors: cell: expected none or .* of the file, 'lstm', got 'gru'"
    ):
        io.load_safetensors(path, cell="gru")


def _state(**changes: Any) -> dict[str, Any]:
    state = gpulstm.LSTM(3, 4, 2, bidirectional=True, seed=0).state_dict()
    return {name: value for name, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("state", "prefix", "message"),
    [
        (
            _state(),
            "encoder.",
            r"prefix: expected one of a recurrent layer, got 'encoder.'; the prefixes with one are \[''\]",
        ),
        ({f"a.b.{k}": v for k, v in _state().items()}, "", r"the prefixes with one are \['a.b.'\]"),
        ({"weight": np.zeros(3)}, "", r"the names are \['weight'\]"),
        (_state(extra=np.zeros(3)), "", r"expected torch's names .* got \['extra'\] too"),
        (_state(weight_ih_l0=None), "", "weight_ih_l0 is missing"),
        (_state(bias_hh_l1=None), "", r"missing \['bias_hh_l1'\], unexpected \[\]"),
        (_state(weight_ih_l3=np.zeros((16, 8))), "", "missing .*'weight_hh_l2'"),
        (_state(weight_ih_l99999999=np.zeros((16, 8))), "", "weight_ih_l99999999: expected fewer layers"),
        (_state(weight_ih_l1=np.zeros((16, 9))), "", r"weight_ih_l1: expected shape \(16, 8\), got \(16, 9\)"),
        (_state(weight_ih_l0=np.zeros((12, 3))), "", r"weight_hh_l0: expected shape \(12, 4\), got \(16, 4\)"),
        (_state(weight_ih_l0=np.zeros((8, 3))), "", "got 8 rows"),
        (
            _state(weight_ih_l0=np.zeros((13, 3))),
            "",
            "4 gates for lstm or 3 gates for gru or 1 gates for rnn, got 13 rows",
        ),
        (_state(weight_hh_l0=np.zeros((2, 8, 2))), "", r"weight_hh_l0_reverse: expected shape \(2, 8, 2\), got"),
        (_state(weight_hh_l0=np.zeros((0, 8, 2))), "", "weight_ih_l0: expected 0 rows a gate"),
        (_state(weight_ih_l0=np.zeros((1, 16, 3))), "", r"weight_ih_l0: expected two axes, got \(1, 16, 3\)"),
        (_state(p_i_l0=np.zeros(4)), "", r"got \['p_i_l0'\] too; parameters of a cell's own need cell=..."),
        (_state(weight_ih_l0=np.zeros(16)), "", r"weight_ih_l0: expected two axes, got \(16,\)"),
        (_state(weight_hh_l0=np.full((16, 4), np.nan)), "", "weight_hh_l0: holds NaN or infinite values"),
        (_state(weight_hr_l0=np.zeros((4, 4))), "", "weight_ih_l0: proj_size: expected less than hidden_size = 4"),
    ],
)
def test_state_dicts_that_do_not_fit(state: Any, prefix: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(io.WeightsError, match=message):
        io.load_torch(state, prefix)
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({name: np.asarray(value, np.float32) for name, value in state.items()}, path)
    with pytest.raises(io.WeightsError, match=rf"m.safetensors: .*{message}"):
        io.load_torch(path, prefix)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (_state(bias_ih_l0=np.zeros(16, np.int64)), TypeError, "bias_ih_l0: expected floating point, got dtype int64"),
        (_state(bias_ih_l0=[0.0] * 16), TypeError, "bias_ih_l0: expected an array, got list"),
        (_state() | {3: np.zeros(1)}, TypeError, "expected names as keys"),
        (_state(bias_ih_l0=np.zeros(16)), ValueError, r"dtype: expected one for all .* got \['float32', 'float64'\]"),
        (torch.nn.LSTM(3, 4), TypeError, "path: expected a path, got LSTM"),
        ("model.pt", ValueError, r"looks like a pickle, which can run code"),
        ("model.pth", ValueError, r"torch.load\(path, weights_only=True\)"),
    ],
)
def test_sources_that_are_none(source: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        io.load_torch(source)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{", "metadata: expected JSON"),
        ("[]", r"metadata: expected a layer of gpulstm.nn, got \[\]"),
        ('{"layer": "os.system"}', "expected a layer of gpulstm.nn, got {'layer': 'os.system'}"),
        ('{"layer": "Sequential"}', "expected a layer of gpulstm.nn"),
        ('{"layer": "Sequential", "layers": []}', "layers: expected at least one layer"),
        ('{"layer": "Reversed"}', "expected a layer of gpulstm.nn, got None"),
        ('{"layer": "Dropout", "p": 0.5}', "tensors: unexpected"),
        ('{"layer": "Dropout", "p": 2}', r"p: expected a number in \[0, 1\), got 2"),
        ('{"layer": "LSTM", "cell": "rnn"}', "1 gates for rnn, got 16 rows"),
        ('{"layer": "LSTM", "cell": "unheard_of"}', "cell: unknown cell 'unheard_of'"),
        ('{"layer": "LSTM", "cell": "gru"}', r"3 gates for gru, got 16 rows"),
        ('{"layer": "GRU", "cell": "lstm"}', "cell: expected that of GRU, got 'lstm'"),
        ('{"layer": "LSTM", "cell": "lstm", "declaration": "c"}', "declaration: expected texts by part, got 'c'"),
        (
            '{"layer": "LSTM", "cell": "lstm", "declaration": {"gates": 4}}',
            "declaration: expected texts by part, got {",
        ),
        (
            '{"layer": "LSTM", "cell": "lstm", "declaration": {"gates": "f i g o", "states": "c"}}',
            "cell 'lstm': expected the declaration of the cell of that name here, gates='i f g o', states='c', got "
            "gates='f i g o', states='c'",
        ),
        (
            '{"layer": "Recurrent", "cell": "unheard_of", "declaration": {"gates": "i", "params": "u"}}',
            "unknown cell 'unheard_of'; known cells: .*; expected one that was made before, of gates='i', params='u'",
        ),
        ('{"layer": "Recurrent", "cell": "peephole"}', r"missing \['p_f_l0', 'p_i_l0', 'p_o_l0'\]"),
        (
            '{"layer": "Recurrent", "cell": "indrnn"}',
            r"missing \['u_l0'\], unexpected \['bias_hh_l0', 'weight_hh_l0'\]",
        ),
        ('{"layer": "LSTM", "cell": "lstm", "batch_first": 3}', "batch_first: expected True or False, got 3"),
        ('{"layer": "Linear"}', "weight: expected a matrix, got none"),
    ],
)
def test_metadata_that_does_not_fit(words: str, message: str, tmp_path: Path) -> None:
    params = gpulstm.LSTM(3, 4, seed=0).params
    safetensors.numpy.save_file(params, tmp_path / "m.safetensors", {"gpulstm": words})
    with pytest.raises(io.WeightsError, match=rf"m.safetensors: .*{message}"):
        io.load_safetensors(tmp_path / "m.safetensors")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    layer = gpulstm.LSTM(3, 4, seed=0)
    io.save_safetensors(layer, path)
    before = path.read_bytes()
    assert json.loads(before[8:].split(b"}}")[0] + b"}}")["__metadata__"]["format"] == "np"
    layer.params["bias_ih_l0"][1] = np.nan
    for save in (lambda: io.save_safetensors(layer, path), lambda: io.save_torch(layer)):
        with pytest.raises(io.WeightsError, match="bias_ih_l0: holds NaN or infinite values"):
            save()
    with pytest.raises(TypeError, match=r"layer: expected a layer or model of gpulstm.nn, got Mine"):
        io.save_safetensors(type("Mine", (nn.Linear,), {})(2, 2), path)
    with pytest.raises(TypeError, match=r"layer: expected a recurrent layer such as gpulstm.LSTM, got Linear"):
        io.save_torch(nn.Linear(2, 2))  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
