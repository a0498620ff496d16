"""ONNX nodes as layers and functions, against ONNX Runtime; and whatever a node may ask that gpulstm cannot do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import problems
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerances import assert_close

import gpulstm
from gpulstm import io

pytestmark = pytest.mark.usefixtures("in_numpy")

DIRECTIONS = ("forward", "reverse", "bidirectional")
X = np.zeros((3, 2, 3), np.float32)
# of a sequence of 0 steps, ONNX Runtime's RNN read outside its memory in versions before pull request 28052
SHORTEST = {"LSTM": 0, "GRU": 0, "RNN": 1}
# what each may ask for; a GRU's default is another one
OPTIONS: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {"linear_before_reset": 1}, "RNN": {}}
ACTIVATIONS = {"LSTM": [["Sigmoid", "Tanh", "Tanh"]], "GRU": [["Sigmoid", "Tanh"]], "RNN": [["Tanh"], ["Relu"]]}


def _random(seed: int) -> tuple[str, onnx_models.Arrays, onnx_models.Arrays, dict[str, Any]]:
    """A random node: op, inputs, constants, attributes."""
    rng = np.random.default_rng(seed)

    def below(high: int) -> int:
        return int(rng.integers(high))

    op = ("LSTM", "RNN", "GRU")[seed % 3]
    direction = DIRECTIONS[below(3)]
    directions = 2 if direction == "bidirectional" else 1
    steps, batch, inputs, hidden = 1 + below(8), 1 + below(6), 1 + below(20), 1 + below(30)
    weights = onnx_models.weights(op, hidden, inputs, directions, bias=bool(below(3)), seed=seed)
    given = {"X": rng.standard_normal((steps, batch, inputs)).astype(np.float32)}
    if below(2):
        given |= weights
        weights = {}
    if below(2):
        given["sequence_lens"] = rng.integers(SHORTEST[op], steps + 1, batch).astype(np.int32)
    for role in ("initial_h", "initial_c")[: 2 if op == "LSTM" else 1]:
        if below(2):
            given[role] = rng.standard_normal((directions, batch, hidden)).astype(np.float32)
    options: dict[str, Any] = {} if direction == "forward" and below(2) else {"direction": direction}
    options |= {"hidden_size": hidden, **OPTIONS[op]}
    if below(2):
        options["activations"] = ACTIVATIONS[op][below(len(ACTIVATIONS[op]))] * directions
    return op, given, weights, options


@pytest.mark.parametrize("seed", range(180))
def test_random_node(seed: int) -> None:
    op, given, constants, options = _random(seed)
    model = onnx_models.model(op, given, constants, opset=(7, 14, 17, 22)[seed % 4], **options)
    expected = onnx_models.run(model, given)
    found = io.load_onnx(model)(**given)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_close(found[name], value, "onnx", "float32", f"{name} of {op}, {options}")


def test_random_nodes_cover_every_feature() -> None:
    all_ = [_random(seed) for seed in range(180)]
    for op in OPTIONS:
        own = [case for case in all_ if case[0] == op]
        assert {case[3].get("direction", "forward") for case in own} == set(DIRECTIONS)
        for role in ("W", "sequence_lens", "initial_h"):
            assert {role in case[1] for case in own} == {True, False}
        assert any(SHORTEST[op] in case[1].get("sequence_lens", []) for case in own)
    assert sum("Relu" in case[3].get("activations", []) for case in all_) > 5


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", OPTIONS)
def test_layout_1_is_layout_0_with_axes_swapped(op: str, direction: str) -> None:
    """ONNX Runtime does not run layout 1."""
    directions = 2 if direction == "bidirectional" else 1
    weights = onnx_models.weights(op, 5, 3, directions)
    rng = np.random.default_rng(0)
    given = {"X": rng.standard_normal((4, 3, 3)), "sequence_lens": np.array([4, SHORTEST[op], 2])}
    for role in ("initial_h", "initial_c")[: 2 if op == "LSTM" else 1]:
        given[role] = rng.standard_normal((directions, 3, 5))
    given = {name: value.astype(np.int32 if name == "sequence_lens" else np.float32) for name, value in given.items()}
    options = {"hidden_size": 5, "direction": direction, **OPTIONS[op]}
    plain = onnx_models.model(op, given, weights, **options)
    swapped = {name: value.swapaxes(0, 1) if value.ndim == 3 else value for name, value in given.items()}
    batchwise = onnx_models.model(op, swapped, weights, **options, layout=1)
    expected, found = onnx_models.run(plain, given), io.load_onnx(batchwise)(**swapped)
    for name, value in expected.items():
        value = value.transpose(2, 0, 1, 3) if name == "Y" else value.swapaxes(0, 1)
        assert_close(found[name], value, "onnx", "float32", name)
    (layer,) = io.onnx_layers(batchwise).values()
    assert getattr(layer, "layer", layer).config.batch_first  # type: ignore[attr-defined]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", OPTIONS)
def test_sequences_of_no_steps_give_zeros(op: str, direction: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    weights = onnx_models.weights(op, 5, 3, directions)
    rng = np.random.default_rng(0)
    given = {"X": rng.standard_normal((4, 3, 3)).astype(np.float32)}
    given["sequence_lens"] = np.array([4, 0, 2], np.int32)
    given["initial_h"] = rng.standard_normal((directions, 3, 5)).astype(np.float32)
    options = {"direction": direction, **OPTIONS[op]}
    found = io.load_onnx(onnx_models.model(op, given, weights, **options))(**given)
    assert not found["Y"][:, :, 1].any()
    assert not found["Y_h"][:, 1].any()
    others = {name: value[::2] if value.ndim == 1 else value[:, ::2] for name, value in given.items()}
    expected = io.load_onnx(onnx_models.model(op, others, weights, **options))(**others)
    np.testing.assert_array_equal(found["Y"][:, :, ::2], expected["Y"])
    none = given | {"sequence_lens": np.zeros(3, np.int32)}
    empty = io.load_onnx(onnx_models.model(op, none, weights, **options))(**none)
    assert not any(value.any() for value in empty.values())


def test_float16_is_computed_in_float32() -> None:
    weights = {name: value.astype(np.float16) for name, value in onnx_models.weights("LSTM", 6, 4).items()}
    given = {"X": np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float16)}
    model = onnx_models.model("LSTM", given, weights, hidden_size=6)
    found, expected = io.load_onnx(model)(**given), onnx_models.run(model, given)
    for name, value in expected.items():
        assert found[name].dtype == np.float16
        np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-4)  # one rounding to float16
    (layer,) = io.onnx_layers(model).values()
    assert layer.params["weight_ih_l0"].dtype == np.float32


def test_float64_against_the_reference() -> None:
    """ONNX Runtime has no kernel for it."""
    weights = {name: value.astype(np.float64) for name, value in onnx_models.weights("LSTM", 6, 4, 2).items()}
    given = {"X": np.random.default_rng(0).standard_normal((5, 2, 4))}
    model = onnx_models.model("LSTM", given, weights, hidden_size=6, direction="bidirectional")
    (layer,) = io.onnx_layers(model).values()
    y, (h, c) = layer(given["X"], backend="reference")  # type: ignore[call-arg]
    found = io.load_onnx(model)(**given)
    assert_close(found["Y"], y.reshape(5, 2, 2, 6).swapaxes(1, 2), "kernel", "float64")
    assert_close(found["Y_h"], h, "kernel", "float64")
    assert_close(found["Y_c"], c, "kernel", "float64")


# --- larger models ------------------------------------------------------------------------------------------------


def _stack() -> tuple[Any, np.ndarray]:
    """LSTM, Transpose, Reshape, RNN: weights in initializers, Constant nodes and behind an Identity."""
    first, second = onnx_models.weights("LSTM", 5, 3, 2, seed=1), onnx_models.weights("RNN", 4, 10, seed=2, bias=False)
    constants = {f"{name}1": value for name, value in first.items()} | {"W2": second["W"]}
    nodes = [
        helper.make_node("Constant", [], ["R2"], value=numpy_helper.from_array(second["R"])),
        helper.make_node("Identity", ["W2"], ["W2 again"]),
        helper.make_node("LSTM", ["x", "W1", "R1", "B1"], ["y1"], "first", direction="bidirectional", hidden_size=5),
        helper.make_node("Transpose", ["y1"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "shape"], ["z"]),
        helper.make_node("RNN", ["z", "W2 again", "R2"], ["y"], direction="reverse", hidden_size=4),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([0, 0, 10]), "shape"))
    x = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), x


def test_layers_of_a_larger_model() -> None:
    model, x = _stack()
    layers = io.onnx_layers(model)
    assert list(layers) == ["first", "RNN"]
    assert isinstance(layers["RNN"], gpulstm.nn.Reversed)
    y, _ = layers["first"](x)  # type: ignore[misc]
    y, _ = layers["RNN"](y)  # type: ignore[misc]
    assert_close(y[:, None], onnx_models.run(model, {"x": x})["y"], "onnx", "float32")
    assert list(io.onnx_layers(model, nodes=["RNN"])) == ["RNN"]
    with pytest.raises(io.WeightsError, match=r"expected some of \['first', 'RNN'\], got \['second'\]"):
        io.onnx_layers(model, nodes=["second"])
    with pytest.raises(io.WeightsError, match=r"exactly one LSTM, GRU or RNN node, found \['first', 'RNN'\]"):
        io.load_onnx(model)


def test_a_node_in_a_subgraph() -> None:
    weights = onnx_models.weights("LSTM", 3, 2)
    inner = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["inner"], "deep", hidden_size=3)],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        "outer",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    layers = io.onnx_layers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert list(layers) == ["deep", "deep_1"]


def test_external_data(tmp_path: Any) -> None:
    weights = onnx_models.weights("LSTM", 8, 7)
    x = np.random.default_rng(0).standard_normal((3, 2, 7)).astype(np.float32)
    model = onnx_models.model("LSTM", {"X": x}, weights, hidden_size=8)
    expected = io.load_onnx(model)(X=x)
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(model, tmp_path / "m.onnx", **options)
    assert (tmp_path / "weights.bin").exists()
    found = io.load_onnx(tmp_path / "m.onnx")(X=x)
    np.testing.assert_array_equal(found["Y"], expected["Y"])
    with pytest.raises(io.WeightsError, match="expected a path to the model"):
        io.load_onnx(onnx.load(tmp_path / "m.onnx", load_external_data=False))
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes()[:-4])
    with pytest.raises(io.WeightsError, match=r"external data: 'weights.bin' could not be read: holds .* bytes"):
        io.load_onnx(tmp_path / "m.onnx")


def _external(folder: Path, **entries: str) -> Path:
    """A model whose W, 96 bytes of zeros, lies in another file."""
    model = onnx_models.model("LSTM", {"X": X}, onnx_models.weights("LSTM", 2, 3), hidden_size=2)
    tensor = model.graph.initializer[0]
    assert tensor.name == "W"
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def _hard_link(folder: Path) -> None:
    (folder / "other.bin").write_bytes(bytes(96))
    (folder / "w.bin").hardlink_to(folder / "other.bin")


def _symbolic_link(folder: Path) -> None:
    (folder / "other.bin").write_bytes(bytes(96))
    (folder / "w.bin").symlink_to("other.bin")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes, and links that anyone may make, are POSIX's")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_hard_link, "a hard link, one of 2; expected a file of one name"),
        (_symbolic_link, "a symbolic link, expected the file itself"),
        (lambda folder: os.mkfifo(folder / "w.bin"), "not a regular file"),
        (lambda folder: (folder / "w.bin").mkdir(), "not a regular file"),
        (lambda folder: os.truncate(folder / _touched(folder, "w.bin"), 1 << 34), "expected at most 8589934592"),
    ],
)
def test_external_data_that_is_no_file_of_its_own(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path)
    with pytest.raises(io.WeightsError, match=rf"tensor 'W': external data: 'w.bin' could not be read: .*{message}"):
        io.load_onnx(_external(tmp_path, location="w.bin"))


def _touched(folder: Path, name: str) -> str:
    (folder / name).touch()
    return name


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, None),
        ({"offset": "4", "length": "96"}, None),
        ({"offset": "8"}, "holds 100 bytes; expected bytes 8 to 104"),
        ({"length": "1000000000000"}, r"expected 96 bytes for shape \(1, 8, 3\), got length 1000000000000"),
        ({"offset": "-4"}, "expected an offset and a length in bytes"),
        ({"offset": "9" * 5000}, "expected an offset and a length in bytes"),
    ],
)
def test_external_data_in_part(tmp_path: Path, entries: dict[str, str], message: str | None) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    path = _external(tmp_path, location="w.bin", **entries)
    if message is None:
        io.load_onnx(path)
    else:
        with pytest.raises(io.WeightsError, match=message):
            io.load_onnx(path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link/secret.bin", ""])
def test_external_data_outside_the_folder(tmp_path: Any, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 4 * 8 * 7))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(io.WeightsError, match="expected a file in the folder of the model"):
        io.load_onnx(_external(folder, location=location))


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 3.0}, r"node 'node': attribute clip = 3.0 is not supported"),
        ({"input_forget": 1}, "attribute input_forget = 1 is not supported"),
        ({"activation_alpha": [0.5]}, r"attribute activation_alpha = .* is not supported"),
        ({"activation_beta": [0.5]}, r"attribute activation_beta = .* is not supported"),
        ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, r"activations \['HardSigmoid', 'Tanh', 'Tanh'\] are not"),
        ({"activations": ["Sigmoid", "Tanh"]}, r"activations \['Sigmoid', 'Tanh'\] are not supported"),
        ({"direction": "sideways"}, "direction: expected one of forward, reverse, bidirectional, got 'sideways'"),
        ({"direction": "bidirectional"}, r"W: expected shape \(2, 20, 3\) for direction bidirectional"),
        ({"layout": 2}, "layout: expected 0 or 1, got 2"),
        ({"hidden_size": 6}, r"hidden_size: expected 5 as of R \(1, 20, 5\), got 6"),
        ({"hidden_size": 0}, "hidden_size: expected an integer >= 1, got 0"),
        ({"novelty": 1}, "attribute novelty = 1 is not supported"),
    ],
)
def test_attributes_that_are_not_supported(options: dict[str, Any], message: str) -> None:
    model = onnx_models.model("LSTM", {"X": X}, onnx_models.weights("LSTM", 5, 3), **options)
    for load in (io.load_onnx, io.onnx_layers):
        with pytest.raises(io.WeightsError, match=message):
            load(model)


def test_defaults_that_are_spelled_out() -> None:
    options = {"input_forget": 0, "layout": 0, "direction": "forward", "activations": ["sigmoid", "tanh", "TANH"]}
    model = onnx_models.model("LSTM", {"X": X}, onnx_models.weights("LSTM", 5, 3), hidden_size=5, **options)
    peepholes = {"P": np.zeros((1, 15), np.float32)}
    with_zeros = onnx_models.model("LSTM", {"X": X}, onnx_models.weights("LSTM", 5, 3) | peepholes, hidden_size=5)
    np.testing.assert_array_equal(io.load_onnx(model)(X=X)["Y"], io.load_onnx(with_zeros)(X=X)["Y"])


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("LSTM", {"W": np.zeros((1, 21, 3))}, r"W: expected shape \(1, 20, 3\)"),
        ("LSTM", {"B": np.zeros((1, 20))}, r"B: expected shape \(1, 40\)"),
        ("LSTM", {"R": np.zeros((1, 0, 0))}, "expected three axes, none of them empty"),
        ("LSTM", {"W": np.full((1, 20, 3), np.nan)}, r"W \('W'\): holds NaN or infinite values"),
        ("LSTM", {"R": np.full((1, 20, 5), np.inf)}, r"R \('R'\): holds NaN or infinite values"),
        ("LSTM", {"P": np.ones((1, 15))}, r"input P \('P'\): peepholes are not supported"),
        ("RNN", {"W": np.zeros((1, 20, 3))}, r"W: expected shape \(1, 5, 3\)"),
        ("RNN", {"initial_c": np.zeros((1, 2, 5))}, "expected at most six inputs"),
        ("GRU", {"W": np.zeros((1, 20, 3))}, r"W: expected shape \(1, 15, 3\)"),
        ("GRU", {"B": np.zeros((1, 20))}, r"B: expected shape \(1, 30\)"),
        ("GRU", {"initial_c": np.zeros((1, 2, 5))}, "expected at most six inputs"),
    ],
)
def test_weights_that_do_not_fit(op: str, change: onnx_models.Arrays, message: str) -> None:
    weights = onnx_models.weights(op, 5, 3) | {name: value.astype(np.float32) for name, value in change.items()}
    model = onnx_models.model(op, {"X": X}, weights, **OPTIONS[op])
    with pytest.raises(io.WeightsError, match=message):
        io.onnx_layers(model)
    if "initial_c" not in change:
        with pytest.raises(io.WeightsError, match=message):
            io.load_onnx(model)


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        (
            "GRU",
            {},
            "linear_before_reset = 0 is not supported; expected 1, where the reset gate scales the product of h",
        ),
        ("GRU", {"linear_before_reset": 0}, "linear_before_reset = 0 is not supported"),
        ("GRU", {"linear_before_reset": 1, "activations": ["Sigmoid", "Relu"]}, "expected \\['Sigmoid', 'Tanh'\\]$"),
        ("RNN", {"linear_before_reset": 1}, "attribute linear_before_reset = 1 is not supported"),
        (
            "RNN",
            {"activations": ["Affine"]},
            r"activations \['Affine'\] are not supported; expected \['Tanh'\] or \['Re",
        ),
        ("RNN", {"activations": ["Relu"], "clip": 1.0}, "attribute clip = 1.0 is not supported"),
    ],
)
def test_cells_that_are_not_supported(op: str, options: dict[str, Any], message: str) -> None:
    model = onnx_models.model(op, {"X": X}, onnx_models.weights(op, 5, 3), **options)
    for load in (io.load_onnx, io.onnx_layers):
        with pytest.raises(io.WeightsError, match=message):
            load(model)


def test_directions_of_two_activations() -> None:
    weights = onnx_models.weights("RNN", 5, 3, 2)
    options = {"direction": "bidirectional", "activations": ["Relu", "Tanh"]}
    with pytest.raises(io.WeightsError, match=r"expected \['Tanh', 'Tanh'\] or \['Relu', 'Relu'\]"):
        io.onnx_layers(onnx_models.model("RNN", {"X": X}, weights, **options))


def test_other_nodes_and_computed_weights() -> None:
    other = onnx_models.model("LSTM", {"X": X}, onnx_models.weights("LSTM", 5, 3))
    other.graph.node[0].op_type, other.graph.node[0].domain = "AttnLSTM", "com.microsoft"
    with pytest.raises(io.WeightsError, match="op AttnLSTM is not supported; expected one of LSTM, GRU, RNN"):
        io.onnx_layers(other)
    given = {"X": X} | onnx_models.weights("LSTM", 5, 3)
    with pytest.raises(io.WeightsError, match="W: expected an initializer or a Constant, but 'W' is computed"):
        io.onnx_layers(onnx_models.model("LSTM", given, {}))
    old = onnx_models.model("LSTM", {"X": X}, onnx_models.weights("LSTM", 5, 3))
    old.opset_import[0].domain = "com.example"
    with pytest.raises(io.WeightsError, match="opset missing is not supported"):
        io.onnx_layers(old)
    with pytest.raises(TypeError, match="path_or_model_proto: expected a path, got int"):
        io.load_onnx(3)
    model, _ = _stack()
    del model.graph.node[:]
    with pytest.raises(io.WeightsError, match="LSTM, GRU or RNN nodes, found none"):
        io.onnx_layers(model)


def test_bfloat16_is_refused_by_name() -> None:
    import ml_dtypes

    weights = {name: value.astype(ml_dtypes.bfloat16) for name, value in onnx_models.weights("LSTM", 5, 3).items()}
    model = onnx_models.model("LSTM", {"X": X.astype(ml_dtypes.bfloat16)}, weights)
    with pytest.raises(io.WeightsError, match="dtype bfloat16 is not supported; expected float32, float64, float16"):
        io.load_onnx(model)
    (layer,) = io.onnx_layers(model).values()  # a layer's dtype is seen, so it may be wider
    assert layer.params["weight_ih_l0"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": None}, TypeError, r"\['X'\] missing"),
        ({"Z": X}, TypeError, r"got \['Z'\] too"),
        ({"X": X.astype(np.float64)}, TypeError, "expected one dtype for all"),
        ({"X": X[0]}, ValueError, r"X: expected three axes, the last 3, got \(2, 3\)"),
        ({"X": X.tolist()}, TypeError, "X: expected an array, got list"),
        ({"sequence_lens": np.array([4, 1], np.int32)}, ValueError, r"values in 0 .. 3, got \[4, 1\]"),
        ({"sequence_lens": np.array([-1, 1], np.int32)}, ValueError, r"values in 0 .. 3, got \[-1, 1\]"),
        ({"sequence_lens": np.array([1], np.int32)}, ValueError, r"expected shape \(2,\)"),
        ({"sequence_lens": np.array([1, 1])}, TypeError, "sequence_lens: expected int32, got int64"),
        ({"initial_h": np.zeros((1, 3, 5), np.float32)}, ValueError, r"initial_h: expected shape \(1, 2, 5\)"),
    ],
)
def test_calls_that_do_not_fit(change: dict[str, Any], error: type, message: str) -> None:
    given = {"X": X, "sequence_lens": np.array([3, 2], np.int32), "initial_h": np.zeros((1, 2, 5), np.float32)}
    run = io.load_onnx(onnx_models.model("LSTM", given, onnx_models.weights("LSTM", 5, 3)))
    call = {name: value for name, value in (given | change).items() if value is not None}
    with pytest.raises(error, match=message):
        run(**call)


def test_an_initializer_that_is_an_input_may_be_replaced() -> None:
    weights = onnx_models.weights("LSTM", 5, 3)
    model = onnx_models.model("LSTM", {"X": X + 1} | weights, weights)
    run = io.load_onnx(model)
    assert run.inputs == ("X",)
    assert run.optional == ("W", "R", "B")
    default, replaced = run(X=X + 1)["Y"], run(X=X + 1, W=weights["W"] * 2)["Y"]
    assert not np.allclose(default, replaced)
    (layer,) = io.onnx_layers(model).values()
    np.testing.assert_array_equal(problems.parts(layer(X + 1))[0][:, None], default)
