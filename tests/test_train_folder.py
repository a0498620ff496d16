"""The folder that a run writes to: one run at a time, removed and full ones, the metrics in it."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from training_task import Task, assert_same, everything, make, rows

from gpulstm.files import FolderLock
from gpulstm.train import FolderInUse, MetricsError, checkpoint, loop


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
