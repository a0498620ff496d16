"""The Numba CPU backend: serial kernels without the GIL, spread over threads by :mod:`.threads`.

``compile`` makes a cell an argument that Numba can specialise on; ``vector`` gives Numba vector registers and
``activations`` what cells compute with them; ``tile`` is the one inner loop of every matrix product; ``gemm`` and
``sequence`` are built from it; ``layer`` is the backend.
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
