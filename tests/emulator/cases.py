"""A call of a cell with all that it may have, as the tests of the walks take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import device_cells
import layer_checks
import numpy as np
import problems
from problems import Problem

from gpulstm_kernels.cuda import layer

from .runtime import EmulatedRuntime


class Case(NamedTuple):
    """Of a call: sizes, and what is in it."""

    hidden: int
    dtype: str = "float32"
    steps: int = 5
    batch: int = 3
    directions: int = 2
    bias: bool = True
    ragged: bool = True
    resets: bool = True
    scalar_inputs: bool = False


CASES = {
    "odd": Case(5),
    "even": Case(8, steps=4, batch=5, scalar_inputs=True),
    "one unit": Case(1, batch=1, directions=1, ragged=False),
    "long": Case(3, steps=19, batch=2),
    "one step": Case(4, steps=1, bias=False, resets=False),
    "double": Case(8, "float64", bias=False, scalar_inputs=True),
    "half": Case(4, "float16", directions=1),
    "plain": Case(4, resets=False, ragged=False, scalar_inputs=True),
}


def problem(cell: Any, case: Case, **options: Any) -> Problem:
    """A sequence without a step is among those of different lengths."""
    p = problems.layer_problem(cell, inputs=3, **case._asdict(), **options)
    return device_cells.started(problems.with_an_empty_sequence(p))


def on_emulator() -> layer_checks.OnDevice:
    """The CUDA backend."""
    runtime = EmulatedRuntime()
    return layer_checks.OnDevice(layer, runtime, runtime=runtime)


def check_pieces(cell: Any) -> None:
    """Pieces that begin within a call are those by themselves.

    Bit for bit, and whatever was before them: the steps of the first piece end in NaN.
    """
    backend = on_emulator()
    p = problems.layer_problem(cell, "float32", steps=6, batch=2, hidden=8)
    border, x = 2, p.x.copy()
    x[:border] = np.nan
    resets = np.zeros((6, 2), bool)
    resets[border] = True
    whole = layer_checks.computed(backend, p._replace(x=x, resets=resets))
    inputs = None if p.inputs is None else p.inputs[:, border:].copy()
    zeros = tuple(np.zeros_like(part) for part in p.state)
    piece = p._replace(x=x[border:].copy(), dy=p.dy[border:].copy(), inputs=inputs, state=zeros)
    alone = layer_checks.computed(backend, piece)
    for name, value in alone.items():
        if name in ("y", "dx") or name.startswith("dinputs"):
            np.testing.assert_array_equal(whole[name][border:], value, name)
        elif not name.startswith("d"):
            np.testing.assert_array_equal(whole[name], value, name)
    assert np.isnan(whole["y"][:border]).all()
