"""The training loop: any task, truncated backpropagation through time, stoppable and resumable at every step.

With a limit in steps or epochs a run is deterministic: killed at any moment and resumed, it ends with the
same parameters, bit for bit, as one left alone (same machine, thread count and versions). With a limit in
minutes the schedule follows the clock, so that no two runs are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks, optim
from ..files import FolderLock
from . import checkpoint, stored
from .ends import EarlyStopping, Limit, TrainingDiverged, divergence_cause
from .folder import RunFolder
from .metrics import FORMATS, Log
from .progress import Progress
from .signals import StopSignals
from .task import Task, checked
from .update import Update

_LOOK = 1.0  # seconds between two looks at whether ``out`` is still there


@dataclass(frozen=True)
class Result:
    """How a run ended: ``reason`` is "finished", "stopped early", "interrupted" (Ctrl-C) or "terminated" (SIGTERM).

    ``checkpoint`` is the last one, or the best validated one with early stopping (None without ``out``); ``seconds``
    leaves out each process's first step and first validation, which compile, ``tokens_per_second`` all but steps too.
    """

    reason: str
    step: int
    epoch: int
    seconds: float
    tokens_per_second: float
    loss: float
    validation: dict[str, float]
    checkpoint: Path | None


class Trainer:
    """Trains ``task`` with ``optimizer``, whose ``lr`` follows ``schedule`` (None leaves it as it is).

    clip: largest norm of the gradient, or None. seed: of dropout. out: directory of checkpoints and metrics
    (None writes nothing). save_every, validate_every: in steps, 0 for never (with ``out`` the first and the
    last state are saved in any case). keep: how many checkpoints stay. patience: validations without a better
    loss after which training stops; the best checkpoint then stays too. metrics: formats, see
    :func:`gpulstm.train.metrics.writers`. settings: JSON that the checkpoint carries for the caller. graph:
    whether steps on a GPU are captured in a CUDA graph (see :class:`gpulstm.train.update.Update`). lock: on ``out``,
    where the caller holds it already; otherwise :meth:`run` and :meth:`save` hold it while they work.

    Raises:
        ValueError: an argument out of its range.
        TypeError: an argument of another type; a task without what one has.
    """

    def __init__(
        self,
        task: Task,
        optimizer: optim.Optimizer,
        schedule: optim.Schedule | None = None,
        *,
        clip: float | None = 1.0,
        seed: int = 0,
        out: str | Path | None = None,
        save_every: int = 0,
        keep: int = 3,
        validate_every: int = 0,
        patience: int | None = None,
        metrics: Sequence[str] = ("jsonl",),
        settings: Mapping[str, Any] | None = None,
        shown: bool = True,
        graph: bool = True,
        lock: FolderLock | None = None,
    ) -> None:
        self.save_every = checks.integer(save_every, "save_every", 0)
        self.validate_every = checks.integer(validate_every, "validate_every", 0)
        self.keep = checks.integer(keep, "keep")
        self.early_stopping = EarlyStopping(None if patience is None else checks.integer(patience, "patience"))
        self.clip = math.inf if clip is None else checks.real(clip, "clip", "(0, inf]")
        if patience is not None and validate_every == 0:
            raise ValueError(f"patience: {patience} needs validation, expected validate_every above 0, got 0")
        self.task = checked(task, validated=validate_every > 0)
        checks.text(task.unit, "task: unit")
        if not isinstance(optimizer, optim.Optimizer):
            raise TypeError(f"optimizer: expected one of gpulstm.optim, got {checks.shown(optimizer)}")
        if not isinstance(schedule, (optim.Schedule, type(None))):
            raise TypeError(f"schedule: expected None or one of gpulstm.optim, got {checks.shown(schedule)}")
        if not isinstance(lock, (FolderLock, type(None))):
            raise TypeError(f"lock: expected None or a gpulstm.files.FolderLock, got {checks.shown(lock)}")
        self.optimizer = optimizer
        self._chance = None if task.chance is None else checks.real(task.chance, "task: chance", "(0, inf]")
        self.schedule = optim.Constant(optimizer.lr) if schedule is None else schedule
        formats = [checks.choice(name, "metrics", FORMATS) for name in checks.texts(metrics, "metrics")]
        self.folder = None if out is None else RunFolder(checks.path(out, "out"), formats, lock)
        self.settings = {} if settings is None else dict(checks.named(settings, "settings", "JSON values"))
        self.shown = checks.flag(shown, "shown")
        self.rng = arrays.generator(seed, "seed")
        self._graph = checks.flag(graph, "graph")
        self._update = Update(task, optimizer, self.clip, graph)
        self.step = 0
        self.state: Any = None  # of the recurrent layers, carried from window to window
        self.loss = math.nan
        self.validation: dict[str, float] = {}
        self._elapsed = 0.0
        self._timed_tokens, self._timed_seconds = 0, 0.0

    def run(self, *, steps: int | None = None, epochs: float | None = None, minutes: float | None = None) -> Result:
        """Train up to a limit, counted from the run's very beginning, and say how it ended.

        Ctrl-C or SIGTERM finishes the step, saves and returns "interrupted" or "terminated"; a second one ends at
        once. The clock of ``minutes``, of the schedule too, begins when the first step of the process has ended: what
        it takes to compile kernels is not counted, nor is the first validation.

        Raises:
            ValueError, TypeError: not exactly one limit, or one that is no positive number; steps that are not whole.
            FolderInUse: another run writes to ``out``.
            TrainingDiverged: a loss, gradient or parameter that is not finite, of which no update is made, or a loss
                a hundred times that of chance.
            CheckpointError, MetricsError: a checkpoint, or a file of metrics, could not be written.
        """
        limit = Limit.of(steps, epochs, minutes, self.task.batches.steps_per_epoch)
        with ExitStack() as stack:
            log = Log(None if self.folder is None else self.folder.path, self._columns())
            if self.folder is not None:
                stack.enter_context(self.folder.held())
                stack.enter_context(closing(log))
                self.folder.open(log, self.step, self._save)
            bar = Progress(
                steps=limit.steps, minutes=limit.minutes, step=self.step, elapsed=self._elapsed, shown=self.shown
            )
            stack.enter_context(closing(bar))
            stop = stack.enter_context(StopSignals())
            reason = self._train(limit, log, bar, stop)
            if self.folder is not None:
                self.folder.save_with(log, self.step, self._save)
            reason = stop.reason or reason  # which may have come in the last step, or while it was saved
        return Result(
            reason,
            self.step,
            self.task.batches.epoch,
            self._elapsed,
            self._timed_tokens / self._timed_seconds if self._timed_seconds else 0.0,
            self.loss,
            dict(self.validation),
            self._result_path(),
        )

    def _columns(self) -> list[str]:
        """Of the metrics."""
        measured = ["epoch", "loss", "gradient_norm", "lr", "tokens_per_second", "seconds"]
        return ["step", *measured, "validation_loss", f"validation_{self.task.metric}"]

    def _train(self, limit: Limit, log: Log, bar: Progress, stop: StopSignals) -> str:
        """Update the model until the limit or a signal ("finished"), or until early stopping ("stopped early")."""
        bar.wait("compiling kernels")
        begun: float | None = None  # the clock does not run until the first step has ended
        first, validated, looked = self.step, False, self._elapsed
        while True:
            if begun is not None:
                self._elapsed = time.perf_counter() - begun
            if stop.reason is not None or limit.progress(self.step, self._elapsed) >= 1:
                return "finished"
            if self.early_stopping.over:
                return "stopped early"
            row = self._advance(limit.progress(self.step + 1, self._elapsed), warm=self.step > first)
            now = time.perf_counter()
            begun = now - self._elapsed if begun is None else begun
            self._elapsed = row["seconds"] = now - begun
            if self.validate_every and self.step % self.validate_every == 0:
                bar.wait("validating" if validated else "validating, compiling kernels")
                row |= self._validate()
                if not validated:
                    begun += time.perf_counter() - now
                    validated = True
            log.write(row)
            shown = {"loss": self.loss, f"{self.task.unit}/s": row["tokens_per_second"]}
            if self.validation:
                shown[self.task.metric] = self.validation[self.task.metric]
            bar.update(self.step, self._elapsed, shown)
            if self.folder is None:
                continue
            if self._elapsed - looked >= _LOOK:
                looked = self._elapsed
                self.folder.recreate_if_removed(log, self.step, self._save)
            if self.early_stopping.protected == self.step or (self.save_every and self.step % self.save_every == 0):
                self.folder.save_with(log, self.step, self._save)

    def save(self) -> Path:
        """Write a checkpoint of this step to ``out``, from which :meth:`resume` continues exactly.

        Raises:
            ValueError: there is no ``out``.
            TrainingDiverged: a parameter is not finite.
            CheckpointError: it could not be written.
        """
        if self.folder is None:
            raise ValueError("out: None; expected a directory to save to")
        return self.folder.save(self.step, self._save)

    def _save(self) -> Path:
        params = {name: arrays.on_host(value, name) for name, value in self.task.model.state_dict().items()}
        for name, value in params.items():
            if not np.isfinite(value).all():
                raise self._diverged(f"parameter {name!r} is not finite")
        record = stored.Record(
            config=dict(self.task.config),
            rng=self.rng.bit_generator.state,
            data=self.task.batches.state_dict(),
            early_stopping=self.early_stopping.state_dict(),
            elapsed=self._elapsed,
            timed=(self._timed_tokens, self._timed_seconds),
            loss=self.loss,
            validation=self.validation,
        )
        written = record.as_json() | {"settings": self.settings}
        training = stored.training(self.optimizer, self.schedule, self.state)
        best = self.early_stopping.protected
        protect = [] if best is None else [best]
        assert self.folder is not None
        return checkpoint.save(self.folder.path, self.step, params, training, written, keep=self.keep, protect=protect)

    def resume(self, saved: checkpoint.Checkpoint, *, schedule: bool = True) -> None:
        """Continue from ``saved``: parameters, optimizer, dropout's generator, data position, carried state, and
        unless ``schedule`` is False what the schedule knows (a plateau's rate and best loss).

        Raises:
            CheckpointError: it is of another model, other data or another optimizer.
        """
        if not isinstance(saved, checkpoint.Checkpoint):
            raise TypeError(f"saved: expected a gpulstm.train.Checkpoint, got {checks.shown(saved)}")
        checks.flag(schedule, "schedule")
        record, state = stored.read(saved, self.task, self.rng)
        stored.load_parts(saved, record, self.task, self.optimizer, self.schedule if schedule else None)
        self.rng.bit_generator.state = record.rng
        self._update = Update(self.task, self.optimizer, self.clip, self._graph)
        self.state = self._loaded(state)
        self.step = saved.step
        if self.folder is not None:
            self.folder.resumed(saved.step)
        self.loss, self.validation = record.loss, record.validation
        self.early_stopping.load_state_dict(record.early_stopping)
        self._elapsed = record.elapsed
        self._timed_tokens, self._timed_seconds = record.timed

    def _loaded(self, state: Any) -> Any:
        """A state read from a file, where the model is."""
        if state is None:
            return None
        if isinstance(state, tuple):
            return tuple(self._loaded(part) for part in state)
        return arrays.library(self.task.model.device).from_host(state)

    def _advance(self, progress: float, warm: bool) -> dict[str, float]:
        """One update; what it was like."""
        started = time.perf_counter()
        self.optimizer.lr = self.schedule(progress)
        batch = self.task.batches.next()
        state = None if batch.fresh else self.state
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below, with a message that helps
            outcome = self._update(batch, state, self.rng)
        loss, norm = float(outcome.loss), float(outcome.norm)
        self._check_loss("loss", loss, norm)
        self.state, self.loss = outcome.state, loss
        self.step += 1
        seconds, tokens = time.perf_counter() - started, batch.tokens or 0
        if warm:
            self._timed_tokens += tokens
            self._timed_seconds += seconds
        return {
            "step": self.step,
            "epoch": self.task.batches.epoch,
            "loss": self.loss,
            "gradient_norm": norm,
            "lr": float(self.optimizer.lr),
            "tokens_per_second": round(tokens / seconds, 1),
        }

    def _validate(self) -> dict[str, float]:
        self.validation = self.task.validate()
        loss = self.validation["loss"]
        self._check_loss("validation loss", loss)
        self.schedule.update(loss)
        self.early_stopping.update(loss, self.step)
        return {f"validation_{name}": value for name, value in self.validation.items() if math.isfinite(value)}

    def _result_path(self) -> Path | None:
        if self.folder is None:
            return None
        best = self.early_stopping.protected
        if best is not None and (path := checkpoint.path_of(self.folder.path, best)).is_dir():
            return path
        return checkpoint.path_of(self.folder.path, self.step)

    def _check_loss(self, name: str, loss: float, norm: float = 0.0) -> None:
        if (found := divergence_cause(name, loss, norm, self._chance)) is not None:
            raise self._diverged(*found)

    def _diverged(self, cause: str, expected: str = "a finite value") -> TrainingDiverged:
        last = None if self.folder is None else checkpoint.latest(self.folder.path)
        saved = f"the last good checkpoint is {last}" if last else "nothing was saved"
        return TrainingDiverged(
            f"training diverged after step {self.step}: {cause}, expected {expected} (learning rate "
            f"{self.optimizer.lr:.3g}, loss before {self.loss:.4g}); {saved}; "
            f"go on with a lower learning rate or a smaller clip"
        )
