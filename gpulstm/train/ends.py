"""When a run ends: at its limit, when validations bring nothing better, or because it has diverged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import checks

_ABSURD = 100.0  # times the loss of chance; even at 300 times a good learning rate a run that recovers stays below 5
LONGEST = "(0, 1e15]"  # of any limit: more would overflow, and no run gets there


class TrainingDiverged(ArithmeticError):
    """The loss, the gradient or a parameter became NaN, infinite or absurd; the last checkpoint is from before."""


def whole_steps(value: Any, name: str) -> int:
    """``value``, how many steps a run may have.

    Raises:
        ValueError, TypeError: it is no integer, or outside :data:`LONGEST`.
    """
    steps = checks.integer(value, name)
    checks.real(steps, name, LONGEST)
    return steps


@dataclass(frozen=True)
class Limit:
    """How long a run is: in steps, or in minutes of training."""

    steps: int | None
    minutes: float | None

    @classmethod
    def of(cls, steps: int | None, epochs: float | None, minutes: float | None, steps_per_epoch: int) -> Limit:
        """
        Raises:
            ValueError, TypeError: not exactly one limit, or one out of its range.
        """
        given = {n: v for n, v in (("steps", steps), ("epochs", epochs), ("minutes", minutes)) if v is not None}
        if len(given) != 1:
            raise ValueError(f"limit: expected one of steps, epochs and minutes, got {given or 'none'}")
        if steps is not None:
            return cls(whole_steps(steps, "steps"), None)
        if epochs is not None:
            return cls(max(1, round(checks.real(epochs, "epochs", LONGEST) * steps_per_epoch)), None)
        return cls(None, checks.real(minutes, "minutes", LONGEST))

    def progress(self, step: int, elapsed: float) -> float:
        """The share of the run that is over after ``elapsed`` seconds; 1 or more at its end."""
        if self.minutes is not None:
            return elapsed / (60 * self.minutes)
        assert self.steps is not None
        return step / self.steps


class EarlyStopping:
    """Follows the validation loss: which step had the best, and how many validations have come since.

    Args:
        patience: validations without a better loss after which the run is over; None for a run that never stops early.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: float | None = None
        self.best_step = self.waited = 0

    def update(self, loss: float, step: int) -> None:
        """Record the loss of the validation at ``step``."""
        if self.best is None or loss < self.best:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        """Whether the run should stop."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def protected(self) -> int | None:
        """The step whose checkpoint must stay: the best one, where the run ends with that."""
        return None if self.patience is None or self.best is None else self.best_step

    def state_dict(self) -> dict[str, Any]:
        """What is known, as JSON."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave, whose fields have been checked."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]


def divergence_cause(name: str, loss: float, norm: float, chance: float | None) -> tuple[str, str] | None:
    """Why training that has reached ``loss`` (``name`` says which) has diverged, and what was expected; None if not.

    ``norm`` is the gradient's, 0 where there is none; ``chance``: see :attr:`gpulstm.train.Task.chance`.
    """
    if not math.isfinite(loss):
        return f"the {name} is {loss}", "a finite value"
    if not math.isfinite(norm):
        return f"the norm of the gradient is {norm}, the {name} {loss:.4g}", "a finite value"
    if chance is not None and loss > (limit := _ABSURD * chance):
        expected = f"at most {limit:.4g}, {_ABSURD:.0f} times that of a model that knows nothing"
        return f"the {name} is {loss:.4g}", expected
    return None
