"""The settings of every task's run, apart from the task's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from .. import optim
from ..files import FolderLock
from .ends import LONGEST, whole_steps
from .loop import Trainer
from .metrics import FORMATS
from .settings_fields import Choice, Choices, Integer, Real, Text, field
from .task import Task

if TYPE_CHECKING:
    from typing_extensions import Self

LIMITS = ("steps", "epochs", "minutes")
MINUTES = 5.0  # of a run without a limit
DEVICES = ("auto", "cpu", "cuda")
SCHEDULES: dict[str, Callable[[Options], optim.Schedule]] = {
    "constant": lambda options: optim.Constant(options.lr),
    "cosine": lambda options: optim.Cosine(options.lr, warmup=options.warmup),
    "plateau": lambda options: optim.Plateau(options.lr),
}


class Steps(Integer):
    """How many steps a run has."""

    def check(self, value: Any, name: str) -> int:
        return whole_steps(value, name)


@attrs.frozen(kw_only=True)
class Options:
    """The limit of a run, its optimizer, and how it is validated, saved and recorded; a task's settings inherit them.

    The number of sequences in a batch is a task's own: the trainer takes batches as they come.

    Raises:
        ValueError, TypeError: a value out of its range or of another type.
    """

    default_limit: ClassVar[Mapping[str, float]] = {"minutes": MINUTES}
    """Of a run without a limit, by name; the help of that field says so."""

    steps: int | None = field(None, Steps(), "Train for so many updates.")
    epochs: float | None = field(None, Real(LONGEST), "Train for so many passes over the data.")
    minutes: float | None = field(
        None, Real(LONGEST), f"Train for so long (not reproducible bit for bit). [default: {MINUTES:g}]"
    )
    optimizer: str = field("adam", Choice(tuple(optim.OPTIMIZERS)), "How gradients become updates.", fixed=True)
    lr: float = field(3e-3, Real("(0, inf)"), "Learning rate.")
    momentum: float | None = field(None, Real("[0, 1)"), "Of sgd and rmsprop.")
    weight_decay: float | None = field(None, Real("[0, inf)"), "Decoupled with adamw, an L2 penalty otherwise.")
    schedule: str = field("cosine", Choice(tuple(SCHEDULES)), "Of the learning rate.")
    warmup: float = field(0.02, Real("[0, 1)"), "Share of the run in which a cosine schedule rises.")
    clip: float = field(1.0, Real("(0, inf]"), "Largest norm of the gradient.")
    seed: int = field(0, Integer(0), "Of parameters, data order and dropout.", fixed=True)
    validate_every: int = field(200, Integer(0), "In steps; 0 for never.")
    patience: int | None = field(None, Integer(1), "Stop after so many validations without a better loss.")
    save_every: int = field(100, Integer(0), "In steps; 0 for the end only.")
    keep: int = field(3, Integer(1), "Checkpoints that stay.")
    metrics: tuple[str, ...] = field(("jsonl",), Choices(tuple(FORMATS)), "Formats; may be given again.")
    device: str = field("auto", Choice(DEVICES), "Where to compute.")
    backend: str | None = field(None, Text(), "Kernels to use, see gpulstm info. [default: the best available]")

    def __attrs_post_init__(self) -> None:
        if len(self.limits()) > 1:
            raise ValueError(f"limit: expected one of steps, epochs and minutes, got {self.limits()}")

    @classmethod
    def fixed(cls) -> tuple[str, ...]:
        """The fields that a run cannot change when it is resumed."""
        return tuple(each.name for each in attrs.fields(cls) if each.metadata["fixed"])

    @classmethod
    def digested(cls) -> tuple[str, ...]:
        """The fields that say where the data is."""
        return tuple(each.name for each in attrs.fields(cls) if each.metadata["digested"])

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Settings from what :meth:`as_json` gave, maybe by another version, whose further fields are left out."""
        known = {each.name for each in attrs.fields(cls)}
        given = {name: value for name, value in stored.items() if name in known}
        if given.get("clip", 0) is None:
            given["clip"] = math.inf
        return cls(**given)

    def as_json(self) -> dict[str, Any]:
        """A dict that JSON can hold, which knows no infinity: no clipping is None."""
        stored = {each.name: getattr(self, each.name) for each in attrs.fields(type(self))}
        return stored | {"metrics": list(self.metrics), "clip": self.clip if self.clip < math.inf else None}

    def limits(self) -> dict[str, Any]:
        """The limits that are set; by default :attr:`default_limit`."""
        given = {"steps": self.steps, "epochs": self.epochs, "minutes": self.minutes}
        return {name: value for name, value in given.items() if value is not None} or dict(self.default_limit)

    def changed(self, **given: Any) -> Self:
        """These settings with those ``given``; a limit takes the place of all others."""
        cleared: dict[str, Any] = dict.fromkeys(LIMITS) if given.keys() & LIMITS else {}
        return attrs.evolve(self, **(cleared | given))

    def make_optimizer(self) -> optim.Optimizer:
        """The optimizer named, with the options given."""
        options = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        given = {name: value for name, value in options.items() if value is not None}
        return optim.create(self.optimizer, lr=self.lr, **given)

    def make_schedule(self) -> optim.Schedule:
        """The schedule named, around ``lr``."""
        return SCHEDULES[self.schedule](self)

    def make_trainer(
        self,
        task: Task,
        out: str | Path | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        shown: bool = True,
        lock: FolderLock | None = None,
    ) -> Trainer:
        """The trainer of ``task`` that these options ask for; the other arguments are a :class:`Trainer`'s."""
        return Trainer(
            task,
            self.make_optimizer(),
            self.make_schedule(),
            clip=self.clip,
            seed=self.seed,
            out=out,
            save_every=self.save_every,
            keep=self.keep,
            validate_every=self.validate_every,
            patience=self.patience,
            metrics=self.metrics,
            settings=self.as_json() if settings is None else settings,
            shown=shown,
            lock=lock,
        )
