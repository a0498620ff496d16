"""What an optimizer is: steps over dicts of arrays, and the state that they take.

An update runs over blocks that fit a core's cache: a parameter, its gradient and its moments cross memory
once, and the scratch is two blocks, whatever the size of the model. Every operation is elementwise and
correctly rounded, so a state that is saved and loaded continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpulstm_kernels.memory import empty

from .. import arrays, checks
from .state_checks import check_array, check_finite, check_keys, scalar

Params = dict[str, np.ndarray]

BLOCK = 32768  # elements: 128 KiB of float32


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
        check_finite(finite)
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
            from .kernels_cuda import update

            momentum = "momentum_buffer" in self.slots
            for name, param in params.items():
                update(self.rule, param, grads[name], self._state.get(name, ()), self._on_device, finite, momentum)
            return
        if not all(map(math.isfinite, finite)):
            return
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for name, param in params.items():
                scratch = empty((2, min(BLOCK, param.size)), param.dtype)
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
        check_keys("grads", grads, params)
        self.check_state(params)
        for name, param in params.items():
            check_array(param, f"params[{name!r}]", writeable=True)
            check_array(grads[name], f"grads[{name!r}]")
            device = arrays.device_of(param)
            checks.array(grads[name], f"grads[{name!r}]", param.dtype, param.shape, device=device)

    def check_state(self, params: Params) -> None:
        """Whether the state, if there is one yet, is that of ``params``.

        Raises:
            ValueError: it is of other names, shapes or dtypes.
        """
        if self._state:
            check_keys("params", params, self._state)
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
            result |= {
                f"{slot}/{name}": np.array(arrays.on_host(s[i], name), order="C") for name, s in self._state.items()
            }
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
        check_keys(f"state_dict of {type(self).__name__}", state_dict, keys)
        steps = checks.integer(scalar(state_dict["step"]), "state_dict['step']", 0)
        lr = checks.real(scalar(state_dict["lr"]), "state_dict['lr']", "[0, inf)")
        state = {}
        for name in names:
            values = [(f"state_dict['{slot}/{name}']", state_dict[f"{slot}/{name}"]) for slot in self.slots]
            for key, value in values:
                check_array(value, key)
                first = values[0][1]
                checks.array(value, key, first.dtype, first.shape)
            state[name] = tuple(value.copy() for _, value in values)
        if steps and self.slots and not state:
            raise ValueError(f"state_dict: expected {self.slots} of every parameter after {steps} steps, got none")
        self.steps, self.lr, self._state = steps, lr, state


def _blocks(*operands: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """1-D blocks of arrays of one shape, in any memory layout; all but the second may be written to."""
    access = [["readonly"] if i == 1 else ["readwrite"] for i in range(len(operands))]
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    with np.nditer(operands, flags, access, buffersize=BLOCK) as blocks:  # type: ignore[arg-type]
        yield from blocks
