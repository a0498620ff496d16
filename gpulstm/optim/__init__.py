"""Optimizers, gradient clipping and learning-rate schedules over dicts of arrays, with torch.optim's maths.

An update runs over blocks that fit a core's cache: a parameter, its gradient and its moments cross memory
once, and the scratch is two blocks, whatever the size of the model. Every operation is elementwise and
correctly rounded, so a state that is saved and loaded goes on bit for bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import arrays, checks

Params = dict[str, np.ndarray]

BLOCK = 32768  # elements: 128 KiB of float32


def _blocks(*operands: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """1-D blocks of arrays of one shape, in any memory layout; all but the second may be written to."""
    access = [["readonly"] if i == 1 else ["readwrite"] for i in range(len(operands))]
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    with np.nditer(operands, flags, access, buffersize=BLOCK) as blocks:  # type: ignore[arg-type]
        yield from blocks


class Optimizer:
    """Base of all optimizers: ``step(params, grads)`` updates the arrays of ``params`` in place.

    ``lr`` may be set between steps, as a schedule does; ``steps`` counts the steps taken. The state, one
    array a parameter and slot, starts as zeros on the first step.

    Raises:
        ValueError: a hyper-parameter out of its range.
        TypeError: a hyper-parameter that is no number.
    """

    slots: tuple[str, ...] = ()
    rule: str
    """The struct of ``optimizer.cu`` that does on a GPU what ``_update`` does here."""

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr = lr
        self.weight_decay = checks.real(weight_decay, "weight_decay", "[0, inf)")
        self.steps = 0
        self._state: dict[str, tuple[Any, ...]] = {}
        self._on_device: Any = None  # this step's rates, where a GPU's kernels read them

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = checks.real(value, "lr", "[0, inf)")

    def step(self, params: Params, grads: Mapping[str, np.ndarray], finite: Sequence[Any] = ()) -> None:
        """Update ``params`` in place from ``grads``, which are only read; nothing changes if they do not fit.

        Args:
            params: float32 or float64 arrays by name, on one device.
            grads: arrays of the same names, shapes and dtypes there.
            finite: up to two numbers, such as the loss and the norm from :func:`clip_by_norm`: where one of them is
                not finite, params stay as they are. On a GPU 0-d float64 arrays there, which nothing waits for.

        Raises:
            ValueError: keys, shapes, or the state's shapes differ, or a parameter is read-only.
            TypeError: a value that is no float32 or float64 array, or a gradient of another dtype.
        """
        self._check(params, grads)
        _check_finite(finite)
        self.advance(params)
        self.apply(params, grads, finite)

    def advance(self, params: Params) -> None:
        """The first half of :meth:`step`: count it, and put its rates where the second half reads them."""
        device = arrays.device_of(next(iter(params.values()), None))
        library = arrays.library(device)
        if not self._state and self.slots:
            self._state = {
                name: tuple(library.zeros(value.shape, value.dtype) for _ in self.slots)
                for name, value in params.items()
            }
        for name, state in self._state.items():
            if any(arrays.device_of(value) != device for value in state):  # loaded, or the model has moved
                self._state[name] = tuple(library.from_host(arrays.on_host(value, name)) for value in state)
        self.steps += 1
        if device == "cuda":
            rates = np.array(self._rates(), np.float64)
            if self._on_device is None:
                self._on_device = library.from_host(rates)
            else:
                library.assign(self._on_device, rates)

    def apply(self, params: Params, grads: Mapping[str, np.ndarray], finite: Sequence[Any] = ()) -> None:
        """The second half: the update. On a GPU it only launches, so that a CUDA graph can hold it."""
        if arrays.device_of(next(iter(params.values()), None)) == "cuda":
            update, optional = arrays.library("cuda").update, bool(getattr(self, "momentum", 0.0))
            for name, param in params.items():
                update(self.rule, param, grads[name], self._state.get(name, ()), self._on_device, finite, optional)
            return
        if not all(map(math.isfinite, finite)):
            return
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for name, param in params.items():
                scratch = arrays.empty((2, min(BLOCK, param.size)), param.dtype)
                for p, g, *state in _blocks(param, grads[name], *self._state.get(name, ())):
                    a, b = scratch[:, : p.size]
                    self._update(p, self._decay(p, g, b), a, *state)

    def _rates(self) -> tuple[float, ...]:
        """The numbers of this step that ``rule`` reads."""
        raise NotImplementedError

    def _update(self, p: np.ndarray, g: np.ndarray, a: np.ndarray, *state: np.ndarray) -> None:
        """Step ``p`` and ``state`` by the gradient ``g``; ``a`` is scratch: 1-D blocks of one size."""
        raise NotImplementedError

    def _decay(self, p: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The gradient with weight decay as an L2 penalty, in the scratch ``b`` if it is not ``g`` itself."""
        if not self.weight_decay:
            return g
        np.multiply(p, self.weight_decay, out=b)
        b += g
        return b

    def _check(self, params: Params, grads: Mapping[str, np.ndarray]) -> None:
        checks.named(params, "params")
        _same_keys("grads", grads, params)
        self.check_state(params)
        for name, param in params.items():
            _check_array(param, f"params[{name!r}]", writeable=True)
            _check_array(grads[name], f"grads[{name!r}]")
            device = arrays.device_of(param)
            checks.array(grads[name], f"grads[{name!r}]", param.dtype, param.shape, device=device)

    def check_state(self, params: Params) -> None:
        """Whether the state, if there is one yet, is that of ``params``.

        Raises:
            ValueError: it is of other names, shapes or dtypes.
        """
        if self._state:
            _same_keys("params", params, self._state)
        for name, param in params.items():
            for slot, value in zip(self.slots, self._state.get(name, ()), strict=False):
                if (value.shape, value.dtype) != (param.shape, param.dtype):
                    raise ValueError(
                        f"params[{name!r}]: expected {value.dtype} of shape {value.shape}, as {slot} of the "
                        f"optimizer, got {param.dtype} of shape {param.shape}"
                    )

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the state: ``"<slot>/<parameter>"``, and 0-d ``"step"`` (int64), ``"lr"`` (float64)."""
        result = {"step": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64)}
        for i, slot in enumerate(self.slots):
            result |= {f"{slot}/{name}": arrays.copy(arrays.on_host(s[i], name)) for name, s in self._state.items()}
        return result

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Take over a copy of :meth:`state_dict`; nothing changes if anything does not fit.

        Raises:
            ValueError: keys missing or left over, as of another kind of optimizer, or shapes that differ.
            TypeError: a value of the wrong dtype.
        """
        checks.named(state_dict, "state_dict")
        names = list(dict.fromkeys(key.split("/", 1)[1] for key in state_dict if "/" in key))
        keys = ["step", "lr", *(f"{slot}/{name}" for slot in self.slots for name in names)]
        _same_keys(f"state_dict of {type(self).__name__}", state_dict, keys)
        steps = checks.integer(_scalar(state_dict["step"]), "state_dict['step']", 0)
        lr = checks.real(_scalar(state_dict["lr"]), "state_dict['lr']", "[0, inf)")
        state = {}
        for name in names:
            values = [(f"state_dict['{slot}/{name}']", state_dict[f"{slot}/{name}"]) for slot in self.slots]
            for key, value in values:
                _check_array(value, key)
                first = values[0][1]
                checks.array(value, key, first.dtype, first.shape)
            state[name] = tuple(value.copy() for _, value in values)
        if steps and self.slots and not state:
            raise ValueError(f"state_dict: expected {self.slots} of every parameter after {steps} steps, got none")
        self.steps, self.lr, self._state = steps, lr, state


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


def clip_by_norm(grads: Params, max_norm: float) -> Any:
    """Scale ``grads`` in place to a joint Euclidean norm of at most ``max_norm``; give the norm before.

    It is a float, or on a GPU a 0-d float64 array there, so that nothing waits for it.

    A norm that is NaN or infinite is returned and the gradients are left alone. ``max_norm`` may be infinite.

    Raises:
        ValueError: max_norm not above 0, or a read-only gradient.
        TypeError: a gradient that is no float32 or float64 array.
    """
    max_norm = checks.real(max_norm, "max_norm", "(0, inf]")
    for name, gradient in checks.named(grads, "grads").items():
        _check_array(gradient, f"grads[{name!r}]", writeable=True)
    if arrays.device_of(next(iter(grads.values()), None)) == "cuda":
        return arrays.library("cuda").clip_by_norm(list(grads.values()), max_norm)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(sum(_square_sum(gradient) for gradient in grads.values()))
    if math.isfinite(norm) and norm > max_norm:
        for gradient in grads.values():
            gradient *= max_norm / norm
    return norm


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
        checks.real(_scalar(validation_loss), "validation_loss", "[-inf, inf]")

    def state_dict(self) -> dict[str, np.ndarray]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        _same_keys(f"state_dict of {type(self).__name__}", state_dict, ())


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
        _same_keys("state_dict of Plateau", state_dict, ("lr", "best", "bad"))
        lr = checks.real(_scalar(state_dict["lr"]), "state_dict['lr']", "[0, inf)")
        best = checks.real(_scalar(state_dict["best"]), "state_dict['best']", "[-inf, inf]")
        self.bad = checks.integer(_scalar(state_dict["bad"]), "state_dict['bad']", 0)
        self.lr, self.best = lr, best


def _average_square(average: np.ndarray, g: np.ndarray, decay: float, a: np.ndarray) -> None:
    """``average = decay·average + (1 - decay)·g²`` in place, with scratch ``a``."""
    average *= decay
    np.multiply(g, g, out=a)
    a *= 1 - decay
    average += a


def _square_sum(value: np.ndarray) -> float:
    """The sum of squares in float64, block by block: float32 would overflow from 1e19 on."""
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    with np.nditer([value], flags, [["readonly"]], op_dtypes=["f8"], buffersize=8192) as blocks:
        return sum(float(np.dot(block, block)) for block in blocks)


def _scalar(value: Any) -> Any:
    """What a 0-d array holds; anything else as it is, for the check that follows."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _check_array(value: Any, name: str, writeable: bool = False) -> None:
    on_device = arrays.device_of(value) == "cuda"
    known = on_device or isinstance(value, np.ndarray)
    if not known or value.dtype not in checks.FLOATS:
        raise TypeError(
            f"{name}: expected a float32 or float64 array, got {value.dtype if known else type(value).__name__}"
        )
    if writeable and not on_device and not value.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")


def _check_finite(finite: Any) -> None:
    """Numbers, on a GPU 0-d arrays there, as :meth:`Optimizer.step` takes them."""
    known = isinstance(finite, (tuple, list)) and all(
        isinstance(value, (int, float, np.number)) or getattr(value, "shape", None) == () for value in finite
    )
    if not known or len(finite) > 2:
        raise TypeError(f"finite: expected a tuple of up to two numbers, got {checks.shown(finite)}")


def _same_keys(name: str, given: Any, expected: Any) -> None:
    checks.named(given, name)
    missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or extra:
        raise ValueError(f"{name}: expected the keys {sorted(expected)}, got missing {missing}, unexpected {extra}")
