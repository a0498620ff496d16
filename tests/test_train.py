"""The training loop: it learns, stops when it should, and goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import math
import os
import sys
from typing import Any

import numpy as np
import pytest
from training_task import TEXT, Task, assert_same, everything, make

from gpulstm import nn, optim, train
from gpulstm.data import Batch, Lanes
from gpulstm.train import CheckpointError, Trainer, checkpoint, loop, progress


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
