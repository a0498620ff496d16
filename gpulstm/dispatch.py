"""Which backend computes a call, and why.

A backend is a module with ``layer_forward`` and ``layer_backward`` (:mod:`gpulstm_kernels.reference` documents them)
and a probe that says why it cannot run here. The order of choice: an explicit ``backend=``; else the innermost
``with use_backend(...)``; else the last plain ``use_backend(...)``; else the environment variable ``GPULSTM_BACKEND``;
else the first backend in the list that runs on the device. A backend that was asked for by any of these but the last
raises when it cannot run; the automatic choice is logged once with its reason.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import ModuleType, TracebackType

logger = logging.getLogger("gpulstm")


@dataclass(frozen=True)
class Backend:
    """A way to compute layers: the device it serves, the module that does it, and ``probe`` -> why it cannot."""

    name: str
    device: str
    module_name: str
    probe: Callable[[], str | None]

    @property
    def module(self) -> ModuleType:
        return sys.modules.get(self.module_name) or importlib.import_module(self.module_name)


class BackendUnavailable(RuntimeError):
    """A backend that was asked for cannot run here; the message says why."""


def _probe_reference() -> None:
    return None


def _probe_numba_cpu() -> str | None:
    return importlib.import_module("gpulstm_kernels.cpu").why_not()


def _probe_cupy() -> str | None:
    return importlib.import_module("gpulstm_kernels.cuda.runtime").why_not()


def _probe_numba_cuda() -> str | None:
    return importlib.import_module("gpulstm_kernels.numba_cuda.runtime").why_not()


# In the order of automatic choice.
_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cupy", "cuda", "gpulstm_kernels.cuda.layer", _probe_cupy),
        Backend("numba_cuda", "cuda", "gpulstm_kernels.numba_cuda.layer", _probe_numba_cuda),
        Backend("numba_cpu", "cpu", "gpulstm_kernels.cpu.layer", _probe_numba_cpu),
        Backend("reference", "cpu", "gpulstm_kernels.reference", _probe_reference),
    )
}


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


def check_backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        ValueError: no such backend; the message lists the known ones.
        BackendUnavailable: it cannot run here; the message says why.
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend: unknown backend {name!r}; known backends: {', '.join(sorted(_BACKENDS))}")
    reason = _why_not(name)
    if reason is not None:
        raise BackendUnavailable(f"backend: {name!r} cannot run here: {reason}")
    return _BACKENDS[name]


_in_context: ContextVar[str | None] = ContextVar("gpulstm_backend", default=None)
_for_process: str | None = None


class use_backend:  # a function with a context manager's face, as numpy.errstate
    """Compute with the backend called ``name``; None goes back to automatic choice.

    As a plain call it holds for the whole process, until the next one. As a context manager it holds inside the
    ``with`` block and its thread only.

    Raises:
        ValueError: no such backend; the message lists the known ones.
        BackendUnavailable: it cannot run here; the message says why. The choice stays as it was.
    """

    def __init__(self, name: str | None) -> None:
        global _for_process
        if name is not None:
            check_backend(name)
        self._name, self._before = name, _for_process
        self._token: Token[str | None] | None = None
        _for_process = name

    def __enter__(self) -> None:
        global _for_process
        _for_process = self._before
        self._token = _in_context.set(self._name or "auto")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _in_context.reset(self._token)


def select(device: str = "cpu", backend: str | None = None) -> tuple[Backend, str]:
    """The backend for arrays on ``device`` (``"cpu"`` or ``"cuda"``) and, in words, why that one.

    Raises:
        ValueError: the backend asked for is unknown or serves another device.
        BackendUnavailable: it cannot run here, or no backend for the device can.
    """
    asked = (
        (backend, "asked for by backend="),
        (_in_context.get(), "asked for by `with use_backend`"),
        (_for_process, "asked for by use_backend"),
        (os.environ.get("GPULSTM_BACKEND"), "asked for by the environment variable GPULSTM_BACKEND"),
    )
    for name, why in asked:
        if name == "auto":
            break
        if not name:
            continue
        chosen = check_backend(name)
        if chosen.device != device:
            raise ValueError(f"backend: {name!r} computes on {chosen.device}, but the arrays are on {device}")
        return chosen, why
    return _first_that_runs(device)


@functools.cache
def _first_that_runs(device: str) -> tuple[Backend, str]:
    """The automatic choice, which is logged, and why; what cannot run is probed once a process."""
    candidates = [b for b in _BACKENDS.values() if b.device == device]
    for chosen in candidates:
        if _why_not(chosen.name) is None:
            why = f"chosen automatically: the first backend that runs on {device}"
            passed = [f"{b.name} passed over: {_why_not(b.name)}" for b in candidates[: candidates.index(chosen)]]
            logger.info("; ".join([f"backend {chosen.name}, {why}", *passed]))
            return chosen, why
    reasons = "; ".join(f"{b.name}: {_why_not(b.name)}" for b in candidates)
    raise BackendUnavailable(f"device: no backend can run on {device!r}: {reasons or 'none is known'}")


def choose_device(device: str) -> str:
    """``device`` as :func:`check_device`; for ``"auto"`` that of the backend asked for, else a GPU where one runs."""
    if device != "auto":
        return check_device(device)
    asked = (_in_context.get() or _for_process or os.environ.get("GPULSTM_BACKEND") or "auto").strip()
    if asked != "auto":
        return check_backend(asked).device
    on_gpu = any(backend.device == "cuda" and _why_not(name) is None for name, backend in _BACKENDS.items())
    return "cuda" if on_gpu else "cpu"


def check_device(device: str | None) -> str:
    """``device`` as a known name, ``"cpu"`` for None, once a backend for it can run here.

    Raises:
        ValueError: neither ``"cpu"`` nor ``"cuda"``.
        BackendUnavailable: no backend for it can run here.
    """
    device = "cpu" if device is None else device
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {device!r}")
    if device != "cpu":
        select(device)
    return device
