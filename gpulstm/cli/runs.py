"""The folders of runs: a new one, the one to resume, and what a resumed run may change."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from .. import checks, tasks
from ..files import FolderInUse, FolderLock
from ..tasks.base import CommandTask, Data
from ..train import checkpoint
from ..train.checkpoint import RECORD, Checkpoint, CheckpointError
from ..train.options import Options

RUNS = Path("runs")


def new_folder(out: str | None, name: str, stack: ExitStack) -> FolderLock:
    """``out``, or the first of runs/NAME-1, runs/NAME-2, ... that is free, held; never one with checkpoints."""
    if out is not None:
        lock = stack.enter_context(FolderLock(checks.path(out, "out")))
        if (found := checkpoint.latest(out)) is not None:
            raise CheckpointError(f"out: {out} holds {found.name} already; expected an empty one, or --resume to go on")
        return lock
    number = 1
    while True:
        folder = RUNS / f"{name}-{number}"
        if not folder.exists():
            with ExitStack() as attempt, suppress(FolderInUse):
                lock = attempt.enter_context(FolderLock(folder))
                if folder in lock.made:  # no other run was quicker
                    stack.push(attempt.pop_all())
                    return lock
        number += 1


def folder_to_resume(out: str | None, name: str) -> Path:
    """``out``, or the newest run of runs/NAME-N that holds a checkpoint."""
    if out is None:
        numbers = {path: path.name.removeprefix(f"{name}-") for path in RUNS.glob(f"{name}-*")}
        found = {int(number): path for path, number in numbers.items() if number.isdecimal()}
        for number in sorted(found, reverse=True):
            if checkpoint.latest(found[number]):
                return found[number]
        raise CheckpointError(f"resume: expected a run in {RUNS}/{name}-N, found none")
    folder = checks.path(out, "out")
    if not folder.is_dir():
        raise CheckpointError(f"resume: expected a checkpoint in {out}, found none")
    return folder


def last(folder: Path, task: type[CommandTask]) -> Checkpoint:
    """The last checkpoint in ``folder``, one of ``task``."""
    path = checkpoint.latest(folder)
    if path is None:
        raise CheckpointError(f"resume: expected a checkpoint in {folder}, found none")
    found, saved = tasks.load(path)
    if found is not task:
        raise CheckpointError(f"{path / RECORD}: record.config: task is {found.name!r}, expected {task.name!r}")
    return saved


def merged(given: dict[str, Any], saved: Checkpoint, task: type[CommandTask]) -> Options:
    """The checkpoint's settings with those given now, which may not change the model or what it learns from."""
    stored = task.settings_of(saved)
    for name in stored.fixed():
        if name not in stored.digested() and name in given and given[name] != getattr(stored, name):
            raise CheckpointError(
                f"{name}: {given[name]!r} contradicts {getattr(stored, name)!r} of {saved.path}; "
                f"expected the same, or a new --out"
            )
    return stored.changed(**given)


def check_data(data: Data, saved: Checkpoint, settings: Options) -> None:
    """The data may have moved, but not changed."""
    for name in settings.digested():
        before = saved.record["config"][name]
        if data.digest != before:
            raise CheckpointError(
                f"{name}: {data.source} has SHA-256 {data.digest:.12}, but {saved.path} was trained on "
                f"{saved.record['settings'].get('source')} with {before:.12}; expected the same files, unchanged"
                + "".join(f" ({note}, which earlier versions did not)" for note in data.notes)
            )
