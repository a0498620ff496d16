"""The command line, killed and interrupted: resumed bit for bit, and no traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command_runs import MODEL, error, last_json, train, written

from gpulstm.tasks.text import TextTask
from gpulstm.train import checkpoint

STEPS = 60
TRAINING = ["--schedule=plateau", "--validate-every=7", "--validate-bytes=500", "--save-every=1", "--keep=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("data"))


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
