"""The training loop: it learns, stops when it should, and goes on as if it had never stopped."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulstm import nn, optim, train
from gpulstm.data import Batch, Lanes
from gpulstm.files import FolderLock
from gpulstm.train import (
    CheckpointError,
    FolderInUse,
    MetricsError,
    Trainer,
    TrainingDiverged,
    checkpoint,
    loop,
    progress,
    signals,
)
from gpulstm.train.stored import flatten

TEXT = [bytes(range(65, 91)) * 4, b"hello world, hello lanes. " * 5, b"0123456789" * 9]


class Task(train.Task):
    """A small language model; ``failures`` maps the number of a loss to what is returned in its place."""

    metric = "perplexity"

    def __init__(self, *, optimizer: str = "adam", hidden: int = 6, dropout: float = 0.3, **failures: Any) -> None:
        rng = np.random.default_rng(1)
        self.config = {"hidden": hidden, "optimizer": optimizer}
        self.model = nn.Sequential(
            nn.Embedding(256, 5, seed=rng),
            nn.LSTM(5, hidden, 2, dropout=dropout, seed=rng),
            nn.RNN(hidden, hidden, seed=rng),
            nn.Dropout(dropout),
            nn.EveryStepHead(hidden, 256, seed=rng),
        )
        self.batches = Lanes(TEXT, batch=3, seq_len=7, seed=5)
        self.optimizer = optim.create(optimizer, lr=0.01)
        self.losses = 0
        self.on_loss: Any = None
        self.validations: list[float] = []

    def loss(self, output: Any, batch: Batch) -> tuple[float, Any]:
        self.losses += 1
        loss, gradient = nn.cross_entropy(output, batch["targets"])
        return (loss, gradient) if self.on_loss is None else self.on_loss(self.losses, loss, gradient)

    def validate(self) -> dict[str, float]:
        if self.validations:
            loss = self.validations.pop(0)
        else:
            ids = np.frombuffer(TEXT[1], np.uint8)[:, None]
            loss, _ = nn.cross_entropy(self.model(ids[:-1])[0], ids[1:])
        return {"loss": loss, "perplexity": math.exp(loss)}


def make(out: Path | None = None, task: Task | None = None, schedule: Any = None, **options: Any) -> Trainer:
    task = task or Task()
    if schedule is None:
        schedule = optim.Plateau(0.01, patience=0)
    return Trainer(task, task.optimizer, schedule, seed=3, out=out, **{"shown": False, **options})


def everything(trainer: Trainer) -> dict[str, np.ndarray]:
    """All arrays that a run ends with."""
    arrays = {f"model.{name}": value.copy() for name, value in trainer.task.model.params.items()}
    arrays |= {f"optimizer.{name}": value for name, value in trainer.optimizer.state_dict().items()}
    arrays |= {f"schedule.{name}": value for name, value in trainer.schedule.state_dict().items()}
    return arrays | flatten(trainer.state, "state")


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns():
    trainer = make(task=Task(dropout=0.0))
    first = trainer.run(steps=1).loss
    result = trainer.run(steps=150)
    assert (result.reason, result.step, result.checkpoint) == ("finished", 150, None)
    assert result.loss < 0.7 * first
    assert result.tokens_per_second > 0
    assert result.seconds > 0
    assert result.epoch == 150 // trainer.task.batches.steps_per_epoch


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw"])
def test_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path, optimizer):
    options: dict[str, Any] = {"save_every": 1, "keep": 100, "validate_every": 4}
    whole = make(tmp_path / "whole", Task(optimizer=optimizer), **options)
    steps = 2 * whole.task.batches.steps_per_epoch + 3
    whole.run(steps=steps)
    expected = everything(whole)
    for stop in range(0, steps, 3):
        resumed = make(None, Task(optimizer=optimizer), **options)
        resumed.resume(checkpoint.load(checkpoint.path_of(tmp_path / "whole", stop)))
        assert resumed.step == stop
        result = resumed.run(steps=steps)
        assert_same(everything(resumed), expected)
        assert result.step == steps
        assert resumed.validation == whole.validation


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = make(tmp_path, validate_every=2).run(steps=5)
    again = make(tmp_path)
    again.resume(checkpoint.load(tmp_path))
    second = again.run(steps=5)
    assert (second.reason, second.step, second.checkpoint) == ("finished", 5, first.checkpoint)
    assert (second.loss, second.validation) == (first.loss, first.validation)
    assert second.tokens_per_second == first.tokens_per_second
    assert again.run(steps=8).step == 8


def test_epochs_are_steps():
    trainer = make()
    per_epoch = trainer.task.batches.steps_per_epoch
    assert trainer.run(epochs=2).step == 2 * per_epoch
    assert trainer.task.batches.epoch == 2
    assert trainer.run(epochs=2.5).step == round(2.5 * per_epoch)


def test_minutes_go_on_where_they_stopped(tmp_path, monkeypatch):
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(loop.time, "perf_counter", clock)
    schedule = optim.Cosine(0.01, warmup=0.5)
    trainer = make(tmp_path, schedule=schedule)
    rates: list[float] = []
    trainer.task.on_loss = lambda number, loss, gradient: rates.append(trainer.optimizer.lr) or (loss, gradient)
    result = trainer.run(minutes=1)
    assert 60 <= result.seconds < 65
    assert rates[0] < max(rates) > rates[-1]
    assert max(rates) == pytest.approx(0.01, rel=0.1)
    resumed = make(tmp_path, schedule=schedule)
    resumed.resume(checkpoint.load(tmp_path))
    again = resumed.run(minutes=2)
    assert 120 <= again.seconds < 125
    assert result.step < again.step < 3 * result.step


def test_the_clock_begins_when_the_first_step_has_ended(tmp_path, monkeypatch):
    """What it takes to compile counts neither for the limit nor for the schedule, in every process anew."""
    now = 0.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    shown: list[str] = []
    monkeypatch.setattr(progress.Progress, "wait", lambda self, reason: shown.append(reason))
    trainer = make(tmp_path, schedule=optim.Cosine(0.01, warmup=0.0), validate_every=3)
    validate = trainer.task.validate
    rates: list[float] = []

    def step(number: int, loss: float, gradient: Any) -> Any:
        nonlocal now
        now += 1000.0 if len(rates) == 0 else 10.0
        rates.append(trainer.optimizer.lr)
        return loss, gradient

    def slow() -> dict[str, float]:
        nonlocal now
        now += 500.0 if len(rates) == 3 else 5.0
        return validate()

    trainer.task.on_loss, trainer.task.validate = step, slow
    result = trainer.run(minutes=1)
    assert (result.step, result.seconds) == (7, 65.0)  # 0, 10, 20, 30, 40, 50 and a validation of 5, 65
    assert rates[:2] == [0.01, 0.01]
    assert rates[2] == optim.Cosine(0.01, warmup=0.0)(10 / 60)
    assert shown == ["compiling kernels", "validating, compiling kernels", "validating"]
    resumed = make(tmp_path, schedule=optim.Cosine(0.01, warmup=0.0))
    resumed.resume(checkpoint.load(tmp_path))
    resumed.task.on_loss = step
    rates.clear()
    again = resumed.run(minutes=2)
    assert (again.step, again.seconds) == (14, 125.0)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({}, "limit: expected one of steps, epochs and minutes, got none"),
        ({"steps": 1, "minutes": 2}, "limit: expected one of steps, epochs and minutes, got {'steps': 1"),
        ({"steps": 0}, "steps: expected an integer >= 1, got 0"),
        ({"steps": 10**400}, r"steps: expected a number in \(0, 1e15\], got 1000"),
        ({"epochs": -1}, r"epochs: expected a number in \(0, 1e15\], got -1"),
        ({"minutes": math.nan}, r"minutes: expected a number in \(0, 1e15\], got nan"),
        ({"minutes": math.inf}, r"minutes: expected a number in \(0, 1e15\], got inf"),
        ({"minutes": 1e300}, r"minutes: expected a number in \(0, 1e15\], got 1e\+300"),
    ],
)
def test_bad_limits(tmp_path, limit, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "out").run(**limit)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, r"clip: expected a number in \(0, inf\], got 0"),
        ({"save_every": -1}, "save_every: expected an integer >= 0, got -1"),
        ({"validate_every": -1}, "validate_every: expected an integer >= 0, got -1"),
        ({"keep": 0}, "keep: expected an integer >= 1, got 0"),
        ({"patience": 0, "validate_every": 1}, "patience: expected an integer >= 1, got 0"),
        ({"patience": 1}, "patience: 1 needs validation, expected validate_every above 0, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_saving_nowhere():
    with pytest.raises(ValueError, match="out: None; expected a directory"):
        make().save()


def test_the_state_is_carried_from_window_to_window():
    trainer = make(task=Task(dropout=0.0))
    seen = []
    vjp = trainer.task.model.vjp

    def watch(x: Any, state: Any, **options: Any) -> Any:
        (y, final), pullback = vjp(x, state, **options)
        seen.append((state, final))
        return (y, final), pullback

    trainer.task.model.vjp = watch
    per_epoch = trainer.task.batches.steps_per_epoch
    trainer.run(steps=per_epoch + 2)
    assert [i for i, (state, _) in enumerate(seen) if state is None] == [0, per_epoch]
    for (_, before), (after, _) in itertools.pairwise(seen):
        assert after is None or after is before


def test_clipping():
    norms = {}
    for clip in (1e-3, None):
        task = Task(optimizer="sgd")
        before = task.model.state_dict()
        make(None, task, optim.Constant(1.0), clip=clip).run(steps=1)
        moved = [task.model.params[name] - before[name] for name in before]
        norms[clip] = math.sqrt(sum(float((step**2).sum()) for step in moved))
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[None] > 1e-2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_divergence_stops_before_the_update(tmp_path, value, kind):
    task = Task()
    trainer = make(tmp_path, task, save_every=2)
    before: dict[str, np.ndarray] = {}

    def fail(number: int, loss: float, gradient: Any) -> Any:
        if number < 6:
            return loss, gradient
        before.update(everything(trainer))
        if kind == "loss":
            return value, gradient
        gradient[0, 0, 0] = value
        return loss, gradient

    task.on_loss = fail
    cause = f"the loss is {value}" if kind == "loss" else "the norm of the gradient is (nan|inf)"
    with pytest.raises(TrainingDiverged, match=f"training diverged after step 5: {cause}") as caught:
        trainer.run(steps=10)
    assert "the last good checkpoint is" in str(caught.value)
    assert "step-00000004" in str(caught.value)
    assert "lower learning rate" in str(caught.value)
    assert_same(everything(trainer), before)
    assert checkpoint.load(tmp_path).step == 4
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_parameters_that_overflow_are_not_saved(tmp_path):
    trainer = make(tmp_path, Task(optimizer="sgd"), optim.Constant(3e38), clip=1e30, save_every=1)
    trainer.task.on_loss = lambda number, loss, gradient: (loss, gradient * np.float32(1e4))
    with pytest.raises(TrainingDiverged, match=r"parameter '.*' is not finite.*step-00000000"):
        trainer.run(steps=5)
    assert checkpoint.load(tmp_path).step == 0


def test_a_validation_that_is_not_finite(tmp_path):
    trainer = make(tmp_path, validate_every=3)
    trainer.task.validations = [1.0, math.nan]
    with pytest.raises(TrainingDiverged, match="after step 6: the validation loss is nan"):
        trainer.run(steps=10)


def test_an_absurd_loss_ends_the_run(tmp_path):
    task = Task()
    task.chance = 2.0
    trainer = make(tmp_path, task, save_every=2)
    task.on_loss = lambda number, loss, gradient: (199.0 if number < 5 else 201.0, gradient)
    with pytest.raises(TrainingDiverged, match="after step 4: the loss is 201, expected at most 200, 100 times that"):
        trainer.run(steps=10)
    assert checkpoint.load(tmp_path).step == 4

    def both(number: int, loss: float, gradient: Any) -> Any:
        gradient[0, 0, 0] = math.inf
        return 201.0, gradient

    task.on_loss = both
    with pytest.raises(TrainingDiverged, match=r"the norm of the gradient is (nan|inf), the loss 201, expected"):
        make(None, task).run(steps=1)
    trainer = make(None, task, validate_every=1)
    task.on_loss, task.validations = None, [201.0]
    with pytest.raises(TrainingDiverged, match="after step 1: the validation loss is 201, expected at most 200"):
        trainer.run(steps=10)
    task.chance = "x"
    with pytest.raises(TypeError, match=r"task: chance: expected a number in \(0, inf\], got 'x'"):
        make(None, task)


def test_a_metric_that_json_cannot_hold(tmp_path):
    def trainer() -> Trainer:
        made = make(tmp_path, validate_every=1)
        made.task.validate = lambda: {"loss": 1.0, "perplexity": math.inf}
        return made

    assert trainer().run(steps=1).validation["perplexity"] == math.inf
    assert "validation_perplexity" not in rows(tmp_path)[0]
    resumed = trainer()
    resumed.resume(checkpoint.load(tmp_path))
    assert math.isnan(resumed.validation["perplexity"])
    resumed.run(steps=2)


def test_one_run_at_a_time(tmp_path):
    task = Task()

    def look(number: int, loss: float, gradient: Any) -> Any:
        if number == 3:
            for other in (lambda: make(tmp_path).run(steps=1), make(tmp_path).save):
                with pytest.raises(FolderInUse, match=rf"in use by process {os.getpid()} on "):
                    other()
        return loss, gradient

    task.on_loss = look
    assert make(tmp_path, task).run(steps=5).step == 5
    make(tmp_path / "other").save()
    with FolderLock(tmp_path) as lock:
        resumed = make(tmp_path, lock=lock)
        resumed.resume(checkpoint.load(tmp_path))
        assert resumed.run(steps=6).step == 6
        assert not lock.lost()


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files cannot be removed on Windows")
@pytest.mark.parametrize("at", [6, 9])
@pytest.mark.parametrize("gone", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
def test_an_out_that_is_removed_is_made_anew(tmp_path, caplog, at, gone):
    """At the next save, the last one included; the metrics from there on are kept."""
    out = tmp_path / "out"
    trainer = make(out, save_every=4)

    def remove(number: int, loss: float, gradient: Any) -> Any:
        if number == at:
            gone(out)
        return loss, gradient

    trainer.task.on_loss = remove
    result = trainer.run(steps=10)
    saved = 8 if at == 6 else 10
    assert f"{out} was removed or renamed while training: it was made anew at step {saved}" in caplog.text
    assert [row["step"] for row in rows(out)] == list(range(saved + 1, 11))
    assert result.checkpoint == checkpoint.path_of(out, 10)
    assert checkpoint.load(out).step == 10
    assert len(caplog.records) == 1


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files cannot be removed on Windows")
def test_an_out_that_is_removed_is_noticed_without_a_save(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LOOK", 0.0)
    trainer = make(tmp_path / "out")
    seen = []

    def remove(number: int, loss: float, gradient: Any) -> Any:
        if number == 3:
            shutil.rmtree(tmp_path / "out")
        if number == 4:
            seen.append(checkpoint.latest(tmp_path / "out"))
        return loss, gradient

    trainer.task.on_loss = remove
    trainer.run(steps=5)
    assert seen == [checkpoint.path_of(tmp_path / "out", 3)]


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed on Windows")
def test_a_lock_that_is_removed_is_taken_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loop, "_LOOK", 0.0)
    trainer = make(tmp_path, save_every=3)

    def remove(number: int, loss: float, gradient: Any) -> Any:
        if number in (4, 6):
            (tmp_path / ".lock").unlink()
        if number in (5, 7):
            with pytest.raises(FolderInUse):
                FolderLock(tmp_path).take()
        return loss, gradient

    trainer.task.on_loss = remove
    trainer.run(steps=8)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
    assert not caplog.records


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files cannot be removed on Windows")
def test_an_out_that_another_run_has_taken_is_left_to_it(tmp_path):
    trainer = make(tmp_path / "out", save_every=4)

    def take(number: int, loss: float, gradient: Any) -> Any:
        if number == 2:
            shutil.rmtree(tmp_path / "out")
            other.take()
        return loss, gradient

    trainer.task.on_loss = take
    other = FolderLock(tmp_path / "out")
    with pytest.raises(FolderInUse):
        trainer.run(steps=10)
    assert not other.lost()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    other.release()


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are POSIX's")
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_disk_filled_by_metrics(tmp_path, format):
    import resource

    trainer = make(tmp_path, save_every=5, metrics=[format])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(number: int, loss: float, gradient: Any) -> Any:
        if number == 8:
            file = tmp_path / f"metrics.{format}"
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, before[1]))
        return loss, gradient

    trainer.task.on_loss = fill
    try:
        with pytest.raises(MetricsError, match=rf"metrics\.{format}: metrics could not be written: File too large; "):
            trainer.run(steps=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.load(tmp_path).step == 5
    whole = make(None)
    whole.run(steps=10)
    resumed = make(tmp_path, metrics=[format])
    resumed.resume(checkpoint.load(tmp_path))
    resumed.run(steps=10)
    assert_same(everything(resumed), everything(whole))
    assert len((tmp_path / f"metrics.{format}").read_text().splitlines()) == 10 + (format == "csv")


def test_metrics_that_cannot_be_opened(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: metrics could not be written: "):
        make(tmp_path).run(steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "step-00000000"]


def test_early_stopping_keeps_the_best(tmp_path):
    def trainer() -> Trainer:
        made = make(tmp_path, validate_every=2, patience=2, keep=1)
        made.task.validations = [3.0, 2.0, 2.5, 2.0, 1.0]
        return made

    result = trainer().run(steps=100)
    assert (result.reason, result.step) == ("stopped early", 8)
    assert result.checkpoint == checkpoint.path_of(tmp_path, 4)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000004", "step-00000008"]
    resumed = trainer()
    resumed.resume(checkpoint.load(tmp_path))
    again = resumed.run(steps=100)
    assert (again.reason, again.step, again.checkpoint) == ("stopped early", 8, result.checkpoint)


def test_plateau_lowers_the_rate():
    trainer = make(schedule=optim.Plateau(0.01, factor=0.1, patience=0), validate_every=1)
    trainer.task.validations = [1.0, 2.0, 2.0]
    trainer.run(steps=4)
    assert trainer.optimizer.lr == pytest.approx(1e-4)


def test_the_checkpoint_of_another_run(tmp_path):
    make(tmp_path).run(steps=2)
    saved = checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: made with hidden 6, expected 7"):
        make(task=Task(hidden=7)).resume(saved)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: made with optimizer 'adam', expected 'sgd'"):
        make(task=Task(optimizer="sgd")).resume(saved)
    other = Task(hidden=7)
    other.config = dict(saved.record["config"])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not fit this run: .*expected shape"):
        make(task=other).resume(saved)
    other = Task(optimizer="sgd")
    other.config = dict(saved.record["config"])
    with pytest.raises(CheckpointError, match=r"training\.safetensors: does not fit this run"):
        make(task=other).resume(saved)
    other = Task()
    other.batches = Lanes(TEXT[:2], batch=3, seq_len=7, seed=5)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: does not fit .*made for bytes \d+, expected"):
        make(task=other).resume(saved)


def interrupt(task: Task, at: int, times: int = 1, number: int = signal.SIGINT) -> None:
    def raise_it(count: int, loss: float, gradient: Any) -> Any:
        if count == at:
            for _ in range(times):
                signal.raise_signal(number)
        return loss, gradient

    task.on_loss = raise_it


@pytest.fixture
def _signals():
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # put back by the trainer
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", signals.REASONS)
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    whole = make(None)
    whole.run(steps=9)
    trainer = make(tmp_path)
    interrupt(trainer.task, 4, number=number)
    result = trainer.run(steps=9)
    assert (result.reason, result.step) == (signals.REASONS[number], 4)
    assert result.checkpoint == checkpoint.path_of(tmp_path, 4)
    resumed = make(tmp_path)
    resumed.resume(checkpoint.load(tmp_path))
    assert resumed.run(steps=9).reason == "finished"
    assert_same(everything(resumed), everything(whole))


@pytest.mark.usefixtures("_signals")
def test_a_signal_at_the_very_end_is_not_lost(tmp_path, monkeypatch):
    trainer = make(None)
    interrupt(trainer.task, 4)
    assert trainer.run(steps=4).reason == "interrupted"
    save = checkpoint.save

    def interrupted(out: Path, step: int, *arguments: Any, **options: Any) -> Path:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return save(out, step, *arguments, **options)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    assert make(tmp_path).run(steps=3).reason == "terminated"
    assert checkpoint.load(tmp_path).step == 3


@pytest.mark.usefixtures("_signals")
def test_a_second_interrupt_stops_at_once(tmp_path):
    trainer = make(tmp_path)
    interrupt(trainer.task, 4, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(steps=9)
    assert trainer.step == 3
    with FolderLock(tmp_path):
        pass


def test_a_program_with_its_own_handler_of_sigterm_keeps_it():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        trainer = make()
        interrupt(trainer.task, 4, number=signal.SIGTERM)
        assert trainer.run(steps=9).reason == "finished"
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = make()
        interrupt(trainer.task, 4)
        assert trainer.run(steps=9).reason == "finished"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_a_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(make().run(steps=3)))
    thread.start()
    thread.join()
    assert results[0].reason == "finished"


def test_the_first_state_is_saved_at_once(tmp_path):
    task = Task()
    seen = []
    task.on_loss = lambda number, loss, gradient: seen.append(checkpoint.latest(tmp_path)) or (loss, gradient)
    make(tmp_path, task).run(steps=2)
    assert seen[0] == checkpoint.path_of(tmp_path, 0)


def test_metrics_hold_each_step_once(tmp_path):
    options: dict[str, Any] = {"metrics": ("jsonl", "csv"), "save_every": 4, "validate_every": 3}
    make(tmp_path, **options).run(steps=10)
    for step in (8, 10):  # as if killed right after step 4
        for path in tmp_path.glob(f"step-*{step}"):
            path.rename(tmp_path / f"gone-{step}")
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 1e999}\n' + "[" * 100_000 + '\n{"step": 1')
    resumed = make(tmp_path, **options)
    resumed.resume(checkpoint.load(tmp_path))
    assert resumed.step == 4
    resumed.run(steps=12)
    lines = rows(tmp_path)
    assert [row["step"] for row in lines] == list(range(1, 13))
    with open(tmp_path / "metrics.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in table] == list(range(1, 13))
    for line, row in zip(lines, table, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == line
        assert ("validation_perplexity" in line) == (line["step"] % 3 == 0)
    assert lines[0].keys() == {"step", "epoch", "loss", "gradient_norm", "lr", "tokens_per_second", "seconds"}


def test_metrics_are_there_before_their_checkpoint(tmp_path, monkeypatch):
    save, steps = checkpoint.save, []

    def watch(out: Path, step: int, *arguments: Any, **options: Any) -> Path:
        assert step == 0 or rows(tmp_path)[-1]["step"] == step
        steps.append(step)
        return save(out, step, *arguments, **options)

    monkeypatch.setattr(checkpoint, "save", watch)
    trainer = make(tmp_path, save_every=4, validate_every=3, patience=1)
    trainer.task.validations = [3.0, 2.0, 4.0]
    trainer.run(steps=20)
    assert steps == [0, 3, 4, 6, 8, 9]


def test_a_new_run_begins_new_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 99}\n')
    make(tmp_path).run(steps=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert rows(tmp_path)[0]["loss"] != 99


def test_tensorboard(tmp_path):
    make(tmp_path, metrics=["tensorboard"], validate_every=2).run(steps=2)
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for name in (b"loss", b"gradient_norm", b"validation_perplexity"):
        assert name in content


def test_tensorboard_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gpulstm\[tensorboard\]'"):
        make(tmp_path, metrics=["tensorboard"]).run(steps=2)


def test_unknown_metrics(tmp_path):
    message = "metrics: expected one of jsonl, csv, tensorboard, got 'xml'"
    with pytest.raises(ValueError, match=message):
        make(tmp_path, metrics=["xml"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("limit", [{"steps": 30}, {"minutes": 0.01}])
def test_progress_on_a_terminal(monkeypatch, limit):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_REFRESH", 0.0)
    trainer = make(shown=True, validate_every=5)
    trainer.run(**limit)
    shown = terminal.getvalue()
    for part in ("loss", "tokens/s", "perplexity", "%|", "<", "30/30" if "steps" in limit else "step "):
        assert part in shown
    assert shown.index("compiling kernels …") < shown.index("loss")


def test_progress_is_silent_elsewhere(capfd, monkeypatch):
    make(shown=True).run(steps=3)
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    make(shown=True).run(steps=3)
    assert capfd.readouterr() == ("", "")


def test_progress_goes_on_where_a_run_stopped(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress.Progress(steps=100, minutes=None, step=40, elapsed=9, shown=True)
    bar.update(50, 10, {"loss": 1.0})
    bar.close()
    assert "40%" in terminal.getvalue()
    assert "50/100" in terminal.getvalue()


def test_the_loop_does_little_around_model_and_optimizer():
    """What the loop adds to a step, counted in calls (measured: 92), which no other process can disturb."""

    class Nothing(Task):
        def loss(self, output: Any, batch: Batch) -> tuple[float, Any]:
            return 1.0, output

    task = Nothing()
    ids = np.zeros((1, 1), np.int64)
    task.model.vjp = lambda *_, **__: ((ids, ()), lambda dy: (None, (), {}))
    task.optimizer.advance = task.optimizer.apply = lambda *_: None
    task.batches.next = lambda: Batch({"inputs": ids, "targets": ids})
    trainer = make(None, task)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        trainer.run(steps=200)
    finally:
        sys.setprofile(None)
    assert calls / 200 < 100


class Masked(Task):
    """A task whose batches have a mask for the loss and a feature of each sequence for the model."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.model = nn.Sequential(nn.LSTM(3, 4, seed=0), nn.Linear(4, 2, seed=0))
        rng = np.random.default_rng(0)
        arrays = {name: rng.standard_normal((5, 2, 2), np.float32) for name in ("inputs", "targets")}
        arrays |= {"mask": (rng.random((5, 2, 1)) < 0.5).astype(np.float32), "static": np.ones((2, 1), np.float32)}
        self.batch = Batch(arrays, tokens=3)
        self.batches.next = lambda: self.batch

    def inputs(self, batch: Batch) -> Any:
        static = np.broadcast_to(batch["static"], (5, 2, 1))
        return np.concatenate([batch["inputs"], static], axis=2)

    def loss(self, output: Any, batch: Batch) -> tuple[float, Any]:
        return nn.mse(output * batch["mask"], batch["targets"] * batch["mask"])


def test_a_batch_may_hold_more_arrays():
    task = Masked()
    trainer = make(None, task, optim.Constant(0.01))
    first = trainer.run(steps=1).loss
    assert trainer.run(steps=30).loss < first
    assert trainer._timed_tokens == 28 * 3  # without the first step of each call
    other = Masked()
    other.batch["targets"][other.batch["mask"][:, :, 0] == 0] = 1e6  # which the mask hides
    again = make(None, other, optim.Constant(0.01))
    again.run(steps=30)
    assert_same(everything(trainer), everything(again))


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ({"x": np.ones((2, 3))}, {}, ValueError, r"tokens: expected a number where no .*, got arrays named \['x'\]"),
        ({"inputs": np.ones(3)}, {}, ValueError, "tokens: expected a number where no array is called 'inputs'"),
        ({"x": np.ones(3)}, {"tokens": -1}, ValueError, "tokens: expected an integer >= 0, got -1"),
        ({"x": np.ones(3)}, {"tokens": 1.5}, TypeError, "tokens: expected an integer >= 0, got 1.5"),
        ([np.ones((2, 3))], {}, TypeError, "arrays: expected a dict of arrays, got list"),
        ({0: np.ones((2, 3))}, {}, TypeError, "arrays: expected strings as keys, got 0"),
    ],
)
def test_a_batch_that_is_none(arrays, options, error, message):
    with pytest.raises(error, match=message):
        Batch(arrays, **options)


def test_a_batch_without_inputs():
    assert Batch({"x": np.ones((2, 3))}, tokens=6).tokens == 6
    assert Batch({"x": np.ones((2, 3))}, tokens=0).tokens == 0


def test_a_task_that_lacks_a_part():
    class Half(train.Task):
        metric = "loss"

        def __init__(self) -> None:
            self.model = nn.Sequential(nn.Linear(3, 2))

    needed = "task: expected one with model, loss, batches, metric, config"
    with pytest.raises(TypeError, match=rf"{needed}, got Half without \['loss', 'batches', 'config'\]"):
        train.Trainer(Half(), optim.SGD(0.1))
    with pytest.raises(TypeError, match=rf"{needed}, validate, got Half without \[.*'validate'\]"):
        train.Trainer(Half(), optim.SGD(0.1), validate_every=1)
    with pytest.raises(TypeError, match=r"task: expected a gpulstm.train.Task with model, .*, got 3"):
        train.Trainer(3, optim.SGD(0.1))


def test_lengths_reach_the_model():
    task = Task()
    lengths = np.array([2, 3])
    ids = np.zeros((3, 2), np.int64)
    batch = Batch({"inputs": ids, "targets": ids}, lengths=lengths)
    assert batch.tokens == 5
    seen = []
    vjp = task.model.vjp
    task.model.vjp = lambda *x, lengths, rng: seen.append(lengths) or vjp(*x, lengths=lengths, rng=rng)
    task.batches.next = lambda: batch
    make(None, task).run(steps=1)
    assert seen == [lengths]


def test_os_is_left_alone(tmp_path):
    """No environment variable or working directory changes."""
    before = dict(os.environ), os.getcwd()
    make(tmp_path).run(steps=1)
    assert (dict(os.environ), os.getcwd()) == before
