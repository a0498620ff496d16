"""``gpulstm train TASK``: a command for every task that is registered, made of its settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from .. import tasks
from ..files import FolderLock
from ..tasks.base import CommandTask
from ..train import Result, TrainingDiverged, checkpoint
from ..train.checkpoint import Checkpoint
from ..train.progress import Reading
from . import flags, runs
from .backends import backend_context
from .errors import INTERRUPTED, TERMINATED, raise_swallowed

_STOPPED = {"interrupted": INTERRUPTED, "terminated": TERMINATED}


class TaskCommands(click.Group):
    """A command for each task, which is imported when the command, or its line in the help, is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(tasks.TASKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(tasks.named(cmd_name)) if cmd_name in tasks.TASKS else None


def _command(task: type[CommandTask]) -> click.Command:
    out = f"Where checkpoints and metrics go. [default: {runs.RUNS}/{task.name}-N, a new one]"
    params = [
        click.Option(["--out"], metavar="DIR", help=out),
        click.Option(["--resume"], is_flag=True, help="Continue from the last checkpoint in --out, with its settings."),
        *flags.of(task.settings_class),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object as the last line."),
    ]
    return click.Command(
        task.name, params=params, callback=partial(_train, task), help=(task.__doc__ or "").split("\n")[0]
    )


def _train(task: type[CommandTask], out: str | None, resume: bool, as_json: bool, **options: Any) -> None:
    """Train as the command line asks, and say how it ended."""
    given = flags.given(options)
    with ExitStack() as stack:
        saved = None
        if resume:
            lock = stack.enter_context(FolderLock(runs.folder_to_resume(out, task.name)))
            saved = runs.last(lock.folder, task)
            settings = runs.merged(given, saved, task)
        else:
            settings = task.settings_class(**given)
            lock = runs.new_folder(out, task.name, stack)
        stack.enter_context(backend_context(settings.device, settings.backend))
        with closing(Reading("reading", task.reading_unit)) as bar:
            data = task.read(settings, bar)
        if saved is not None:
            runs.check_data(data, saved, settings)
        click.echo(data.describe())
        learner = task(settings, data)
        stored = settings.as_json() | {"source": data.source, **learner.notes()}
        trainer = settings.make_trainer(learner, lock.folder, settings=stored, lock=lock)
        if saved is not None:
            _warn_of_versions(saved)
            trainer.resume(saved, schedule=not {"lr", "schedule"} & given.keys())
        parameters = sum(value.size for value in learner.model.params.values())
        start = f"resumed at step {trainer.step}" if saved else "new run"
        click.echo(f"{parameters:,} parameters; {start} in {lock.folder}")

        raise_swallowed()
        result = trainer.run(**settings.limits())
        quality: Mapping[str, float] = result.validation
        if result.reason in _STOPPED:
            click.echo(f"{result.reason.capitalize()} at step {result.step}; saved {result.checkpoint}")
            click.echo(f"To go on: gpulstm train {task.name} --out {lock.folder} --resume")
        else:
            if settings.patience is not None and result.checkpoint is not None:
                learner.model.load_state_dict(checkpoint.load(result.checkpoint).model)  # the best one
            quality = _measured(learner, result)
            _draw(learner, lock.folder / f"{task.name}.png")
    if as_json:
        click.echo(json.dumps(_as_json(task, result, quality, parameters), allow_nan=False))
    if result.reason in _STOPPED:
        sys.exit(_STOPPED[result.reason])


def _warn_of_versions(saved: Checkpoint) -> None:
    for name, version in checkpoint.versions().items():
        if version != (before := saved.versions.get(name)):
            click.echo(f"Saved by {name} {before}, resumed by {version}: bits may differ.", err=True)


def _measured(learner: CommandTask, result: Result) -> Mapping[str, float]:
    """Measure the model at the end of a run, print the result, and show what the model makes."""
    with closing(Reading("measuring", learner.reading_unit)) as bar:
        quality = learner.evaluate(bar)
    if (cause := learner.diverged(result.loss, quality["loss"])) is not None:
        raise TrainingDiverged(cause)
    click.echo(
        f"{result.reason} at step {result.step}: {learner.summary(quality)}, "
        f"{result.tokens_per_second:,.0f} {learner.unit}/s, {result.seconds:,.0f} s"
    )
    click.echo(f"checkpoint {result.checkpoint}")
    click.echo(learner.show())
    return quality


def _draw(learner: CommandTask, path: Path) -> None:
    """Draw the picture of a task that has one, where matplotlib is installed."""
    if type(learner).picture is CommandTask.picture:
        return
    try:
        import matplotlib
    except ImportError as error:
        click.echo(f'no picture: {error}; pip install "gpulstm[plot]"')
        return
    matplotlib.use("Agg")
    learner.picture(path)
    click.echo(f"picture {path}")


def _as_json(task: type[CommandTask], result: Result, quality: Mapping[str, float], parameters: int) -> dict[str, Any]:
    return {
        "steps": result.step,
        "epochs": result.epoch,
        **{name: quality.get(name) for name in task.figures},
        "tokens_per_second": round(result.tokens_per_second, 1),
        "seconds": round(result.seconds, 3),
        "parameters": parameters,
        "reason": result.reason,
        "checkpoint": str(result.checkpoint),
    }
