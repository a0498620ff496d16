"""The command line: trained, looked at, resumed, sampled; every mistake answered by one line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import MODEL, error, invoke, last_json, train, written

import gpulstm
from gpulstm import cells
from gpulstm.tasks.text import Settings, TextTask
from gpulstm.train import checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A short run that is over."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = train("--data", data, "--out", out, *MODEL, "--steps", 12, "--save-every", 5)
    assert result.exit_code == 0, result.output
    return out


def test_a_finished_run_can_be_looked_at_again_and_go_further(data, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", data, "--out", out, *MODEL, "--schedule", "constant", "--save-every", 4, "--json"]
    first = train(*arguments, "--steps", 6)
    again = train("--out", out, "--resume", "--json")
    assert last_json(first.output) == last_json(again.output)
    further = train("--out", out, "--resume", "--json", "--steps", 9, "--hidden", 9, "--data", data)
    assert last_json(further.output)["steps"] == 9
    by_time = train("--out", out, "--resume", "--json", "--minutes", 0.02)
    assert last_json(by_time.output)["steps"] > 9
    at_once = train(*arguments[:2], "--out", tmp_path / "other", *arguments[4:], "--steps", 9)
    assert last_json(at_once.output)["bits_per_char"] == last_json(further.output)["bits_per_char"]


def test_runs_are_numbered_where_no_out_is_given(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "resume: expected a run in runs" in error(train("--resume"))
    for number in (1, 2):
        result = train("--data", data, *MODEL, "--steps", number, "--json")
        assert Path(last_json(result.output)["checkpoint"]).parent == Path("runs") / f"text-{number}"
    result = train("--resume", "--json", "--steps", 4)
    assert Path(last_json(result.output)["checkpoint"]) == Path("runs") / "text-2" / "step-00000004"


def test_early_stopping_ends_with_the_best(data, tmp_path):
    arguments = ["--steps=500", "--patience=1", "--validate-every=5", "--lr=0.5", "--schedule=constant", "--json"]
    result = train("--data", data, "--out", tmp_path / "out", *MODEL, *arguments)
    summary = last_json(result.output)
    assert summary["reason"] == "stopped early"
    best = checkpoint.load(summary["checkpoint"])
    assert best.step == best.record["early_stopping"]["best_step"] < summary["steps"]


def test_a_rate_can_be_changed_on_the_way(data, tmp_path):
    out = tmp_path / "out"
    train("--data", data, "--out", out, *MODEL, "--steps", 2, "--schedule", "plateau")
    result = train("--out", out, "--resume", "--steps", 3, "--lr", 0.0005)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["lr"] == 0.0005
    result = train("--out", out, "--resume", "--steps", 4, "--schedule", "constant")
    assert result.exit_code == 0, result.output


def test_no_clipping_is_resumed(data, tmp_path):
    out = tmp_path / "out"
    new = ["--data", data, *MODEL, "--schedule", "constant", "--clip", "inf"]
    for arguments in ([*new, "--steps", 2], ["--resume", "--steps", 4]):
        result = train("--out", out, *arguments)
        assert result.exit_code == 0, result.output
        stored = checkpoint.load(out).record["settings"]
        assert stored["clip"] is None
        assert Settings.of(stored).clip == math.inf
    whole = train("--out", tmp_path / "whole", *new, "--steps", 4)
    assert whole.exit_code == 0, whole.output
    for name, value in checkpoint.load(tmp_path / "whole").model.items():
        np.testing.assert_array_equal(value, checkpoint.load(out).model[name])


def test_a_folder_that_is_only_named_like_a_checkpoint(data, tmp_path, caplog):
    (tmp_path / "step-99999999").mkdir()
    arguments = ["--data", data, "--out", tmp_path, *MODEL, "--save-every", 1, "--keep", 1]
    assert train(*arguments, "--steps", 2).exit_code == 0
    result = train("--out", tmp_path, "--resume", "--steps", 3)
    assert result.exit_code == 0, result.output
    assert "step-99999999: passed over, since it holds no checkpoint.json" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000003", "step-99999999"]


def test_what_a_kill_left_is_cleared_at_the_next_start(data, run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run, out)
    for name in (".tmp-old-step-00000005", ".tmp-step-00000013-1"):
        (out / name).mkdir()
        (out / name / "model.safetensors").touch()
    assert train("--out", out, "--resume").exit_code == 0  # there is nothing left to do, or to save
    assert not list(out.glob(".*"))


def test_a_moved_data_set_is_the_same_data(data, run, tmp_path):
    (tmp_path / "moved").mkdir()
    for path in data.iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    result = train("--out", run, "--resume", "--data", tmp_path / "moved")
    assert result.exit_code == 0, result.output
    (tmp_path / "moved" / "3.txt").write_text("changed")
    message = error(train("--out", run, "--resume", "--data", tmp_path / "moved"))
    assert f"data: {tmp_path / 'moved'} has SHA-256" in message
    assert f"was trained on {data} with" in message
    assert "expected the same files, unchanged" in message


def test_a_full_disk(data, tmp_path, monkeypatch):
    write, count = checkpoint.write_synced, 0

    def until_full(file: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count > 8:
            raise OSError(28, "No space left on device", str(file))
        write(file, content)

    monkeypatch.setattr(checkpoint, "write_synced", until_full)
    message = error(train("--data", data, "--out", tmp_path, *MODEL, "--steps", 20, "--save-every", 5))
    assert "step-00000010: could not be written: No space left on device" in message
    assert sorted(path.name for path in tmp_path.glob("*step*")) == ["step-00000000", "step-00000005"]
    assert checkpoint.load(tmp_path).step == 5


def test_divergence(data, tmp_path):
    result = train("--data", data, "--out", tmp_path, *MODEL, "--steps", 20, "--optimizer", "sgd", "--lr", "1e40")
    assert "training diverged after step" in error(result)
    assert "step-00000000" in error(result)
    assert checkpoint.load(tmp_path).step == 0


@pytest.mark.parametrize(("lr", "when"), [("1e30", " after step"), ("20", ": the loss is")])
def test_a_finite_loss_beyond_all_sense_is_divergence(data, tmp_path, lr, when):
    arguments = ["--steps=30", "--validate-every=0", "--schedule=constant"]
    message = error(train("--data", data, "--out", tmp_path, *MODEL, *arguments, "--lr", lr))
    assert f"training diverged{when}" in message
    assert "expected" in message
    assert "of a model that knows nothing" in message or "of chance" in message


def test_knowing_a_text_by_heart_is_no_divergence():
    task = TextTask.__new__(TextTask)
    assert task.diverged(0.1, 30.0) is None
    assert task.diverged(30.0, 3.0) is None
    assert task.diverged(task.chance, task.chance) is None
    assert "training diverged: the loss is 30 on the last batch and 31 on" in task.diverged(30.0, 31.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hidden 0", "hidden: expected an integer >= 1, got 0"),
        ("--layers -1", "layers: expected an integer >= 1, got -1"),
        ("--dropout 1", "dropout: expected a number in [0, 1), got 1.0"),
        ("--steps 0", "steps: expected an integer >= 1, got 0"),
        ("--steps 5 --minutes 1", "limit: expected one of steps, epochs and minutes, got {'steps': 5, 'minutes': 1.0}"),
        ("--optimizer adm", "optimizer: expected one of sgd, rmsprop, adam, adamw, got 'adm'"),
        ("--hidden 4 --optimizer adam --momentum 0.9", "momentum: no option of adam; expected one of"),
        ("--schedule step", "schedule: expected one of constant, cosine, plateau, got 'step'"),
        ("--metrics xml", "metrics: expected one of jsonl, csv, tensorboard, got 'xml'"),
        ("--device tpu", "device: expected one of auto, cpu, cuda, got 'tpu'"),
        ("--backend fortran", "backend: unknown backend 'fortran'; known backends: cupy, numba_cpu, numba_cuda, ref"),
        (
            "--hidden 4 --patience 2 --validate-every 0",
            "patience: 2 needs validation, expected validate_every above 0, got 0",
        ),
        ("--batch 1000 --seq-len 1000", "data: too short: "),
        ("--hidden 1000000000", "input: expected sizes whose arrays fit into memory, got (1000000000"),
        (
            "--layers 100000000",
            "hidden, layers and features of the input: expected sizes whose arrays fit into memory, got (320, ",
        ),
        ("--layers 1000000000000 --hidden 1", "(1, 1000000000000, 128), which take "),
        ("--cell gated", "cell: unknown cell 'gated'; known cells: cifg, "),
        (
            "--cell zoneout",
            "cell: expected a cell without inputs of its own, got 'zoneout', which takes keep_",
        ),
        ("--cell nowhere:gated", "cell: 'nowhere:gated' cannot be imported: No module named 'nowhere'"),
        ("--cell math:pi", "cell: expected a cell in 'math:pi', got 3.14"),
        ("--epochs 1e300", "epochs: expected a number in (0, 1e15], got 1e+300"),
        ("--hidden many", "hidden: 'many' is not a valid integer."),
        ("--hiden 3", "No such option '--hiden'."),
        ("--data nowhere", "data: expected a file or a directory, got 'nowhere': No such file or directory"),
        ("--resume", "resume: expected a checkpoint in OUT, found none"),
    ],
)
def test_bad_input(data, tmp_path, arguments, message):
    out = tmp_path / "out"
    if "--data" not in arguments:
        arguments += f" --data {data}"
    assert message.replace("OUT", str(out)) in error(train("--out", out, *arguments.split()))
    assert not out.exists()


@pytest.mark.skipif(not gpulstm.backends()["numba_cuda"], reason="there is a CUDA device")
def test_cuda_where_there_is_none(data, tmp_path):
    assert "'cuda'" in error(train("--data", data, "--out", tmp_path, "--device", "cuda"))
    message = error(train("--data", data, "--out", tmp_path, "--backend", "numba_cuda"))
    assert "'numba_cuda' cannot run here: " in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "text", "--data", ""], "data: expected a path, got ''"),
        (["train", "text", "--out", ""], "out: expected a path, got ''"),
        (["train", "text", "--out", "", "--resume"], "out: expected a path, got ''"),
        (["sample", "--checkpoint", ""], "checkpoint: expected a path, got ''"),
        (["sample"], "Missing option '--checkpoint'."),
        (["trian"], "No such command 'trian'."),
        (["train", "txet"], "No such command 'txet'."),
        (["--jsn"], "No such option '--jsn'."),
    ],
)
def test_wrong_use(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error(invoke(*arguments))
    assert not any(tmp_path.iterdir())


def test_an_out_with_checkpoints_is_not_overwritten(data, run):
    message = error(train("--data", data, "--out", run, *MODEL, "--steps", 20))
    assert f"out: {run} holds step-00000012 already; expected an empty one, or --resume to go on" in message


@pytest.mark.parametrize(
    ("option", "stored"),
    [
        ("--hidden 8", "9"),
        ("--layers 1", "2"),
        ("--seq-len 12", "11"),
        ("--seed 5", "0"),
        ("--optimizer sgd", "'adam'"),
    ],
)
def test_options_that_contradict_the_checkpoint(run, option, stored):
    message = error(train("--out", run, "--resume", *option.split()))
    name, value = option[2:].replace("-", "_").split()
    value = repr(value) if name == "optimizer" else value
    assert f"{name}: {value} contradicts {stored} of {run / 'step-00000012'}; expected the same" in message


def test_sample(run):
    arguments = ["sample", "--checkpoint", run, "--prompt", "7 times", "--length", 40, "--seed", 1]
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert first.output.startswith("7 times")
    assert invoke(*arguments).output == first.output
    assert invoke(*arguments[:-1], 2).output != first.output
    again = invoke("sample", "--checkpoint", run / "step-00000012", *arguments[3:])
    assert again.output == first.output
    greedy = [invoke(*arguments[:-1], seed, "--temperature", 0, "--top-k", 3).output for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert invoke(*arguments, "--backend", "reference").exit_code == 0


OWN_CELL = """
import gpulstm
from gpulstm.cells import tanh

@gpulstm.cell(gates="a")
def from_a_module(x, s):
    return tanh(x.a), {}
"""


@pytest.mark.slow
def test_a_cell_of_ones_own(data, tmp_path, monkeypatch):
    (tmp_path / "module_of_a_cell.py").write_text(OWN_CELL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cell = ["--cell", "module_of_a_cell:from_a_module"]
    options = ["--data", data, *MODEL, "--backend", "reference", "--schedule", "constant", "--steps"]
    whole = train(*options, 4, "--out", "whole", *cell)
    assert whole.exit_code == 0, whole.output
    train(*options, 2, "--out", "parts", *cell)
    assert train("--out", "parts", "--resume", "--steps", 4).exit_code == 0
    one, other = (checkpoint.load(Path(out)) for out in ("whole", "parts"))
    assert one.record["config"]["cell"] == "from_a_module"
    assert all((one.model[name] == other.model[name]).all() for name in one.model)

    monkeypatch.delitem(cells._cells, "from_a_module")  # as in a new process
    monkeypatch.delitem(sys.modules, "module_of_a_cell")
    sample = ["sample", "--checkpoint", "whole", "--seed", 1, "--length", 9, "--backend", "reference"]
    assert "cell: unknown cell 'from_a_module'" in error(invoke(*sample))
    assert invoke(*sample, *cell).exit_code == 0


def test_samples_of_text_are_text(data, run, tmp_path):
    """Of a model that knows next to nothing yet, where nearly half of all bytes are no character's first."""
    result = train("--data", data, "--out", tmp_path / "out", *MODEL, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "\ufffd" not in result.output
    for seed in range(5):
        result = invoke("sample", "--checkpoint", tmp_path / "out", "--seed", seed, "--length", 50)
        assert result.exit_code == 0, result.output
        assert "\ufffd" not in result.output
    (tmp_path / "latin").write_bytes("größer und schöner\n".encode("latin-1") * 100)
    result = train("--data", tmp_path / "latin", "--out", tmp_path / "bytes", *MODEL, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "\ufffd" in result.output  # what is no UTF-8 is written as it comes
    assert checkpoint.load(tmp_path / "bytes").record["settings"]["utf8"] is False


def test_bad_samples(run, tmp_path):
    def sample(path: Path, *arguments: Any) -> str:
        return error(invoke("sample", "--checkpoint", path, *arguments))

    assert "expected a checkpoint, or a directory with step-… ones; there is no such" in sample(tmp_path / "a")
    assert "length: expected an integer >= 0, got -1" in sample(run, "--length", -1)
    assert "temperature: expected a number in [0, inf), got -1.0" in sample(run, "--temperature", -1)
    assert "top_k: expected an integer >= 1, got 0" in sample(run, "--top-k", 0)
    saved = checkpoint.load(run)
    half = tmp_path / "half" / "step-00000001"
    half.mkdir(parents=True)
    for file in saved.path.iterdir():
        (half / file.name).write_bytes(file.read_bytes())
    content = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert f"model.safetensors: holds {len(content) // 2} bytes, expected {len(content)}" in sample(half)
    other = checkpoint.save(tmp_path / "other", 1, {"w": np.ones(1)}, {}, {"config": {"task": "adding"}})
    assert "task is 'adding', expected 'text'" in sample(other)
    other = checkpoint.save(tmp_path / "wrong", 1, {"w": np.ones(1)}, {}, saved.record)
    assert "config.embed: expects 0.weight of shape (256, " in sample(other)
    for number, settings in enumerate((None, [])):
        strange = checkpoint.save(tmp_path / f"s{number}", 1, saved.model, {}, saved.record | {"settings": settings})
        assert invoke("sample", "--checkpoint", strange, "--length", 1).exit_code == 0
    more = checkpoint.save(tmp_path / "more", 1, saved.model | {"w": np.ones(1)}, {}, saved.record)
    assert "model.safetensors: w: expected no such tensor, got (1,)" in sample(more)


def test_info():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    for word in ("gpulstm", "numpy", "numba_cuda", "reference", "cpu", "blas", "threads"):
        assert word in result.output
    facts = last_json(invoke("info", "--json").output)
    assert facts["versions"]["gpulstm"] == gpulstm.__version__
    assert facts["backends"]["reference"] == "available"


def test_help_is_quick():
    """Neither Numba nor safetensors is imported for it."""
    code = """
import sys
from click.testing import CliRunner
from gpulstm.cli import cli
for command in ([], ["train", "text"], ["sample"], ["info"]):
    assert CliRunner().invoke(cli, [*command, "--help"]).exit_code == 0
print([name for name in ("numba", "safetensors", "tqdm", "torch", "tensorboardX") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_bug_shows_its_traceback_when_asked(monkeypatch):
    monkeypatch.setenv("GPULSTM_TRACEBACK", "1")
    assert isinstance(train("--hidden", 0).exception, ValueError)


def test_a_file_that_ends_early_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Click itself answers such an error with "Aborted!" alone."""

    def ended() -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr("gpulstm.cli._facts", ended)
    assert error(invoke("info")) == "Error: Ran out of input"
