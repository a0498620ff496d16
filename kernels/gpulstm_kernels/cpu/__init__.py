"""The Numba CPU backend. A module imports from those above it in this list alone.

========== ========================================================================================================
codegen    what kernels are made of: vector registers, tiles (the inner loop of every product), activations; compilation
tuning     every threshold, with what it was measured on
crew       a pool of threads, and how the shares of a call reach them
packing    weights in the order in which tiles read them, and the cache of packed weights
gemm       matrix products
walks      a layer through time, forward and backward; a single step; a stream
layer      the backend: what :mod:`gpulstm_kernels.backend` asks for
alignments the CTC loss and its gradient
========== ========================================================================================================
"""

from __future__ import annotations

import importlib

from ..interpreter import is_subinterpreter


def why_not() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    if is_subinterpreter():
        return "Numba's machine code asks for the main interpreter's lock, and would wait for ever in a subinterpreter"
    try:
        from numba import config

        if config.DISABLE_JIT:
            return "NUMBA_DISABLE_JIT is set, so that Numba compiles nothing"
        importlib.import_module(".layer", __name__)
    except ImportError as error:
        return f"Numba could not be imported: {error}"
    return None
