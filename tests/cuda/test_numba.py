"""The Numba kernels on a GPU, against the float64 reference; elsewhere they run in Numba's simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
from tolerances import assert_close

from gpulstm_kernels import reference
from gpulstm_kernels.cuda.device import runtime as runtimes

pytestmark = pytest.mark.gpu

# steps, batch, inputs, hidden, projection, directions, bias, ragged
SHAPES: list[tuple[int, int, int, int, int, int, bool, bool]] = [
    (5, 7, 3, 33, 0, 1, True, True),
    (3, 19, 16, 64, 0, 2, False, True),
    (5, 6, 4, 33, 7, 2, True, True),
]


class OnDevice:
    """The backend for :mod:`problems`, which works with NumPy arrays."""

    def __init__(self) -> None:
        self.runtime = runtimes.current()

    def _there(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self.runtime.to_device(value)
        if isinstance(value, dict):
            return {name: self._there(part) for name, part in value.items()}
        return type(value)(map(self._there, value))

    def layer_forward(self, shape: Any, x: Any, state: Any, weights: Any, lengths: Any) -> Any:
        from gpulstm_kernels.cuda import numba_layer as layer

        x, state, weights = map(self._there, (x, state, weights))
        y, final, tape = layer.layer_forward(shape, x, state, weights, lengths)
        return self.runtime.to_host(y), tuple(map(self.runtime.to_host, final)), tape

    def layer_backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        from gpulstm_kernels.cuda import numba_layer as layer

        dx, initial, grads = layer.layer_backward(tape, self._there(dy), self._there(dstate))
        host = self.runtime.to_host
        return host(dx), tuple(map(host, initial)), [{name: host(v) for name, v in grad.items()} for grad in grads]


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize(
    ("walk", "dtype"),
    [
        ("step", "float64"),
        *((walk, dtype) for walk in ("step", "block") for dtype in ("float32", "float16", "bfloat16")),
    ],
)
def test_equals_the_reference(walk: str, cell: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    for steps, batch, inputs, hidden, projection, directions, bias, ragged in SHAPES:
        if walk == "block" and projection:
            continue  # the block walk has none
        p = problems.layer_problem(
            cell,
            dtype,
            steps=steps,
            batch=batch,
            inputs=inputs,
            hidden=hidden,
            projection=projection,
            directions=directions,
            bias=bias,
            ragged=ragged,
        )
        exact = p._replace(
            x=p.x.astype("float64"),
            state=tuple(part.astype("float64") for part in p.state),
            weights=[{name: value.astype("float64") for name, value in w.items()} for w in p.weights],
            dy=p.dy.astype("float64"),
            dstate=tuple(part.astype("float64") for part in p.dstate),
        )
        outputs, tape = problems.outputs(reference, exact, training=True)
        expected = outputs | problems.gradients(reference, exact, tape)
        backend = OnDevice()
        for _ in range(3):  # at once, captured, replayed
            outputs, tape = problems.outputs(backend, p, training=True)
            found = outputs | problems.gradients(backend, p, tape)
            for name, value in expected.items():
                assert_close(found[name], value, "cuda", found[name].dtype, f"{steps, batch, hidden}: {name}")
