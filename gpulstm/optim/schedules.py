"""Learning rates as functions of progress: constant, a cosine after a warmup, or lower at each plateau."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .. import checks
from .state_checks import check_keys, scalar


class Schedule:
    """A learning rate as a function of progress: ``schedule(progress)``, from 0 at the start to 1 at the end.

    ``update(validation_loss)`` comes after each validation; ``state_dict`` and ``load_state_dict`` are as an
    optimizer's. Only :class:`Plateau` has a use for them.
    """

    def __init__(self, lr: float) -> None:
        self.lr = checks.real(lr, "lr", "[0, inf)")

    def __call__(self, progress: float = 0.0) -> float:
        raise NotImplementedError

    def update(self, validation_loss: float) -> None:
        """Take note of a validation loss.

        Raises:
            ValueError, TypeError: it is NaN, or no number.
        """
        checks.real(scalar(validation_loss), "validation_loss", "[-inf, inf]")

    def state_dict(self) -> dict[str, np.ndarray]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        check_keys(f"state_dict of {type(self).__name__}", state_dict, ())


class Constant(Schedule):
    """Always ``lr``."""

    def __call__(self, progress: float = 0.0) -> float:
        checks.real(progress, "progress", "[0, inf)")
        return self.lr


class Cosine(Schedule):
    """From ``final·lr`` up to ``lr`` in a line over the share ``warmup``, then back down in half a cosine.

    Progress past 1 stays at the end, ``final·lr``.
    """

    def __init__(self, lr: float, warmup: float = 0.02, final: float = 0.05) -> None:
        super().__init__(lr)
        self.warmup = checks.real(warmup, "warmup", "[0, 1)")
        self.final = checks.real(final, "final", "[0, 1]")

    def __call__(self, progress: float = 0.0) -> float:
        progress = min(checks.real(progress, "progress", "[0, inf)"), 1.0)
        if progress < self.warmup:
            height = progress / self.warmup
        else:
            height = (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2
        return self.lr * (self.final + (1 - self.final) * height)


class Plateau(Schedule):
    """``lr``, times ``factor`` whenever more than ``patience`` validations in a row bring nothing better.

    Better is below the best so far by more than ``threshold`` of its size, as in torch's ReduceLROnPlateau. The rate
    does not fall below ``minimum``.
    """

    def __init__(
        self,
        lr: float,
        factor: float = 0.5,
        patience: int = 2,
        threshold: float = 1e-4,
        minimum: float = 0.0,
    ) -> None:
        super().__init__(lr)
        self.factor = checks.real(factor, "factor", "(0, 1)")
        self.patience = checks.integer(patience, "patience", 0)
        self.threshold = checks.real(threshold, "threshold", "[0, inf)")
        self.minimum = checks.real(minimum, "minimum", "[0, inf)")
        self.best = math.inf
        self.bad = 0

    def __call__(self, progress: float = 0.0) -> float:
        checks.real(progress, "progress", "[0, inf)")
        return self.lr

    def update(self, validation_loss: float) -> None:
        super().update(validation_loss)
        margin = self.threshold * abs(self.best) if math.isfinite(self.best) else 0.0
        if validation_loss < self.best - margin:
            self.best, self.bad = float(validation_loss), 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.lr = min(self.lr, max(self.lr * self.factor, self.minimum))
            self.bad = 0

    def state_dict(self) -> dict[str, np.ndarray]:
        """``"lr"`` and ``"best"`` (float64) and ``"bad"`` (int64), 0-d."""
        return {"lr": np.array(self.lr), "best": np.array(self.best), "bad": np.array(self.bad, np.int64)}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        check_keys("state_dict of Plateau", state_dict, ("lr", "best", "bad"))
        lr = checks.real(scalar(state_dict["lr"]), "state_dict['lr']", "[0, inf)")
        best = checks.real(scalar(state_dict["best"]), "state_dict['best']", "[-inf, inf]")
        self.bad = checks.integer(scalar(state_dict["bad"]), "state_dict['bad']", 0)
        self.lr, self.best = lr, best
