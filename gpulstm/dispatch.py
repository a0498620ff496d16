"""Which backend computes a call, and why.

What a backend is, :class:`gpulstm_kernels.backend.Backend` says. The order of choice: an explicit ``backend=``; else
the innermost ``with use_backend(...)``; else the last ``set_backend(...)``; else the environment variable
``GPULSTM_BACKEND``; else the first backend in the list that runs on the device and computes such a call, cell included.
A backend that was asked for by any of these but the last raises when it cannot; the automatic choice is logged once
with its reason.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpulstm_kernels.backend import Backend, LayerShape

logger = logging.getLogger("gpulstm")


@dataclass(frozen=True, eq=False)  # so that its hash costs a call nothing
class Registered:
    """A backend by name: the device it serves, the module that is it, and ``probe`` -> why it cannot run here."""

    name: str
    device: str
    module_name: str
    probe: Callable[[], str | None]

    @property
    def module(self) -> Backend:
        module: Any = sys.modules.get(self.module_name) or importlib.import_module(self.module_name)
        return module


class BackendUnavailable(RuntimeError):
    """A backend that was asked for cannot run here; the message says why."""


def _why_not_cupy() -> str | None:
    from gpulstm_kernels.cuda.device import process

    return process.why_not()


def _why_not_numba_cuda() -> str | None:
    from gpulstm_kernels.cuda.device import process

    return process.numba_why_not()


def _why_not_numba_cpu() -> str | None:
    from gpulstm_kernels import cpu

    return cpu.why_not()


# In the order of automatic choice. Nothing of a backend, its probe included, is imported before it is asked.
_BACKENDS = {
    name: Registered(name, device, f"gpulstm_kernels.{module}", probe)
    for name, device, module, probe in (
        ("cupy", "cuda", "cuda.layer", _why_not_cupy),
        ("numba_cuda", "cuda", "cuda.numba_layer", _why_not_numba_cuda),
        ("numba_cpu", "cpu", "cpu.layer", _why_not_numba_cpu),
        ("reference", "cpu", "reference", lambda: None),
    )
}

if TYPE_CHECKING:  # that each of the modules above is a backend
    from gpulstm_kernels import reference
    from gpulstm_kernels.cpu import layer as _cpu_layer
    from gpulstm_kernels.cuda import layer as _cuda_layer
    from gpulstm_kernels.cuda import numba_layer

    _MODULES: tuple[Backend, ...] = (_cuda_layer, numba_layer, _cpu_layer, reference)


@functools.cache
def _why_not(name: str) -> str | None:
    """Why a backend cannot run here (None: it can); probed once a process."""
    return _BACKENDS[name].probe()


def runs(name: str) -> bool:
    """Whether the backend called ``name`` can run here."""
    return _why_not(name) is None


def backends() -> dict[str, str | None]:
    """Every backend with the reason why it cannot run here, or None where it can."""
    return {name: _why_not(name) for name in _BACKENDS}


def check_backend(name: str) -> Registered:
    """The backend called ``name``.

    Raises:
        ValueError: no such backend; the message lists the known ones.
        BackendUnavailable: it cannot run here; the message says why.
    """
    if not isinstance(name, str) or name not in _BACKENDS:
        raise ValueError(f"backend: unknown backend {name!r}; known backends: {', '.join(sorted(_BACKENDS))}")
    reason = _why_not(name)
    if reason is not None:
        others = ", ".join(other for other in sorted(_BACKENDS) if _why_not(other) is None)
        raise BackendUnavailable(f"backend: {name!r} cannot run here: {reason}; expected one that can: {others}")
    return _BACKENDS[name]


def module_for(chosen: Registered, shape: LayerShape) -> Backend:
    """What computes calls of such a ``shape``.

    Raises:
        BackendUnavailable: it cannot; the message says why.
    """
    module = chosen.module
    reason = module.why_not(shape)
    if reason is not None:
        raise BackendUnavailable(f"backend: {chosen.name!r} cannot compute this: {reason}; expected another backend")
    return module


_in_context: ContextVar[tuple[use_backend, ...]] = ContextVar("gpulstm_backend", default=())  # the innermost is last
_for_process: str | None = None


def set_backend(name: str | None) -> None:
    """Compute with the backend called ``name`` in the whole process, until the next call; None: automatic choice.

    Raises:
        ValueError: no such backend; the message lists the known ones.
        BackendUnavailable: it cannot run here; the message says why. The choice stays as it was.
    """
    global _for_process
    if name is not None:
        check_backend(name)
    _for_process = name


class use_backend:  # a function with a context manager's face, as numpy.errstate
    """Compute with the backend called ``name`` inside a ``with`` block, and in its thread only; None: automatic choice.

    ``with gpulstm.use_backend(name): ...``; blocks nest, and one object may serve several. Outside of ``with`` it
    changes nothing, and warns: :func:`set_backend` is for the whole process.

    Raises:
        ValueError: no such backend; the message lists the known ones.
        BackendUnavailable: it cannot run here; the message says why.
    """

    _entered = True  # nothing to warn of where the name is refused

    def __init__(self, name: str | None) -> None:
        if name is not None:
            check_backend(name)
        self.name = name
        self._entered = False

    def __enter__(self) -> None:
        self._entered = True
        _in_context.set((*_in_context.get(), self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        blocks = list(_in_context.get())[::-1]
        if self in blocks:  # a generator may be closed in another context than it was begun in
            blocks.remove(self)
            _in_context.set(tuple(blocks[::-1]))

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(f"{self!r}: not entered, so it changed nothing", RuntimeWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"use_backend({self.name!r}), for `with`; set_backend is for the whole process"


def _in_block() -> str | None:
    """The choice of the innermost ``with use_backend``, ``"auto"`` if that is None; None outside of any."""
    blocks = _in_context.get()
    return (blocks[-1].name or "auto") if blocks else None


def select(shape: LayerShape | None = None, device: str = "cpu", backend: str | None = None) -> tuple[Registered, str]:
    """The backend for calls of such a ``shape`` on ``device`` (``"cpu"`` or ``"cuda"``) and, in words, why that one.

    None for the shape: of any.

    Raises:
        ValueError: the backend asked for is unknown or serves another device.
        BackendUnavailable: it cannot run here or not compute such a call, or no backend for the device can.
    """
    asked = (
        (backend, "asked for by backend="),
        (_in_block(), "asked for by `with use_backend`"),
        (_for_process, "asked for by set_backend"),
        (os.environ.get("GPULSTM_BACKEND") or None, "asked for by the environment variable GPULSTM_BACKEND"),
    )
    for name, why in asked:
        if name is None:
            continue
        if isinstance(name, str) and name == "auto":
            break
        chosen = check_backend(name)
        if chosen.device != device:
            raise ValueError(f"backend: {name!r} computes on {chosen.device}, but the arrays are on {device}")
        if shape is not None:
            module_for(chosen, shape)
        return chosen, why
    passed: tuple[str, ...] = ()
    for chosen in _that_run(device):
        reason = None if shape is None else chosen.module.why_not(shape)
        if reason is None:
            return chosen, _automatic(chosen, passed)
        passed = (*passed, f"{chosen.name}: {reason}")
    raise BackendUnavailable(
        f"device: no backend can compute this on {device!r}: {'; '.join(passed)}; expected a shape that one takes"
    )


@functools.cache
def _that_run(device: str) -> list[Registered]:
    """The backends for a device, of which there is one at least, in the order of automatic choice."""
    known = [b for b in _BACKENDS.values() if b.device == device]
    found = [b for b in known if _why_not(b.name) is None]
    if not found:
        reasons = "; ".join(f"{b.name}: {_why_not(b.name)}" for b in known)
        raise BackendUnavailable(
            f"device: no backend can run on {device!r}: {reasons or 'none is known'}; expected a device with one: 'cpu'"
        )
    return found


@functools.cache
def _automatic(chosen: Registered, passed: tuple[str, ...]) -> str:
    """Why ``chosen`` is the automatic choice, where the backends ``passed`` would not compute such a call: logged."""
    why = f"chosen automatically: the first backend that runs on {chosen.device}"
    if passed:
        why += f" and computes this ({'; '.join(passed)})"
    before = [b.name for b in _BACKENDS.values() if b.device == chosen.device]
    absent = [f"{name} passed over: {_why_not(name)}" for name in before[: before.index(chosen.name)] if _why_not(name)]
    logger.info("; ".join([f"backend {chosen.name}, {why}", *absent]))
    return why


def choose_device(device: str) -> str:
    """``device`` as :func:`check_device`; for ``"auto"`` that of the backend asked for, else a GPU where one runs."""
    if not isinstance(device, str) or device != "auto":
        return check_device(device)
    asked = (_in_block() or _for_process or os.environ.get("GPULSTM_BACKEND") or "auto").strip()
    if asked != "auto":
        return check_backend(asked).device
    on_gpu = any(backend.device == "cuda" and runs(name) for name, backend in _BACKENDS.items())
    return "cuda" if on_gpu else "cpu"


def check_device(device: str | None) -> str:
    """``device`` as a known name, ``"cpu"`` for None, once a backend for it can run here.

    Raises:
        ValueError: neither ``"cpu"`` nor ``"cuda"``.
        BackendUnavailable: no backend for it can run here.
    """
    device = "cpu" if device is None else device
    if not isinstance(device, str) or device not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {device!r}")
    if device != "cpu":
        select(None, device)
    return device
