"""The training loop: any task, truncated backpropagation through time, stoppable and resumable at every step.

With a limit in steps or epochs a run is deterministic: killed at any moment and resumed, it ends with the
same parameters, bit for bit, as one left alone (same machine, thread count and versions). With a limit in
minutes the schedule follows the clock, so that no two runs are the same.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import arrays, checks, optim
from ..data.lanes import Batch
from ..files import FolderLock
from . import checkpoint
from .progress import FORMATS, Log, Progress
from .signals import Noted
from .step import Step
from .stored import Record, check_rng, flatten, naming, nest, under

logger = logging.getLogger("gpulstm")
_ABSURD = 100.0  # times the loss of chance; even at 300 times a good learning rate a run that recovers stays below 5
_LONGEST = "(0, 1e15]"  # of any limit: more would overflow, and no run gets there
_LOOK = 1.0  # seconds between two looks at whether ``out`` is still there


class TrainingDiverged(ArithmeticError):
    """The loss, the gradient or a parameter became NaN, infinite or absurd; the last checkpoint is from before."""


class Batches(Protocol):
    """An endless source of batches whose position can be stored as JSON."""

    @property
    def epoch(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    def next(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task(Protocol):
    """What is trained: a model, its data, what is minimised and what is measured.

    ``config`` (JSON) is what must be the same for a run to be resumed: the model's shape, the data's digest.
    ``model`` has ``params``, ``load_state_dict`` and ``vjp(x, state, lengths=, rng=)`` as ``nn.Sequential``.
    ``validate()`` gives {"loss": ..., metric: ...}; plateau and early stopping follow the loss. A task may have
    ``chance``, the loss of a model that knows nothing: one of a hundred times as much ends the run as diverged.
    """

    metric: str

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def model(self) -> Any: ...
    @property
    def batches(self) -> Batches: ...
    def loss(self, output: Any, targets: Any) -> tuple[float, Any]: ...
    def validate(self) -> dict[str, float]: ...


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
    :func:`gpulstm.train.progress.writers`. settings: JSON that the checkpoint carries for the caller. graph:
    whether steps on a GPU are captured in a CUDA graph (see :class:`gpulstm.train.step.Step`). lock: on ``out``, where
    the caller holds it already; otherwise :meth:`run` and :meth:`save` hold it while they work.

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
        self.patience = None if patience is None else checks.integer(patience, "patience")
        self.clip = math.inf if clip is None else checks.real(clip, "clip", "(0, inf]")
        if patience is not None and validate_every == 0:
            raise ValueError(f"patience: {patience} needs validation, expected validate_every above 0, got 0")
        needed = ("model", "loss", "batches", "metric", "config", *(["validate"] if validate_every else []))
        if missing := [name for name in needed if not hasattr(task, name)]:
            raise TypeError(f"task: expected one with {', '.join(needed)}, got {type(task).__name__} without {missing}")
        if not isinstance(optimizer, optim.Optimizer):
            raise TypeError(f"optimizer: expected one of gpulstm.optim, got {checks.shown(optimizer)}")
        if not isinstance(schedule, (optim.Schedule, type(None))):
            raise TypeError(f"schedule: expected None or one of gpulstm.optim, got {checks.shown(schedule)}")
        if not isinstance(lock, (FolderLock, type(None))):
            raise TypeError(f"lock: expected None or a gpulstm.files.FolderLock, got {checks.shown(lock)}")
        self.task, self.optimizer = task, optimizer
        chance = getattr(task, "chance", None)
        self._absurd = math.inf if chance is None else _ABSURD * checks.real(chance, "task: chance", "(0, inf]")
        self.schedule = optim.Constant(optimizer.lr) if schedule is None else schedule
        self.out = None if out is None else checks.path(out, "out")
        self.metrics = [checks.choice(name, "metrics", FORMATS) for name in checks.texts(metrics, "metrics")]
        self.settings = {} if settings is None else dict(checks.named(settings, "settings", "JSON values"))
        self.shown = checks.flag(shown, "shown")
        self.rng = arrays.generator(seed, "seed")
        self._graph, self._lock = checks.flag(graph, "graph"), lock
        self._update = Step(task.model, task.loss, optimizer, self.clip, graph)
        self.step = 0
        self.state: Any = None  # of the recurrent layers, carried from window to window
        self.loss = math.nan
        self.validation: dict[str, float] = {}
        self._best: float | None = None
        self._best_step = self._waited = 0
        self._elapsed = 0.0
        self._timed_tokens, self._timed_seconds = 0, 0.0
        self._saved: int | None = None

    def run(self, *, steps: int | None = None, epochs: float | None = None, minutes: float | None = None) -> Result:
        """Train up to a limit, counted from the run's very beginning, and say how it ended.

        Ctrl-C or SIGTERM finishes the step, saves and returns "interrupted" or "terminated"; a second one ends at
        once. The clock of ``minutes``, of the schedule too, begins when the first step of the process has ended: what
        it takes to compile kernels is not counted, nor is the first validation.

        Raises:
            ValueError, TypeError: not exactly one limit, or one that is no positive number; steps that are not whole.
            FolderInUse: another run writes to ``out``.
            TrainingDiverged: a loss, gradient or parameter that is not finite, of which no update is made, or a loss
                beyond all sense.
            CheckpointError, MetricsError: a checkpoint, or a file of metrics, could not be written.
        """
        limit = _Limit.of(steps, epochs, minutes, self.task.batches.steps_per_epoch)
        validations = ["validation_loss", f"validation_{self.task.metric}"]
        columns = [
            "step",
            "epoch",
            "loss",
            "gradient_norm",
            "lr",
            "tokens_per_second",
            "seconds",
            *validations,
        ]
        with ExitStack() as stack:
            stack.enter_context(self._holding())
            log = Log(self.out, columns)
            if self.out is not None:
                checkpoint.clear(self.out)
                if self._saved is None:  # so that --resume works from here on, and a full disk shows at once
                    self.save()
                stack.enter_context(closing(log))
                log.open(self.metrics, self.step)
            bar = stack.enter_context(
                closing(
                    Progress(
                        steps=limit.steps,
                        minutes=limit.minutes,
                        step=self.step,
                        elapsed=self._elapsed,
                        shown=self.shown,
                    )
                )
            )
            stop = stack.enter_context(Noted())
            bar.wait("compiling kernels")
            begun: float | None = None  # the clock stands still until the first step has ended
            first, validated, looked = self.step, False, self._elapsed
            reason = "finished"
            while True:
                if begun is not None:
                    self._elapsed = time.perf_counter() - begun
                if stop.reason is not None or limit.progress(self.step, self._elapsed) >= 1:
                    break
                if self.patience is not None and self._waited >= self.patience:
                    reason = "stopped early"
                    break
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
                shown = {"loss": self.loss, "tokens/s": row["tokens_per_second"]}
                if self.validation:
                    shown[self.task.metric] = self.validation[self.task.metric]
                bar.update(self.step, self._elapsed, shown)
                if self._elapsed - looked >= _LOOK:
                    looked = self._elapsed
                    self._look_after_out(log)
                best = self.patience is not None and self._best_step == self.step
                if best or (self.save_every and self.step % self.save_every == 0):
                    self._save_with(log)
            self._save_with(log)
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

    def save(self) -> Path:
        """Write a checkpoint of this step to ``out``, from which :meth:`resume` goes on exactly.

        Raises:
            ValueError: there is no ``out``.
            TrainingDiverged: a parameter is not finite.
            CheckpointError: it could not be written.
        """
        if self.out is None:
            raise ValueError("out: None; expected a directory to save to")
        with self._holding():
            return self._save()

    def _save(self) -> Path:
        params = {name: arrays.on_host(value, name) for name, value in self.task.model.params.items()}
        for name, value in params.items():
            if not np.isfinite(value).all():
                raise TrainingDiverged(self._diverged(f"parameter {name!r} is not finite"))
        training = {f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()}
        training |= {f"schedule.{name}": value for name, value in self.schedule.state_dict().items()}
        training |= flatten(self.state, "state")
        record = {
            "config": dict(self.task.config),
            "settings": self.settings,
            "rng": self.rng.bit_generator.state,
            "data": self.task.batches.state_dict(),
            "early_stopping": {"best": self._best, "best_step": self._best_step, "waited": self._waited},
            "elapsed": self._elapsed,
            "timed": [self._timed_tokens, self._timed_seconds],
            "loss": _finite(self.loss),
            "validation": {name: _finite(value) for name, value in self.validation.items()},
        }
        best = [] if self.patience is None or self._best is None else [self._best_step]
        assert self.out is not None
        path = checkpoint.save(self.out, self.step, params, training, record, keep=self.keep, protect=best)
        self._saved = self.step
        return path

    def resume(self, saved: checkpoint.Checkpoint, *, schedule: bool = True) -> None:
        """Go on from ``saved``: parameters, optimizer, dropout's generator, data position, carried state, and
        unless ``schedule`` is False what the schedule knows (a plateau's rate and best loss).

        Raises:
            CheckpointError: it is of another model, other data or another optimizer.
        """
        if not isinstance(saved, checkpoint.Checkpoint):
            raise TypeError(f"saved: expected a gpulstm.train.Checkpoint, got {checks.shown(saved)}")
        checks.flag(schedule, "schedule")
        record_file = saved.path / checkpoint.RECORD
        with naming(record_file):
            record = Record.of(saved.record, self.task.metric)
            check_rng(record.rng, self.rng)
        for name, value in self.task.config.items():
            found = record.config.get(name)
            if found != value:
                raise checkpoint.CheckpointError(
                    f"{record_file}: made with {name} {checks.shown(found)}, expected {value!r}"
                )
        training_file = saved.path / checkpoint.TRAINING
        with naming(training_file):
            state = nest(under(saved.training, "state"))
        parts: list[tuple[Path, str, Any, Any]] = [
            (record_file, "data", self.task.batches, record.data),
            (saved.path / checkpoint.MODEL, "model", self.task.model, saved.model),
            (training_file, "optimizer", self.optimizer, under(saved.training, "optimizer.")),
        ]
        if schedule:
            parts.append((training_file, "schedule", self.schedule, under(saved.training, "schedule.")))
        for file, name, part, value in parts:
            with naming(file, f"does not fit this run: {name}: "):
                part.load_state_dict(value)
        with naming(training_file, "does not fit this run: optimizer: "):
            self.optimizer.check_state(self.task.model.params)
        self.rng.bit_generator.state = record.rng
        self._update = Step(self.task.model, self.task.loss, self.optimizer, self.clip, self._graph)
        self.state = self._loaded(state)
        self.step = self._saved = saved.step
        self.loss, self.validation = record.loss, record.validation
        self._best, self._best_step, self._waited = record.best, record.best_step, record.waited
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
        if not math.isfinite(loss):
            raise TrainingDiverged(self._diverged(f"the loss is {loss}"))
        if not math.isfinite(norm):
            raise TrainingDiverged(self._diverged(f"the norm of the gradient is {norm}, the loss {loss:.4g}"))
        self._check_sense("loss", loss)
        self.state, self.loss = outcome.state, loss
        self.step += 1
        seconds = time.perf_counter() - started
        if warm:
            self._timed_tokens += batch.tokens
            self._timed_seconds += seconds
        return {
            "step": self.step,
            "epoch": self.task.batches.epoch,
            "loss": self.loss,
            "gradient_norm": float(norm),
            "lr": float(self.optimizer.lr),
            "tokens_per_second": round(batch.tokens / seconds, 1),
        }

    def _validate(self) -> dict[str, float]:
        self.validation = self.task.validate()
        loss = self.validation["loss"]
        if not math.isfinite(loss):
            raise TrainingDiverged(self._diverged(f"the validation loss is {loss}"))
        self._check_sense("validation loss", loss)
        self.schedule.update(loss)
        if self._best is None or loss < self._best:
            self._best, self._best_step, self._waited = loss, self.step, 0
        else:
            self._waited += 1
        return {f"validation_{name}": value for name, value in self.validation.items() if math.isfinite(value)}

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """In the block nobody else writes to ``out``."""
        if self.out is None or self._lock is not None:
            yield
            return
        with FolderLock(self.out) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def _save_with(self, log: Log) -> None:
        """A checkpoint of this step, unless there is one; the metrics up to it are on the disk before it is."""
        if self.out is None:
            return
        self._look_after_out(log)
        if self._saved != self.step:
            log.flush()
            self.save()

    def _look_after_out(self, log: Log) -> None:
        """Make ``out`` anew, and say so, if it was removed since: what is written to it then goes nowhere."""
        if self.out is None or self._lock is None or not self._lock.lost():
            return
        self._lock.take()
        log.open(self.metrics, self.step)
        if self._saved is None or not checkpoint.path_of(self.out, self._saved).is_dir():  # more is gone than the lock
            self.save()
            logger.warning(
                "%s was removed or renamed while training: it was made anew at step %d, without what was in it",
                self.out,
                self.step,
            )

    def _result_path(self) -> Path | None:
        if self.out is None:
            return None
        best = checkpoint.path_of(self.out, self._best_step)
        if self.patience is not None and self._best is not None and best.is_dir():
            return best
        return checkpoint.path_of(self.out, self.step)

    def _check_sense(self, name: str, loss: float) -> None:
        if loss > self._absurd:
            limit = f"at most {self._absurd:.4g}, {_ABSURD:.0f} times that of a model that knows nothing"
            raise TrainingDiverged(self._diverged(f"the {name} is {loss:.4g}", limit))

    def _diverged(self, cause: str, expected: str = "a finite value") -> str:
        kept = None if self.out is None else checkpoint.latest(self.out)
        saved = f"the last good checkpoint is {kept}" if kept else "nothing was saved"
        return (
            f"training diverged after step {self.step}: {cause}, expected {expected} (learning rate "
            f"{self.optimizer.lr:.3g}, loss before {self.loss:.4g}); {saved}; "
            f"go on with a lower learning rate or a smaller clip"
        )


@dataclass(frozen=True)
class _Limit:
    steps: int | None
    minutes: float | None

    @classmethod
    def of(cls, steps: int | None, epochs: float | None, minutes: float | None, steps_per_epoch: int) -> _Limit:
        given = {n: v for n, v in (("steps", steps), ("epochs", epochs), ("minutes", minutes)) if v is not None}
        if len(given) != 1:
            raise ValueError(f"limit: expected one of steps, epochs and minutes, got {given or 'none'}")
        if steps is not None:
            steps = checks.integer(steps, "steps")
            checks.real(steps, "steps", _LONGEST)
        if epochs is not None:
            epochs = checks.real(epochs, "epochs", _LONGEST)
            steps = max(1, round(epochs * steps_per_epoch))
        if minutes is not None:
            minutes = checks.real(minutes, "minutes", _LONGEST)
        return cls(steps, minutes)

    def progress(self, step: int, elapsed: float) -> float:
        """The share of the run that is over; 1 or more at its end."""
        if self.minutes is not None:
            return elapsed / (60 * self.minutes)
        assert self.steps is not None
        return step / self.steps


def _finite(value: float) -> float | None:
    """A number as JSON can hold it, which knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
