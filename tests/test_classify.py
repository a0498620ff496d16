"""The task ``classify``: what it learns, what stands beside it, checkpoints, and the command for trained models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import error, invoke, last_json
from series_files import ts

from gpulstm import nn, tasks
from gpulstm.data import classify as data_of
from gpulstm.tasks import confusion, logistic
from gpulstm.tasks.classify import ClassifyTask, Settings, build, logits, sizes
from gpulstm.train import CheckpointError, checkpoint

HEADER = "@dimensions 2\n@classLabel true up down 10\n@data\n"
SMALL = ["--hidden=5", "--batch=4", "--validate-every=5", "--epochs=8", "--lr=0.02", "--noise=0.1"]


def lines(count: int, seed: int) -> list[str]:
    """Series of 4 to 9 steps that rise, fall, or stay, beside a channel of noise."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        for label, slope in (("up", 1), ("down", -1), ("10", 0)):
            steps = np.arange(4 + number % 6)
            values = [slope * steps + 0.3 * rng.standard_normal(len(steps)), rng.standard_normal(len(steps))]
            made.append(":".join([*(",".join(f"{value:.4f}" for value in channel) for channel in values), label]))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ts(folder / "TEST.ts", lines(6, seed=1), HEADER)
    return ts(folder / "TRAIN.ts", lines(12, seed=0), HEADER)


def train(data: Path, out: Path, *arguments: Any) -> Any:
    return invoke("train", "classify", "--data", data, "--test", data.parent / "TEST.ts", "--out", out, "--json",
                  *arguments)  # fmt: skip


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = train(data, out, *SMALL)
    assert result.exit_code == 0, result.output
    return out, result


def test_it_learns_and_says_so(run: tuple[Path, Any], data: Path) -> None:
    out, result = run
    summary = last_json(result.output)
    assert f"{data}: 30 series to train on, 6 to validate, 18 to test; 2 channels, 4 to 9 steps, 3 classes" in (
        result.output
    )
    assert summary["accuracy"] >= 0.8
    assert summary["accuracy_linear"] >= 0.8
    assert f"accuracy {summary['accuracy']:.4f} on 18 test series (a linear model: " in result.output
    assert "rows are what it is, columns what it was taken for\n     10 down up\n10 " in result.output
    saved = checkpoint.load(out)
    assert saved.record["config"]["classes"] == ["10", "down", "up"]
    assert saved.record["settings"]["source"] == str(data)


@pytest.mark.slow
def test_resumed_is_the_same_bit_for_bit(data: Path, tmp_path: Path) -> None:
    constant = [*SMALL, "--schedule=constant"]  # a cosine of a shorter run is another
    one = train(data, tmp_path / "one", *constant)
    first = train(data, tmp_path / "two", *[option for option in constant if "epochs" not in option], "--steps=11")
    assert first.exit_code == 0, first.output
    resumed = invoke("train", "classify", "--out", tmp_path / "two", "--resume", "--epochs=8", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed at step 11" in resumed.output
    summaries = [last_json(result.output) for result in (one, resumed)]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 64
    for name, value in checkpoint.load(tmp_path / "one").model.items():
        np.testing.assert_array_equal(checkpoint.load(tmp_path / "two").model[name], value)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_and_resumed_is_the_same_bit_for_bit(run: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    out, _ = run
    code = "from gpulstm.cli import main; main()"
    killed = tmp_path / "killed"
    arguments: list[Any] = ["--data", data, "--test", data.parent / "TEST.ts", "--out", killed, *SMALL]
    for step in (7, 29):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "train", "classify", "--save-every=1", *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while (checkpoint.latest(killed) or killed) < checkpoint.path_of(killed, step) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        arguments = ["--out", killed, "--resume"]
    assert invoke("train", "classify", "--out", killed, "--resume").exit_code == 0
    for name, value in checkpoint.load(out).model.items():
        np.testing.assert_array_equal(checkpoint.load(killed).model[name], value)


def test_other_data_is_not_resumed(run: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    out, _ = run
    other = ts(tmp_path / "TRAIN.ts", lines(12, seed=5), HEADER)
    assert f"data: {other} has SHA-256 " in error(
        invoke("train", "classify", "--out", out, "--resume", "--data", other)
    )
    test = ts(tmp_path / "TEST.ts", lines(6, seed=5), HEADER)
    assert " has SHA-256 " in error(invoke("train", "classify", "--out", out, "--resume", "--test", test))
    assert "noise: 0.3 contradicts 0.1 of " in error(
        invoke("train", "classify", "--out", out, "--resume", "--noise", 0.3)
    )


def test_a_trained_model_is_used(run: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    out, _ = run
    test = data.parent / "TEST.ts"
    result = invoke("classify", "--checkpoint", out, "--data", test)
    assert result.exit_code == 0, result.output
    *rows, last = result.output.splitlines()
    model = tasks.restored(out)
    part = data_of.read(data, test).test
    scores = logits(model, part)
    probable = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    names = ["10", "down", "up"]
    for number, row in enumerate(rows):
        where, name, share = row.split("\t")
        assert where == f"{test}:{number + 4}"
        assert name == names[probable[number].argmax()]
        assert abs(float(share) - probable[number].max()) < 1e-4
    right = int((scores.argmax(1) == part.labels).sum())
    assert last == f"accuracy {right / 18:.4f}: {right} of 18 right"

    (tmp_path / "1.csv").write_text("a,b\n" + "".join(f"{step},0\n" for step in range(7)))
    unknown = invoke("classify", "--checkpoint", out, "--data", tmp_path)
    assert unknown.output.splitlines()[0].startswith(f"{tmp_path / '1.csv'}\tup\t")
    assert len(unknown.output.splitlines()) == 1


def test_bad_use(run: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = run

    def refused(message: str, *arguments: Any) -> None:
        assert message in error(invoke("classify", "--checkpoint", out, *arguments))

    refused("data: expected a file or a folder with series to classify, got none")
    (tmp_path / "1.csv").write_text("1\n")
    refused("1.csv: expected 2 channels, as the model was trained on, got 1", "--data", tmp_path)
    file = ts(tmp_path / "x.ts", ["1:2:left"], "@classLabel true\n@data\n")
    refused("x.ts:3: the model knows no class 'left'; expected ['10', 'down', 'up']", "--data", file)
    assert "which cannot be sampled" in error(invoke("sample", "--checkpoint", out))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden", 6, "record.config.hidden: expects 0.weight_hh_l0 of shape"),
        ("layers", 10**9, "record.config.layers: is 1000000000, but model.safetensors has 1"),
        ("classes", ["a", "b"], "record.config.classes: expects 3.bias of shape"),
        ("classes", ["a", "a", "b"], "record.config.classes: expected two or more names, got"),
        ("classes", [1, 2, 3], "record.config.classes: "),
        ("mean", [0.0], "record.config.deviation: expected 1 numbers, as mean, got "),
        ("mean", "ab", "record.config.mean: expected a list of numbers, got 'ab'"),
        ("mean", ["a", 1.0], "record.config.mean: expected a number"),
        ("deviation", [0.0, 1.0], "record.config.deviation: expected a number in"),
    ],
)
def test_a_checkpoint_of_another_model(
    name: str, value: Any, message: str, run: tuple[Path, Any], tmp_path: Path
) -> None:
    saved = checkpoint.load(run[0])
    record = saved.record | {"config": saved.record["config"] | {name: value}}
    changed = checkpoint.save(tmp_path, 2, saved.model, saved.training, record)
    with pytest.raises(CheckpointError) as raised:
        tasks.restored(changed)
    assert message in str(raised.value)


def test_sizes_are_those_of_the_model() -> None:
    for layers in (1, 2):
        config = {"hidden": 7, "layers": layers, "dropout": 0.1, "init": "uniform", "seed": 3,
                  "classes": ["a", "b", "c"], "mean": [0.0] * 5, "deviation": [1.0] * 5}  # fmt: skip
        built = {name: value.shape for name, value in build(config).params.items()}
        assert sizes(config).shapes() == built
        sizes(config).check_found(built, "config")


def test_limits() -> None:
    assert Settings().limits() == {"epochs": 100.0}
    assert Settings(steps=3).limits() == {"steps": 3}
    assert Settings(minutes=3).changed(epochs=2.0).limits() == {"epochs": 2.0}
    with pytest.raises(ValueError, match="limit: expected one of steps, epochs and minutes"):
        Settings(steps=3, minutes=3)


def test_measures_against_a_count_by_hand(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(str(data), str(data.parent / "TEST.ts"), hidden=2, label_smoothing=0.0)
    task = ClassifyTask(settings, ClassifyTask.read(settings))
    part = data_of.Part(tuple(np.zeros((n + 1, 2), np.float32) for n in range(4)), np.array([0, 1, 2, 2]))
    probable = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2]])
    monkeypatch.setattr("gpulstm.tasks.classify.logits", lambda model, part: np.log(probable))
    measured, answers = task._measured(part)
    np.testing.assert_array_equal(answers, [0, 0, 2, 0])
    assert measured["accuracy"] == 0.5
    assert abs(measured["loss"] + np.log([0.7, 0.3, 0.7, 0.2]).mean()) < 1e-12
    np.testing.assert_array_equal(confusion.matrix(part.labels, answers, 3), [[1, 0, 0], [1, 0, 0], [1, 0, 1]])


def test_an_answer_does_not_depend_on_what_runs_beside_it() -> None:
    rng = np.random.default_rng(0)
    series = tuple(rng.standard_normal((int(n), 3)).astype(np.float32) for n in rng.integers(1, 20, 70))
    config = {"hidden": 4, "layers": 1, "dropout": 0.5, "init": "uniform", "seed": 0, "classes": ["a", "b"],
              "mean": [0.0] * 3}  # fmt: skip
    model = build(config)
    found = logits(model, data_of.Part(series, np.zeros(70, int)))
    for values, scores in zip(series, found, strict=True):
        np.testing.assert_allclose(scores, model(values[:, None])[0][0], rtol=1e-4, atol=1e-6)


def test_stopping_early_needs_validation() -> None:
    with pytest.raises(ValueError, match="validate_every: expected an integer >= 1, got 0"):
        Settings(validate_every=0)


# The confusion matrix


def test_the_matrix_as_text() -> None:
    counts = np.array([[10, 2], [0, 7]])
    assert confusion.text(counts, ["cat", "a very long name of a class"]).splitlines()[1:] == [
        "                 cat a very long nam…",
        "cat               10                2",
        "a very long nam…   .                7",
    ]
    many = np.eye(30, dtype=int) * 3
    names = [f"c{number}" for number in range(30)]
    assert confusion.text(many, names) == "no class was taken for another"
    many[4, 7], many[9, 1] = 2, 5
    assert "a?b" in confusion.text(counts, ["a\x1bb", "c"])  # nothing that a terminal would obey
    assert confusion.text(many, names) == "c9 taken for c1: 5 of 8\nc4 taken for c7: 2 of 5"


def test_the_matrix_as_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    confusion.draw(np.array([[10, 2], [0, 7]]), ["cat", "dog"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


# The linear model


def test_features_of_series() -> None:
    values = np.float32([[1, 0], [3, 0], [2, 6]])
    expected = [2, 2, np.sqrt(2 / 3), np.sqrt(8), 1.5, 3, 0.5, 3]
    np.testing.assert_allclose(logistic.summary_features([values])[0], expected)
    flat = logistic.flat_features([values, values[:1]])
    assert flat.shape == (2, 8 + 2 * logistic.POINTS)
    at = np.linspace(0, 2, logistic.POINTS)
    moments = [np.interp(at, [0, 1, 2], values[:, channel]) for channel in range(2)]
    np.testing.assert_allclose(flat[0, 8:].reshape(-1, 2), np.transpose(moments))
    np.testing.assert_allclose(flat[1], [1, 0, *[0] * 6, *[1, 0] * logistic.POINTS])


@pytest.mark.parametrize("penalty", logistic.PENALTIES)
def test_the_regression_is_a_minimum(penalty: float) -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((60, 5)) * [1, 10, 0.1, 1, 0] + 3  # one that never changes
    labels = (features[:, 0] + features[:, 1] / 10 + rng.standard_normal(60) > 6).astype(int) + (features[:, 3] > 4)
    model = logistic.Logistic.fitted(features, labels, 3, penalty)
    off = model.probabilities(features) - np.eye(3)[labels]
    x = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)
    np.testing.assert_allclose(x.T @ off / 60 + penalty * model.weight, 0, atol=5e-5)
    np.testing.assert_allclose(off.mean(0), 0, atol=5e-5)


def test_the_regression_is_chosen_in_validation() -> None:
    """The class is in when something happens, which the first features cannot see."""
    rng = np.random.default_rng(5)

    def made(count: int) -> tuple[list[np.ndarray], np.ndarray]:
        labels = np.arange(count) % 2
        series = [0.1 * rng.standard_normal((12, 1)) for _ in labels]
        for values, label in zip(series, labels, strict=True):
            values[3 if label else 8] += 3
        return series, labels

    (train, labels), (validation, validation_labels), (test, test_labels) = made(40), made(10), made(20)
    found = logistic.predicted(train, labels, validation, validation_labels, test, 2)
    np.testing.assert_array_equal(found, test_labels)


@pytest.mark.slow
def test_model_against_torch() -> None:
    import torch

    config = {"hidden": 6, "layers": 1, "dropout": 0.0, "init": "uniform", "seed": 1, "classes": ["a", "b", "c"],
              "mean": [0.0] * 4}  # fmt: skip
    model = build(config)
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((7, 3, 4)).astype(np.float32), np.array([7, 2, 5])
    theirs = torch.nn.LSTM(4, 6, bidirectional=True)
    theirs.load_state_dict(
        {name[2:]: torch.from_numpy(value) for name, value in model.params.items() if name.startswith("0.")}
    )
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False
    )
    steps, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0])
    means = steps.sum(0) / torch.from_numpy(lengths)[:, None]
    weight, bias = (torch.from_numpy(model.params[f"3.{name}"]) for name in ("weight", "bias"))
    expected = torch.nn.functional.linear(means, weight, bias).detach().numpy()
    np.testing.assert_allclose(model(x, lengths=lengths)[0], expected, rtol=1e-4, atol=1e-6)
    targets = np.array([2, 0, 1])
    loss, _ = nn.cross_entropy(model(x, lengths=lengths)[0], targets, label_smoothing=0.1)
    theirs_loss = torch.nn.functional.cross_entropy(torch.from_numpy(expected), torch.from_numpy(targets),
                                                    label_smoothing=0.1)  # fmt: skip
    assert abs(loss - float(theirs_loss)) < 1e-5


def test_json_names_what_is_promised(run: tuple[Path, Any]) -> None:
    names = list(json.loads(run[1].output.splitlines()[-1]))
    assert names[:4] == ["steps", "epochs", "accuracy", "accuracy_linear"]
