"""The process's Numba runtime, and why there may be none; imports Numba's CUDA target only when asked."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ...interpreter import is_subinterpreter
from . import runtime as runtimes

if TYPE_CHECKING:
    from .numba_launch import NumbaRuntime


def why_not() -> str | None:
    """Why the Numba kernels cannot run here; None where they can."""
    if is_subinterpreter():
        return "Numba knows the main interpreter only, and this is a subinterpreter"
    try:
        from numba import cuda
        from numba.cuda import types  # noqa: F401 (the CUDA target inside Numba itself, older, has no such module)
    except ImportError as error:
        return f"numba.cuda could not be imported ({error}); install gpulstm[cuda13] or gpulstm[cuda12]"
    reason = runtimes.why_not()
    if reason is not None:
        return f"its arrays and products are CuPy's: {reason}"
    if not cuda.is_available():
        return "numba-cuda finds no CUDA driver or no toolkit that it can use"
    return None


def current() -> NumbaRuntime:
    """The Numba runtime over the process's runtime."""
    return _over(runtimes.current())


@functools.lru_cache(maxsize=8)
def _over(runtime: runtimes.Runtime) -> NumbaRuntime:
    from .numba_launch import NumbaRuntime

    return NumbaRuntime(runtime)
