"""The command line: trained, killed, resumed, sampled; every mistake answered by one line."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import gpulstm
from gpulstm.cli import cli
from gpulstm.tasks.text import Settings, TextTask
from gpulstm.train import checkpoint

STEPS = 60
MODEL = ["--embed=5", "--hidden=9", "--layers=2", "--dropout=0.2", "--batch=3", "--seq-len=11"]
TRAINING = ["--schedule=plateau", "--validate-every=7", "--validate-bytes=500", "--save-every=1", "--keep=2"]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def train(*arguments: Any) -> Result:
    return invoke("train", "text", *arguments)


def error(result: Result) -> str:
    """The one line that a mistake is answered with."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert "Usage" not in result.output
    assert "Traceback" not in result.output
    return line


def last_json(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number in range(30):
        text = "".join(f"{number} times {i} is {number * i}, größer als {i}.\n" for i in range(15))
        (root / f"{number}.txt").write_text(text, "utf-8")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A short run that is over."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = train("--data", data, "--out", out, *MODEL, "--steps", 12, "--save-every", 5)
    assert result.exit_code == 0, result.output
    return out


def child(*arguments: Any, path: Sequence[Any] = ()) -> subprocess.Popen[str]:
    """A Python process with ``arguments``, which looks for modules in ``path`` first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, *sys.path]))}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
    )


class Process:
    """A training run in a process of its own, where Ctrl-C is not ignored."""

    def __init__(self, *arguments: Any) -> None:
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "from gpulstm_command import main; main()"
        self.process = child("-c", code, "train", "text", *arguments)

    def wait_for(self, condition: Callable[[], Any]) -> bool:
        """Whether ``condition`` came true before the process had done its work."""
        deadline = time.monotonic() + 120
        while not condition():
            if self.process.poll() is not None:
                assert self.process.returncode == 0, self.process.communicate()
                return False
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        return True

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    code, stdout, stderr = Process("--data", data, "--out", out, *MODEL, *TRAINING, "--steps", STEPS, "--json").end()
    assert (code, stderr) == (0, "")  # no progress bar where stderr is no terminal
    summary = last_json(stdout)
    assert summary["steps"] == STEPS
    assert 0 < summary["bits_per_char"] < 10
    assert summary["tokens_per_second"] > 0
    assert summary["checkpoint"] == str(checkpoint.path_of(out, STEPS))
    for part in ("bits per character", "tokens/s", "--- sample", "held out"):
        assert part in stdout
    return out


def assert_equal_runs(a: Path, b: Path) -> None:
    """The last checkpoints hold the same bits, but for what a clock said; each step was recorded once."""
    first, second = checkpoint.load(a), checkpoint.load(b)
    assert first.step == second.step == STEPS
    for x, y in ((first.model, second.model), (first.training, second.training)):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype == y[name].dtype
            assert x[name].tobytes() == y[name].tobytes(), name
    for part in ("config", "rng", "data", "early_stopping", "loss", "validation"):
        assert first.record[part] == second.record[part]
    clocks = {"seconds", "tokens_per_second"}
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if name not in clocks}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (a, b)
    ]
    assert [row["step"] for row in lines[0]] == list(range(1, STEPS + 1))
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_at_random_and_resumed_is_the_same_bit_for_bit(data, whole, tmp_path):
    out = tmp_path / "out"
    dice = random.Random()
    arguments: list[Any] = ["--data", data, "--out", out, *MODEL, *TRAINING, "--steps", STEPS]
    kills = 0
    for round in range(5):
        process = Process(*arguments)
        low = 0 if (path := checkpoint.latest(out)) is None else int(path.name[5:])
        target = checkpoint.path_of(out, dice.randint(low, low + (STEPS - low) // 2))
        process.wait_for(lambda target=target: (checkpoint.latest(out) or out) >= target)
        if round % 2:
            process.wait_for(lambda: any(out.glob(".tmp-step-*")))  # in the middle of a save
        else:
            time.sleep(dice.random() * 0.02)
        code, *_ = process.end(signal.SIGKILL)
        kills += code == -signal.SIGKILL
        arguments = ["--out", out, "--resume"]
    assert kills > 2  # a very slow poll may come when all is done
    code, stdout, stderr = Process(*arguments).end()
    assert (code, stderr) == (0, "")
    assert "resumed at step" in stdout
    assert_equal_runs(whole, out)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "step-00000059", "step-00000060"]


def test_a_second_run_is_told_who_writes_there(data, tmp_path):
    out = tmp_path / "out"
    process = Process("--data", data, "--out", out, *MODEL, "--steps", 10**9)
    process.wait_for(lambda: (out / ".lock").exists() and (out / ".lock").read_bytes())
    for arguments in (["--data", data, *MODEL, "--steps", 2], ["--resume"]):
        message = error(train("--out", out, *arguments))  # whether there is a checkpoint already or not
        assert f"out: {out} is in use by process {process.process.pid} on " in message
    process.wait_for(lambda: checkpoint.path_of(out, 100).exists())
    process.process.kill()
    process.process.communicate()
    step = int(checkpoint.load(out).path.name[5:])
    result = train("--out", out, "--resume", "--steps", step + 1)
    assert result.exit_code == 0, result.output
    assert not (out / ".lock").exists()


@pytest.mark.skipif(os.name == "nt", reason="a process on Windows cannot be sent a Ctrl-C of its own")
@pytest.mark.parametrize(
    ("number", "word", "expected"), [("SIGINT", "interrupted", 130), ("SIGTERM", "terminated", 143)]
)
def test_a_signal_saves_and_says_how_to_go_on(data, whole, tmp_path, number, word, expected):
    out = tmp_path / "out"
    process = Process("--data", data, "--out", out, *MODEL, *TRAINING, "--steps", STEPS, "--json")
    process.wait_for(lambda: checkpoint.path_of(out, 3).exists())
    code, stdout, stderr = process.end(getattr(signal, number))
    assert (code, stderr) == (expected, "")
    summary = last_json(stdout)
    step = summary["steps"]
    assert 3 <= step < STEPS
    assert summary["reason"] == word
    assert f"{word.capitalize()} at step {step}; saved {checkpoint.path_of(out, step)}" in stdout
    assert f"To go on: gpulstm train text --out {out} --resume" in stdout
    assert not (out / ".lock").exists()
    result = train("--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert_equal_runs(whole, out)


def quiet(process: subprocess.Popen[str]) -> int:
    """The exit code of a process that was interrupted, and said a line at most."""
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()  # which goes on for ever where nobody heard
    assert stderr in ("", "Interrupted.\n")
    return process.returncode


@pytest.mark.skipif(os.name == "nt", reason="a process on Windows cannot be sent a Ctrl-C of its own")
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.4, 0.8])
def test_ctrl_c_makes_no_traceback_at_any_moment(data, tmp_path, delay):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import gpulstm_command; print('begun', flush=True); gpulstm_command.main()"
    arguments = ["train", "text", "--data", data, "--out", tmp_path / "out", *MODEL, "--steps", 10**9]
    process = child("-c", code, *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    assert quiet(process) in (130, -signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="a process on Windows cannot be sent a Ctrl-C of its own")
@pytest.mark.parametrize("start", [["-m", "gpulstm"], ["-c", "from gpulstm_command import main; main()"]])
def test_ctrl_c_makes_no_traceback_while_numpy_is_imported(tmp_path, start):
    (tmp_path / "numpy.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a child inherits, and Python makes its own of
    try:
        process = child(*start, "info", path=[tmp_path])
    finally:
        signal.signal(signal.SIGINT, before)
    assert quiet(process) == -signal.SIGINT


@pytest.mark.skipif(os.name == "nt", reason="a process on Windows cannot be sent a Ctrl-C of its own")
@pytest.mark.parametrize(
    "swallow",
    [
        "class Callback:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\nCallback()",
        "try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: raise ImportError('numpy failed') from None",
        "try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: raise RuntimeError('a lock') from None",
        "try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: signal.raise_signal(signal.SIGINT)",
    ],
    ids=["in a callback", "another error", "one that no user causes", "twice"],
)
def test_a_ctrl_c_that_is_swallowed_ends_the_process_all_the_same(swallow):
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gpulstm import cli
def facts():
    exec({swallow!r}, {{"signal": signal}})
    return {{}}
cli._facts = facts
cli.main()
"""
    assert quiet(child("-c", code, "info")) == 130


def test_a_ctrl_c_that_is_swallowed_before_training_ends_the_run(data, tmp_path, monkeypatch):
    def swallow(*arguments: Any) -> Any:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return read(*arguments)

    read = TextTask.read
    monkeypatch.setattr(TextTask, "read", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = train("--data", data, "--out", tmp_path / "out", *MODEL, "--steps", 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_ctrl_c_before_and_after_training(data, tmp_path, monkeypatch):
    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for owner, name, left in ((TextTask, "read", False), (TextTask, "evaluate", True)):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, interrupt)
                result = train("--data", data, "--out", tmp_path / "out", *MODEL, "--steps", 2)
            assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert (tmp_path / "out").exists() == left
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out" / ".lock").exists()


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
        ("--hidden 1000000000", "hidden, layers, embed: expected sizes whose arrays fit into memory, got (1000000000"),
        ("--layers 100000000", "layers, embed: expected sizes whose arrays fit into memory, got (320, 100000000, "),
        ("--layers 1000000000000 --hidden 1", "(1, 1000000000000, 128), which take "),
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
