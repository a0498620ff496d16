"""``gpulstm convert``: every format to every other, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result

import gpulstm
from gpulstm import io
from gpulstm.cli import cli
from gpulstm.io.convert import SOURCES, TARGETS

SUFFIXES = (".safetensors", ".onnx", ".keras", ".weights.h5")


def _run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)])


def _write(layer: Any, path: Path) -> Path:
    save = {".safetensors": io.save_safetensors, ".onnx": io.export_onnx}.get(path.suffix, io.save_keras)
    save(layer, path)
    return path


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return io.load_safetensors(path)
    (layer,) = (io.onnx_layers if path.suffix == ".onnx" else io.load_keras)(path).values()
    return layer


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_format_to_every_other(source: str, target: str, bidirectional: bool, tmp_path: Path) -> None:
    layer = gpulstm.LSTM(3, 4, bidirectional=bidirectional, seed=0)
    path = _write(layer, tmp_path / f"in{source}")
    result = _run(path, tmp_path / f"out{target}")
    assert result.exit_code == 0, result.output
    assert "wrote" in result.output
    assert f"{sum(value.size for value in layer.params.values()):,} parameters" in result.output
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)  # one sequence: the same in either layout
    np.testing.assert_allclose(_read(tmp_path / f"out{target}")(x)[0], layer(x)[0], rtol=1e-6, atol=1e-7)


def test_a_checkpoint_becomes_a_model(tmp_path: Path) -> None:
    run = [tmp_path / "run", "--steps", 1, "--hidden", 8, "--embed", 4, "--batch", 2, "--seq-len", 8]
    text = tmp_path / "text.txt"
    text.write_text("the same words over and over, " * 200)
    options = ["--data", text, "--validate-every", 0, "--device", "cpu", "--out", *run]
    trained = CliRunner().invoke(cli, ["train", "text", *map(str, options)])
    assert trained.exit_code == 0, trained.output
    assert _run(tmp_path / "run", tmp_path / "m.safetensors").exit_code == 0
    result = _run(tmp_path / "m.safetensors", tmp_path / "m.onnx", "--state")
    assert "Sequential(Embedding, Recurrent('lstm', 4, 8), Dropout, EveryStepHead)" in result.output
    again = _run(tmp_path / "run", tmp_path / "again.onnx", "--state")
    assert again.exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_one_of_several_layers(tmp_path: Path) -> None:
    io.save_keras({"a": gpulstm.LSTM(3, 4), "b": gpulstm.RNN(4, 5)}, tmp_path / "m.keras")
    result = _run(tmp_path / "m.keras", tmp_path / "m.onnx")
    assert result.exit_code == 1
    assert "holds the layers ['a', 'b']; expected the choice of one (--layer)" in result.output
    assert _run(tmp_path / "m.keras", tmp_path / "m.onnx", "--layer", "b").exit_code == 0
    assert list(io.onnx_layers(tmp_path / "m.onnx")) == ["rnn_l0"]
    assert "a: LSTM(3, 4, batch_first=True), b: RNN" in _run(tmp_path / "m.keras", tmp_path / "m.weights.h5").output


def test_prefix_dtype_and_batch_first(tmp_path: Path) -> None:
    layer = gpulstm.LSTM(3, 4, dtype="float64", seed=0)
    params = {f"encoder.{name}": value for name, value in layer.params.items()} | {"head.weight": np.zeros(3)}
    safetensors.numpy.save_file(params, tmp_path / "in.safetensors")
    options = ["--prefix", "encoder.", "--dtype", "float32", "--batch-first"]
    result = _run(tmp_path / "in.safetensors", tmp_path / "out.safetensors", *options)
    assert result.exit_code == 0, result.output
    loaded = io.load_safetensors(tmp_path / "out.safetensors")
    assert loaded.config.batch_first
    assert loaded.params["weight_hh_l0"].dtype == np.float32


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("in.safetensors", "out.pt", [], "ends in .safetensors, .onnx, .keras or .weights.h5; a pickle"),
        ("in.safetensors", "out.h5", [], "expected a name that ends in .safetensors"),
        ("in.safetensors", "there.onnx", [], "exists already; expected a new file, or force (--force) to replace it"),
        ("in.safetensors", "there.onnx", ["--force", "--prefix", "x."], "prefix: expected one of a recurrent layer"),
        ("in.safetensors", "out.keras", ["--state"], "state and lengths are inputs of an ONNX model"),
        ("in.safetensors", "out.onnx", ["--layer", "a"], "layer is for ONNX and Keras files"),
        (
            "in.onnx",
            "out.keras",
            ["--prefix", "a"],
            "prefix, cell, batch_first are for safetensors files; expected none, got ['prefix']",
        ),
        ("in.onnx", "out.keras", ["--layer", "a"], "nodes: expected some of ['lstm_l0'], got ['a']"),
        ("in.pt", "out.onnx", [], "looks like a pickle, which can run code"),
        ("in.txt", "out.onnx", [], "in.txt: expected a name that ends in .safetensors, .onnx"),
        ("", "out.onnx", [], "expected a checkpoint"),
        ("", "out.onnx", ["--dtype", "float32"], "is a checkpoint, which has all of that stored"),
        ("gone.onnx", "there.onnx", ["--force"], "could not be read: No such file"),
    ],
)
def test_refusals_leave_the_target(source: str, target: str, options: list[str], message: str, tmp_path: Path) -> None:
    layer = gpulstm.LSTM(3, 4, seed=0)
    for suffix in (".safetensors", ".onnx"):
        _write(layer, tmp_path / f"in{suffix}")
    (tmp_path / "there.onnx").write_bytes(b"before")
    before = sorted(tmp_path.iterdir())
    result = _run(tmp_path / source, tmp_path / target, *options)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.onnx").read_bytes() == b"before"


def test_force_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(gpulstm.LSTM(3, 4, seed=0), tmp_path / "in.safetensors")
    target = tmp_path / "out.onnx"
    target.write_bytes(b"before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gpulstm.files.os.replace", full)
        result = _run(tmp_path / "in.safetensors", target, "--force")
        assert "could not be written: No space left on device" in result.output
        assert target.read_bytes() == b"before"
        assert sorted(tmp_path.iterdir()) == [tmp_path / "in.safetensors", target]
    assert _run(tmp_path / "in.safetensors", target, "--force").exit_code == 0
    assert list(io.onnx_layers(target)) == ["lstm_l0"]


def test_a_cell_that_a_file_does_not_say(tmp_path: Path) -> None:
    layer = gpulstm.RNN(3, 4, nonlinearity="relu", seed=0)
    safetensors.numpy.save_file(layer.params, tmp_path / "in.safetensors")
    result = _run(tmp_path / "in.safetensors", tmp_path / "out.onnx", "--cell", "rnn_relu")
    assert result.exit_code == 0, result.output
    assert _read(tmp_path / "out.onnx").config == layer.config
    result = _run(tmp_path / "in.safetensors", tmp_path / "out.keras", "--cell", "relu")
    assert result.exit_code == 1
    assert "unknown cell 'relu'" in result.output


def test_help_names_the_formats() -> None:
    text = _run("--help").output
    for suffix in SUFFIXES:
        assert suffix in text
        assert suffix in SOURCES
        assert suffix in TARGETS
