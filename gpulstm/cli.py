"""The command line: ``gpulstm train text``, ``gpulstm sample``, ``gpulstm convert``, ``gpulstm info``.

Kernels, and what reads and writes files, are imported when they are first used, so that ``--help`` is quick.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from . import __version__, checks, dispatch, get_num_threads
from .data.text import Corpus, read
from .files import FolderInUse, FolderLock
from .tasks.text import FIXED, Settings, TextTask, restored, sample, settings_of
from .train import checkpoint
from .train.checkpoint import Checkpoint, CheckpointError
from .train.loop import Trainer, TrainingDiverged
from .train.progress import Bytes

RUNS = Path("runs")
_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
_STOPPED = {"interrupted": _INTERRUPTED, "terminated": 143}  # and SIGTERM

# What bad input, a full disk or a small memory can raise. GPULSTM_TRACEBACK=1 shows where.
_USER_ERRORS = (
    ValueError,
    TypeError,
    ArithmeticError,
    OSError,
    ImportError,
    EOFError,  # click would say "Aborted!" and no more
    MemoryError,
    dispatch.BackendUnavailable,
)


class _CtrlC:
    """While a command works, the first Ctrl-C raises KeyboardInterrupt, so that it can clean up; a second one, which
    comes where something has swallowed the first or cleaning up takes long, ends the process."""

    seen = False

    def __enter__(self) -> _CtrlC:
        self._before = signal.getsignal(signal.SIGINT)
        ignored = self._before in (None, signal.SIG_IGN)
        self._active = not ignored and threading.current_thread() is threading.main_thread()
        if self._active:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.seen:
            os._exit(_INTERRUPTED)
        self.seen = True
        raise KeyboardInterrupt


def _friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that a user can cause become one line, "Error: ...", and exit code 1; Ctrl-C one line and 130."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        ctrl_c = _CtrlC()
        try:
            with ctrl_c:
                command(*args, **kwargs)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(_INTERRUPTED)
        except BrokenPipeError:  # click ends quietly when the reader of a pipe has gone
            raise
        except Exception as error:
            if ctrl_c.seen:  # an import, a lock or a callback that was cut short raises what it likes
                click.echo("Interrupted.", err=True)
                sys.exit(_INTERRUPTED)
            if not isinstance(error, _USER_ERRORS) or os.environ.get("GPULSTM_TRACEBACK"):
                raise
            raise click.ClickException(str(error) or type(error).__name__) from error

    return wrapped


class _Commands(click.Group):
    """Answers wrong options as all other mistakes: by one line, and exit code 1."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            raise _in_one_line(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error) from error


def _in_one_line(error: click.UsageError) -> click.ClickException:
    if type(error).__name__ == "NoArgsIsHelpError":  # it prints the help
        return error
    if type(error) is click.BadParameter and error.param is not None:
        return click.ClickException(f"{error.param.name}: {error.message}")
    return click.ClickException(error.format_message())


def _setting(flag: str, kind: type, text: str) -> Callable[[Any], Any]:
    """An option that sets a field of Settings, with that field's default in its help."""
    default = getattr(Settings, flag[2:].replace("-", "_"))
    return click.option(flag, type=kind, help=text if default is None else f"{text} [default: {default}]")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpulstm")
def cli() -> None:
    """Train, sample and inspect LSTMs.

    Every mistake is answered by one line, "Error: ...", and exit code 1. Ctrl-C ends with 130, SIGTERM with 143;
    training finishes its step and saves first.
    """


@cli.group()
def train() -> None:
    """Train a model on a task."""


@train.command()
@click.option("--data", metavar="FILE|DIR", help="Text to learn. [default: Python's standard library]")
@click.option("--out", metavar="DIR", help="Where checkpoints and metrics go. [default: runs/text-N, a new one]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, with its settings.")
@click.option("--steps", type=int, help="Train for so many updates.")
@click.option("--epochs", type=float, help="Train for so many passes over the data.")
@click.option("--minutes", type=float, help="Train for so long (not reproducible bit for bit). [default: 5]")
@_setting("--embed", int, "Features a byte is embedded in.")
@_setting("--hidden", int, "Units of every LSTM layer.")
@_setting("--layers", int, "LSTM layers.")
@_setting("--init", str, "Initial parameters: recommended or uniform (as torch).")
@_setting("--dropout", float, "Share of activations dropped between layers and before the head.")
@_setting("--seq-len", int, "Steps that gradients go back.")
@_setting("--batch", int, "Sequences side by side.")
@_setting("--optimizer", str, "sgd, rmsprop, adam or adamw.")
@_setting("--lr", float, "Learning rate.")
@_setting("--momentum", float, "Of sgd and rmsprop.")
@_setting("--weight-decay", float, "Decoupled with adamw, an L2 penalty otherwise.")
@_setting("--schedule", str, "Of the learning rate: constant, cosine or plateau.")
@_setting("--warmup", float, "Share of the run in which a cosine schedule rises.")
@_setting("--clip", float, "Largest norm of the gradient.")
@_setting("--seed", int, "Of parameters, data order and dropout.")
@_setting("--validate-every", int, "In steps; 0 for never.")
@_setting("--validate-bytes", int, "Bytes of held-out text that a validation looks at.")
@_setting("--patience", int, "Stop after so many validations without a better loss.")
@_setting("--save-every", int, "In steps; 0 for the end only.")
@_setting("--keep", int, "Checkpoints that stay.")
@click.option("--metrics", multiple=True, help="jsonl, csv or tensorboard; may be given again.")
@_setting("--device", str, "auto, cpu or cuda.")
@click.option("--backend", help="Kernels to use, see gpulstm info. [default: the best available]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@_friendly
def text(out: str | None, resume: bool, as_json: bool, **options: Any) -> None:
    """A character language model of any text; it ends with held-out bits per character and a sample."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    with ExitStack() as stack:
        saved = None
        if resume:
            lock = stack.enter_context(FolderLock(_to_resume(out)))
            saved = _last(lock.folder)
            settings = _merge(given, saved)
        else:
            settings = Settings(**given)
            lock = _new_folder(out, stack)
        stack.enter_context(_kernels(settings))
        with closing(Bytes("reading")) as bar:
            corpus = read(settings.data, bar)
        if saved is not None:
            _check_data(corpus, saved)
        click.echo(corpus.describe())
        task = TextTask(settings, corpus)
        trainer = Trainer(
            task,
            settings.make_optimizer(),
            settings.make_schedule(),
            clip=settings.clip,
            seed=settings.seed,
            out=lock.folder,
            save_every=settings.save_every,
            keep=settings.keep,
            validate_every=settings.validate_every,
            patience=settings.patience,
            metrics=settings.metrics,
            settings=settings.as_json() | {"source": corpus.source, "utf8": task.utf8},
            lock=lock,
        )
        if saved is not None:
            for name, version in checkpoint.versions().items():
                if version != (before := saved.versions.get(name)):
                    click.echo(f"Saved by {name} {before}, resumed by {version}: bits may differ.", err=True)
            trainer.resume(saved, schedule=not {"lr", "schedule"} & given.keys())
        parameters = sum(value.size for value in task.model.params.values())
        start = f"resumed at step {trainer.step}" if saved else "new run"
        click.echo(f"{parameters:,} parameters; {start} in {lock.folder}")

        result = trainer.run(**settings.limits())
        if result.reason in _STOPPED:
            quality = result.validation
            click.echo(f"{result.reason.capitalize()} at step {result.step}; saved {result.checkpoint}")
            click.echo(f"To go on: gpulstm train text --out {lock.folder} --resume")
        else:
            if settings.patience is not None and result.checkpoint is not None:
                task.model.load_state_dict(checkpoint.load(result.checkpoint).model)  # the best one
            with closing(Bytes("measuring")) as bar:
                quality = task.evaluate(bar)
            if (cause := task.diverged(result.loss, quality["loss"])) is not None:
                raise TrainingDiverged(cause)
            click.echo(
                f"{result.reason} at step {result.step}: {quality['bits_per_char']:.4f} bits per character "
                f"on held-out text, {result.tokens_per_second:,.0f} tokens/s, {result.seconds:,.0f} s"
            )
            click.echo(f"checkpoint {result.checkpoint}")
            click.echo(f"--- sample\n{sample(task.model, rng=settings.seed, utf8=task.utf8)}\n---")
    if as_json:
        summary = {
            "steps": result.step,
            "epochs": result.epoch,
            "bits_per_char": quality.get("bits_per_char"),
            "tokens_per_second": round(result.tokens_per_second, 1),
            "seconds": round(result.seconds, 3),
            "parameters": parameters,
            "reason": result.reason,
            "checkpoint": str(result.checkpoint),
        }
        click.echo(json.dumps(summary, allow_nan=False))
    if result.reason in _STOPPED:
        sys.exit(_STOPPED[result.reason])


@cli.command("sample")
@click.option("--checkpoint", "path", metavar="DIR", required=True, help="A checkpoint, or a run (its last is taken).")
@click.option("--prompt", default="", help="What the text begins with.")
@click.option("--length", type=int, default=500, show_default=True, help="Bytes to write.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest every time.")
@click.option("--top-k", type=int, help="Draw from the k likeliest bytes only.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--backend", help="Kernels to use, see gpulstm info.")
@_friendly
def sample_command(
    path: str,
    prompt: str,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    backend: str | None,
) -> None:
    """Let a trained character model go on from a prompt."""
    saved = checkpoint.load(checks.path(path, "checkpoint"))
    with _kernels(Settings(backend=backend)):
        # one step at a time is a CPU's work, unless a backend is asked for
        model = restored(saved, dispatch.choose_device("auto") if backend else "cpu")
        stored = saved.record.get("settings")  # without "utf8" in checkpoints of older versions
        utf8 = isinstance(stored, dict) and stored.get("utf8") is True
        written = sample(model, prompt, length, temperature=temperature, top_k=top_k, rng=seed, utf8=utf8)
        click.echo(prompt + written)


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--layer", help="The layer that is wanted, by its name in an ONNX or Keras file of several.")
@click.option("--prefix", default="", help="What its names begin with in a safetensors file of more.")
@click.option("--batch-first", is_flag=True, default=None, help="It takes (B, T, I), where a safetensors file is mute.")
@click.option("--dtype", help="float32 or float64. [default: that of IN, float32 for half types]")
@click.option("--state", is_flag=True, help="An ONNX model takes initial states.")
@click.option("--lengths", is_flag=True, help="An ONNX model takes the lengths of its sequences.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@_friendly
def convert(source: str, target: str, **options: Any) -> None:
    """Write the weights in IN as OUT, in the format that OUT's name ends in.

    IN is a .safetensors, .onnx, .keras, .weights.h5 or .h5 file, or a checkpoint of gpulstm train text; OUT a
    .safetensors, .onnx, .keras or .weights.h5 file. If anything fails, OUT is as it was.
    """
    from . import io

    click.echo(io.convert(source, target, **options))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_friendly
def info(as_json: bool) -> None:
    """Versions, backends and why one is missing, devices, BLAS, threads."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for key, entry in value.items():
                click.echo(f"  {key:<12} {entry}")
        else:
            click.echo(f"{name + ':':<14} {value}")


def _facts() -> dict[str, Any]:
    import numba
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    backends = {name: reason or "available" for name, reason in dispatch.backends().items()}
    return {
        "versions": checkpoint.versions() | {"numba": numba.__version__},
        "platform": platform.platform(),
        "backends": backends,
        "devices": {"cpu": f"{platform.machine()}, {os.cpu_count()} logical cores"},
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "threads": {"gpulstm": get_num_threads(), "OMP_NUM_THREADS": os.getenv("OMP_NUM_THREADS", "not set")},
    }


def _kernels(settings: Settings) -> Any:
    """The context in which the settings' backend is in use."""
    if settings.device != "auto":
        dispatch.check_device(settings.device)
    return nullcontext() if settings.backend is None else dispatch.use_backend(settings.backend)


def _new_folder(out: str | None, stack: ExitStack) -> FolderLock:
    """``out``, or the first of runs/text-1, runs/text-2, ... that is free, held; never one with checkpoints."""
    if out is not None:
        lock = stack.enter_context(FolderLock(checks.path(out, "out")))
        if (found := checkpoint.latest(out)) is not None:
            raise CheckpointError(f"out: {out} holds {found.name} already; expected an empty one, or --resume to go on")
        return lock
    number = 1
    while True:
        folder = RUNS / f"text-{number}"
        if not folder.exists():
            with ExitStack() as attempt, suppress(FolderInUse):
                lock = attempt.enter_context(FolderLock(folder))
                if folder in lock.made:  # no other run was quicker
                    stack.push(attempt.pop_all())
                    return lock
        number += 1


def _to_resume(out: str | None) -> Path:
    """``out``, or the newest run of runs/text-N that holds a checkpoint."""
    if out is None:
        runs = (path for path in RUNS.glob("text-*") if path.name[5:].isdecimal() and checkpoint.latest(path))
        folder = max(runs, key=lambda path: int(path.name[5:]), default=None)
        if folder is None:
            raise CheckpointError(f"resume: expected a run in {RUNS}/text-N, found none")
        return folder
    folder = checks.path(out, "out")
    if not folder.is_dir():
        raise CheckpointError(f"resume: expected a checkpoint in {out}, found none")
    return folder


def _last(folder: Path) -> Checkpoint:
    found = checkpoint.latest(folder)
    if found is None:
        raise CheckpointError(f"resume: expected a checkpoint in {folder}, found none")
    return checkpoint.load(found)


def _merge(given: dict[str, Any], saved: Checkpoint) -> Settings:
    """The checkpoint's settings with those given now, which may not change the model or what it learns."""
    stored = settings_of(saved)
    for name in FIXED:
        if name != "data" and name in given and given[name] != getattr(stored, name):
            raise CheckpointError(
                f"{name}: {given[name]!r} contradicts {getattr(stored, name)!r} of {saved.path}; "
                f"expected the same, or a new --out"
            )
    if {"steps", "epochs", "minutes"} & given.keys():
        stored = replace(stored, steps=None, epochs=None, minutes=None)
    return replace(stored, **given)


def _check_data(corpus: Corpus, saved: Checkpoint) -> None:
    """The data may have moved, but not changed."""
    before = saved.record["config"]["data"]
    if corpus.digest != before:
        raise CheckpointError(
            f"data: {corpus.source} has SHA-256 {corpus.digest:.12}, but {saved.path} was trained on "
            f"{saved.record['settings'].get('source')} with {before:.12}; expected the same files, unchanged"
            + "".join(f" ({note}, which earlier versions did not)" for note in corpus.notes)
        )


def main() -> None:
    """The entry point of the command ``gpulstm``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    sys.unraisablehook = _unraisable
    cli()


def _unraisable(what: Any) -> None:
    """A Ctrl-C in a place from which no exception gets out, such as a callback of a library, still ends the process."""
    if what.exc_type is KeyboardInterrupt:
        os._exit(_INTERRUPTED)
    sys.__unraisablehook__(what)
