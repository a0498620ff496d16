"""The tapes of the CUDA backends, taken apart and put together again."""

from __future__ import annotations

from typing import Any

import problems
import pytest
from tape_checks import OPTIONS, check_tape, name

from gpulstm_kernels.cuda import layer


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_a_tape_travels_as_arrays(runtime: Any, cell: str, options: dict[str, Any]) -> None:
    p = problems.layer_problem(cell, **options)
    there = p._replace(
        x=runtime.to_device(p.x),
        state=tuple(map(runtime.to_device, p.state)),
        weights=[{name: runtime.to_device(value) for name, value in w.items()} for w in p.weights],
        dy=runtime.to_device(p.dy),
        dstate=tuple(map(runtime.to_device, p.dstate)),
    )
    check_tape(layer, there, runtime=runtime)
