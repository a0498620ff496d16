"""Commands for trained models, such as ``gpulstm sample``: one for each of :data:`gpulstm.tasks.USES`."""

from __future__ import annotations

from typing import Any

import click

from .. import checks, dispatch, tasks
from ..train.checkpoint import CheckpointError
from . import flags
from .backends import backend_context


class UseCommand(click.Command):
    """A command for trained models, whose task is imported when the command runs or its own help is asked for."""

    def __init__(self, name: str, use: tasks.Use) -> None:
        super().__init__(name, callback=self._print, help=use.help)
        self._use = use

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            held = "A checkpoint, or a run (its last is taken)."
            self.params = [
                click.Option(["--checkpoint", "path"], metavar="DIR", required=True, help=held),
                *flags.of(self._options()),
                click.Option(
                    ["--cell"],
                    type=flags.CellParameter(),
                    metavar="NAME",
                    expose_value=False,
                    help="my_module:my_cell, where the model is of a cell of your own.",
                ),
                click.Option(["--backend"], help="Kernels to use, see gpulstm info."),
            ]
        return super().get_params(ctx)

    def _options(self) -> type:
        return tasks.named(self._use.task).uses[str(self.name)]

    def _print(self, path: str, backend: str | None, **options: Any) -> None:
        """Print what the model in ``path`` makes."""
        name = str(self.name)
        task, saved = tasks.load(checks.path(path, "checkpoint"))
        if name not in task.uses:
            raise CheckpointError(f"{saved.path}: a model of {task.name!r}, which cannot be {self._use.participle}")
        settings = task.uses[name](**flags.given(options))
        with backend_context("auto", backend):
            # one step at a time is a CPU's work, unless a backend is asked for
            device = dispatch.choose_device("auto") if backend else "cpu"
            click.echo(task.use(name, saved, settings, device))
