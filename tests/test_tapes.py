"""Tapes taken apart and put together again: the arrays are as announced, and the gradients the same bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import problems
import pytest
from tape_checks import OPTIONS, check_tape, name

from gpulstm_kernels import memory, reference
from gpulstm_kernels.cpu import layer


@pytest.mark.parametrize("backend", [layer, reference], ids=["numba_cpu", "reference"])
@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_a_tape_travels_as_arrays(backend: Any, cell: str, options: dict[str, Any]) -> None:
    p = problems.layer_problem(cell, **options)
    check_tape(backend, p)
    with memory.poison():  # nothing is left as it came from the system
        _, _, tape = backend.layer_forward(p.shape(training=True), *p.arguments)
        arrays = backend.tape_arrays(tape)
    assert all(np.isfinite(array).all() for array in arrays)
    for a, b in itertools.combinations(arrays, 2):
        assert not np.shares_memory(a, b)
