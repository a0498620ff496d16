"""Signals that end a run, and the progress that it shows."""

from __future__ import annotations

import io
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from training_task import Task, assert_same, everything, make

from gpulstm.files import FolderLock
from gpulstm.train import checkpoint, progress, signals


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
