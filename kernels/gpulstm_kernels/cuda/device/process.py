"""The process's runtimes: CuPy's on a GPU, or what tests put in its place, and Numba's over it.

Importing this module imports neither CuPy nor Numba.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import cupy_runtime, numba_runtime
from .runtime import Runtime

_runtime: Runtime | None = None
_lock = threading.Lock()


def why_not() -> str | None:
    """Why there can be no runtime here; None where there can."""
    return None if _runtime is not None else cupy_runtime.why_not()


def current() -> Runtime:
    """The process's runtime, made at the first call.

    Raises:
        RuntimeError: there can be none; the message says why.
    """
    global _runtime
    if _runtime is None:
        reason = cupy_runtime.why_not()
        if reason is not None:
            raise RuntimeError(reason)
        with _lock:
            _runtime = _runtime or cupy_runtime.CuPyRuntime()
    return _runtime


def owns(value: Any) -> bool:
    """Whether ``value`` is an array of the process's runtime; no runtime is made to find out."""
    return _runtime is not None and _runtime.owns(value)


@contextmanager
def use(runtime: Runtime) -> Iterator[Runtime]:
    """Let ``runtime`` be the process's inside the ``with`` block."""
    global _runtime
    before, _runtime = _runtime, runtime
    try:
        yield runtime
    finally:
        _runtime = before


def numba_why_not() -> str | None:
    """Why the Numba kernels cannot run here; None where they can."""
    return numba_runtime.why_not(why_not)


def current_numba() -> Runtime:
    """The Numba runtime over :func:`current`."""
    return _numba_over(current())


@functools.lru_cache(maxsize=8)
def _numba_over(runtime: Runtime) -> Runtime:
    return numba_runtime.NumbaRuntime(runtime)
