"""The optimizers, with torch.optim's maths."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from .. import checks
from .optimizer import Optimizer


class SGD(Optimizer):
    """``v = momentum·v + g; p -= lr·v``, or with Nesterov's look-ahead ``p -= lr·(g + momentum·v)``."""

    rule = "Sgd"

    def __init__(
        self, lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = checks.real(momentum, "momentum", "[0, 1)")
        self.nesterov = checks.flag(nesterov, "nesterov")
        if nesterov and not self.momentum:
            raise ValueError(f"nesterov: expected a momentum above 0 with it, got momentum={momentum!r}")
        self.slots = ("momentum_buffer",) if self.momentum else ()

    def _rates(self) -> tuple[float, ...]:
        return self.lr, self.weight_decay, self.momentum, float(self.nesterov)

    def _update(self, p: np.ndarray, g: np.ndarray, a: np.ndarray, *state: np.ndarray) -> None:
        for v in state:
            v *= self.momentum
            v += g
            if self.nesterov:
                np.multiply(v, self.momentum, out=a)
                a += g
                g = a
            else:
                g = v
        np.multiply(g, self.lr, out=a)
        p -= a


class RMSProp(Optimizer):
    """``s = alpha·s + (1 - alpha)·g²; p -= lr·g/(√s + eps)``; with momentum ``v = momentum·v + g/(√s + eps)``
    takes the quotient's place.
    """

    rule = "RmsProp"

    def __init__(
        self,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.alpha = checks.real(alpha, "alpha", "[0, 1)")
        self.eps = checks.real(eps, "eps", "[0, inf)")
        self.momentum = checks.real(momentum, "momentum", "[0, 1)")
        self.slots = ("square_avg", "momentum_buffer") if self.momentum else ("square_avg",)

    def _rates(self) -> tuple[float, ...]:
        return self.lr, self.weight_decay, self.alpha, self.eps, self.momentum

    def _update(self, p: np.ndarray, g: np.ndarray, a: np.ndarray, *state: np.ndarray) -> None:
        s, *buffer = state
        _average_square(s, g, self.alpha, a)
        np.sqrt(s, out=a)
        a += self.eps
        np.divide(g, a, out=a)
        for v in buffer:
            v *= self.momentum
            v += a
            a[...] = v
        a *= self.lr
        p -= a


class Adam(Optimizer):
    """``m = β₁·m + (1 - β₁)·g; v = β₂·v + (1 - β₂)·g²; p -= lr·m̂/(√v̂ + eps)``, m̂ and v̂ freed of their bias.

    Weight decay is an L2 penalty, part of the gradient; :class:`AdamW` decouples it.
    """

    slots = ("exp_avg", "exp_avg_sq")
    rule = "Adam"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas: expected two numbers in [0, 1), got {checks.shown(betas)}")
        self.betas = (
            checks.real(betas[0], "betas[0]", "[0, 1)"),
            checks.real(betas[1], "betas[1]", "[0, 1)"),
        )
        self.eps = checks.real(eps, "eps", "[0, inf)")

    def _rates(self) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.steps)
        return self.lr * root / (1 - beta1**self.steps), self.weight_decay, 1.0, beta1, beta2, self.eps * root

    def _update(self, p: np.ndarray, g: np.ndarray, a: np.ndarray, *state: np.ndarray) -> None:
        m, v = state
        beta1, beta2 = self.betas
        np.subtract(g, m, out=a)
        a *= 1 - beta1
        m += a
        _average_square(v, g, beta2, a)
        root = math.sqrt(1 - beta2**self.steps)  # moved from v̂ to eps and lr: one pass less
        np.sqrt(v, out=a)
        a += self.eps * root
        np.divide(m, a, out=a)
        a *= self.lr * root / (1 - beta1**self.steps)
        p -= a


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - lr·weight_decay`` before each step."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def _rates(self) -> tuple[float, ...]:
        rate, decay, _, *rest = super()._rates()
        return rate, 0.0, 1 - self.lr * decay, *rest

    def _decay(self, p: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
        p *= 1 - self.lr * self.weight_decay
        return g


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW}


def create(name: str, lr: float, **options: Any) -> Optimizer:
    """The optimizer called ``name`` (a key of :data:`OPTIMIZERS`).

    Raises:
        ValueError: an unknown name.
        TypeError: an option that this optimizer does not have.
    """
    checks.choice(name, "optimizer", OPTIMIZERS)
    known = [option for option in inspect.signature(OPTIMIZERS[name]).parameters if option != "lr"]
    for option in options:
        if option not in known:
            raise TypeError(f"{option}: no option of {name}; expected one of {', '.join(known)}")
    return OPTIMIZERS[name](lr, **options)


def _average_square(average: np.ndarray, g: np.ndarray, decay: float, a: np.ndarray) -> None:
    """``average = decay·average + (1 - decay)·g²`` in place, with scratch ``a``."""
    average *= decay
    np.multiply(g, g, out=a)
    a *= 1 - decay
    average += a
