"""What the walks know of a cell; the maths itself is in one module a cell beside this file.

A cell maps the pre-activations ``gates`` (one value a gate) and its carried ``states`` (the previous c of an LSTM)
to the hidden value h, the new states, and what its backward wants saved. Its maths module has two functions, written
in plain arithmetic and the activations of :mod:`gpulstm_kernels.cells.activations`, so that the same lines run on
NumPy arrays (reference), on vector registers (Numba CPU) and on scalars (Numba CUDA)::

    forward(gates, states) -> h, states, saved
    backward(dh, dstates, h, saved, states, previous) -> dgates, dprevious

All arguments but ``h`` and ``dh`` are tuples: ``gates`` of ``len(cell.gates)``, ``states`` (after the step),
``previous`` (before it) and ``dstates`` of ``len(cell.states)``, ``saved`` of ``cell.saved``. The gradient of h
reaches ``backward`` complete: what came through the output, the next step and a projection is already summed. Both
functions must be finite where everything is zero: lanes past the last unit of a register compute that.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes:
        name: what users call it, such as ``"lstm"``.
        gates: names of its gates in the order of the rows of the weights, such as ``("i", "f", "g", "o")``.
        states: names of the states that it carries beside h, such as ``("c",)``.
        saved: how many values a unit and step its ``forward`` saves for ``backward``.
        maths: import path of the module that holds ``forward`` and ``backward``; imported at first use, so that
            declaring a cell costs nothing.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: int
    maths: str

    @property
    def module(self) -> ModuleType:
        """The module that holds the maths."""
        return importlib.import_module(self.maths)
