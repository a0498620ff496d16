"""The speech task: figures, the model's sizes, and the command from end to end."""

from __future__ import annotations

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
from spoken_digits import made, written

from gpulstm.data.speech import Spoken, read
from gpulstm.data.strings import COUNTS, Digits, fixed
from gpulstm.data.utterances import padded
from gpulstm.tasks import edits
from gpulstm.tasks.speech import Settings, SpeechTask, build, sizes
from gpulstm.train import checkpoint

SMALL = ["--hidden=7", "--batch=4", "--validate-every=4", "--save-every=1", "--schedule=plateau"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def spoken(file: Path) -> Spoken:
    return read(file)


def train(*arguments: Any) -> Any:
    return invoke("train", "speech", *arguments)


# Figures


def test_edits_counted_by_hand() -> None:
    for given, right, expected in (
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("flaw", "lawn", 2),
        ("same", "same", 0),
    ):
        assert edits.distance(given, right) == expected
    found = edits.rates([([1, 2], [1, 3]), ([4], [4]), ([], [5, 6, 7])])
    assert found == {"error_rate": 4 / 6, "exact": 1 / 3}


def test_sizes_are_those_of_the_model() -> None:
    for layers in (1, 2):
        config = {
            "hidden": 5,
            "layers": layers,
            "dropout": 0.1,
            "init": "uniform",
            "seed": 3,
            "mean": [0.0] * 9,
            "symbols": ["a", "b"],
        }
        built = {name: value.shape for name, value in build(config).params.items()}
        assert sizes(config).shapes() == built
        sizes(config).check_found(built, "config")


@pytest.mark.slow
def test_the_loss_is_the_mean_over_strings(spoken: Spoken) -> None:
    """That of a validation in parts, as torch counts it."""
    torch = pytest.importorskip("torch")
    task = SpeechTask(Settings(hidden=4, batch=4, noise=0.0), Digits(spoken))
    strings = fixed(spoken.validation, COUNTS, 2, spoken)
    values, steps, labels, counts = padded(strings)
    logits = torch.from_numpy(task.model.forward(values, None, steps)[0]).double().log_softmax(-1)
    arguments = [torch.from_numpy(part) for part in (labels, steps, counts)]
    expected = torch.nn.functional.ctc_loss(logits, *arguments)
    np.testing.assert_allclose(task.validate()["loss"], expected.item(), rtol=1e-4)


# The command


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that has learnt these digits, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--hidden=16", "--batch=8", "--lr=0.02", "--dropout=0", "--noise=0.05", "--validate-every=50"]
    result = train("--data", file, "--out", out, "--epochs", 80, *options, "--json")
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.mark.slow
def test_it_learns_and_shows_what_it_heard(run: tuple[Path, str]) -> None:
    _, printed = run
    figures = last_json(printed)
    assert figures["error_rate"] < 0.2
    assert figures["exact"] > 0.6
    for part in (
        "112 to train on, 16 to validate with, 32 to test",
        "(synthetic)",
        "% of digits wrong",
        "right  said ",
    ):
        assert part in printed


@pytest.mark.slow
def test_its_model_transcribes(run: tuple[Path, str], file: Path, tmp_path: Path) -> None:
    given = made(seed=1, count=20)
    np.savez(tmp_path / "other.npz", X=given["X"], lengths=given["lengths"])
    result = invoke("transcribe", "--checkpoint", run[0], "--data", tmp_path / "other.npz")
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.output.splitlines()]
    assert [int(number) for number, _ in lines] == list(range(20))
    right = sum(said == str(digit) for (_, said), digit in zip(lines, given["y"], strict=True))
    assert right >= 15
    np.savez(tmp_path / "known.npz", **given)  # type: ignore[arg-type]
    result = invoke("transcribe", "--checkpoint", run[0], "--data", tmp_path / "known.npz")
    assert result.output.splitlines()[-1].endswith(f"{100 * right / 20:.2f} % exact")
    np.savez(tmp_path / "wide.npz", X=np.zeros((4, 5)), lengths=np.array([4]))
    line = error(invoke("transcribe", "--checkpoint", run[0], "--data", tmp_path / "wide.npz"))
    assert "X: expected 3 columns, as the model was trained on, got 5" in line
    assert "data: expected a file of recordings" in error(invoke("transcribe", "--checkpoint", run[0]))


def test_a_picture(spoken: Spoken, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    task = SpeechTask(Settings(hidden=4, batch=4), Digits(spoken))
    task.evaluate()
    task.picture(tmp_path / "speech.png")
    assert (tmp_path / "speech.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_resumed_it_has_the_same_bits(file: Path, tmp_path: Path) -> None:
    whole = train("--data", file, "--out", tmp_path / "whole", *SMALL, "--steps", 11, "--json")
    assert whole.exit_code == 0, whole.output
    train("--data", file, "--out", tmp_path / "half", *SMALL, "--steps", 5)
    half = train("--out", tmp_path / "half", "--resume", "--steps", 11, "--json")
    assert_same(tmp_path / "whole", tmp_path / "half")
    assert last_json(whole.output)["error_rate"] == last_json(half.output)["error_rate"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_and_resumed_it_has_the_same_bits(file: Path, tmp_path: Path) -> None:
    assert train("--data", file, "--out", tmp_path / "whole", *SMALL, "--steps", 40).exit_code == 0
    code = "from gpulstm_command import main; main()"
    given = ["train", "speech", "--data", file, "--out", tmp_path / "killed", *SMALL, "--steps", 40]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, given)], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "step-00000013").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = train("--out", tmp_path / "killed", "--resume")
    assert result.exit_code == 0, result.output
    assert_same(tmp_path / "whole", tmp_path / "killed")


def assert_same(a: Path, b: Path) -> None:
    first, second = checkpoint.load(a), checkpoint.load(b)
    assert first.step == second.step
    for x, y in ((first.model, second.model), (first.training, second.training)):
        assert {name: value.tobytes() for name, value in x.items()} == {n: value.tobytes() for n, value in y.items()}
    for part in ("config", "rng", "data", "early_stopping", "loss", "validation"):
        assert first.record[part] == second.record[part]


@pytest.mark.slow
def test_wrong_checkpoints_are_named(run: tuple[Path, str], file: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run[0])
    for changed, message in (
        ({"mean": [0.0] * 8, "deviation": [1.0] * 8}, "record.config.mean: expected a multiple of 3 numbers, got 8"),
        ({"mean": [0.0] * 12, "deviation": [1.0] * 12}, "record.config.mean: expects 0.weight_ih_l0 of shape (64, 12)"),
        ({"deviation": [0.0] * 9}, "record.config.deviation: expected a number in (0, inf), got 0.0"),
        ({"symbols": ["a", "a"]}, "record.config.symbols: expected different texts, got ['a', 'a']"),
        ({"symbols": ["a"]}, "record.config.symbols: expects 2.bias of shape (2,), but "),
        ({"hidden": 17}, "record.config.hidden: expects 0.weight_hh_l0 of shape (68, 17), but "),
    ):
        record = saved.record | {"config": saved.record["config"] | changed}
        path = checkpoint.save(tmp_path / f"{len(list(tmp_path.iterdir()))}", 2, saved.model, saved.training, record)
        assert message in error(invoke("transcribe", "--checkpoint", path, "--data", file))
    other = tmp_path / "other.npz"
    np.savez(other, **made(seed=5))  # type: ignore[arg-type]
    assert "expected the same files, unchanged" in error(train("--resume", "--out", run[0], "--data", other))
