"""The numbers of a case on the device, what an LSTM makes of them in float64, and how far a result is from that.

``xp`` is CuPy, or NumPy in tests. The initial state is zero, and the final one has no gradient: not every
contender takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..registry import Case
from ..verify import Verdict

# Of the largest magnitude of an array. torch on a CPU, which rounds h at every one of 512 steps and in float16 also
# sums gradients in it, is within 2e-6, 7e-3 (float16) and 5e-3 (bfloat16) at sizes up to (16, 64) and (8, 256).
TOLERANCE = {"float32": 2e-5, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 4e-2}
REQUIRED = {"inference": {"y"}, "training": {"y", "dx", "dweight_ih_l0", "dweight_hh_l0"}}
_PERIOD = 2**20 - 3  # numbers that are drawn, and repeated at another place in each row: drawing all takes seconds

Arrays = dict[str, Any]


def element(dtype: str) -> np.dtype:
    """The dtype of a case's arrays.

    Raises:
        ImportError: it is bfloat16, and ml_dtypes, which gives it to NumPy, is not installed.
    """
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("float32" if dtype == "tf32" else dtype)


@dataclass(frozen=True)
class Problem:
    """Arrays of a case on the device, I = H: ``x``, ``dy`` (T, B, H) and ``params`` under torch's names."""

    case: Case
    x: Any
    dy: Any
    params: Arrays

    @classmethod
    def of(cls, xp: Any, case: Case) -> Problem:
        rng = np.random.default_rng([case.batch, case.steps, case.hidden])
        dtype = element(case.dtype)
        bits = f"u{dtype.itemsize}"  # only these need be known to xp's functions

        def repeated(drawn: np.ndarray, shape: tuple[int, ...]) -> Any:
            return xp.resize(xp.asarray(drawn.astype(dtype).view(bits)), shape).view(dtype)

        sequence, bound = (case.steps, case.batch, case.hidden), case.hidden**-0.5  # torch's initialisation
        x, dy = (repeated(rng.standard_normal(_PERIOD, np.float32), sequence) for _ in range(2))
        params = {name: repeated(rng.uniform(-bound, bound, _PERIOD), shape) for name, shape in case.parameters.items()}
        return cls(case, x, dy, params)


def wide(array: Any) -> Any:
    """The same numbers in float64; CuPy need not know how to convert bfloat16."""
    if array.dtype.name == "bfloat16":
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def truth(xp: Any, problem: Problem) -> Arrays:
    """y, final h and c, and the gradients of x and all parameters, in float64: gates i, f, g, o."""
    steps, batch, hidden = problem.x.shape
    count, rows = steps * batch, 4 * hidden
    x, dy = wide(problem.x).reshape(count, hidden), wide(problem.dy)
    w_ih, w_hh, b_ih, b_hh = (wide(problem.params[f"{name}_l0"]) for name in _PARAMETERS)
    gates = (x @ w_ih.T + (b_ih + b_hh)).reshape(steps, batch, 4, hidden)
    h, c = (xp.zeros((steps + 1, batch, hidden)) for _ in range(2))
    for t in range(steps):
        own = gates[t]
        own += (h[t] @ w_hh.T).reshape(batch, 4, hidden)
        own[:, :2], own[:, 3], own[:, 2] = _sigmoid(xp, own[:, :2]), _sigmoid(xp, own[:, 3]), xp.tanh(own[:, 2])
        c[t + 1] = own[:, 1] * c[t] + own[:, 0] * own[:, 2]
        h[t + 1] = own[:, 3] * xp.tanh(c[t + 1])
    outputs = {"y": h[1:], "h": h[-1:], "c": c[-1:]}
    dh, dc = (xp.zeros((batch, hidden)) for _ in range(2))
    for t in reversed(range(steps)):
        i, f, g, o = (gates[t, :, k].copy() for k in range(4))
        squashed = xp.tanh(c[t + 1])
        dh = dh + dy[t]
        dc = dc + dh * o * (1 - squashed**2)
        gates[t, :, 0] = dc * g * i * (1 - i)
        gates[t, :, 1] = dc * c[t] * f * (1 - f)
        gates[t, :, 2] = dc * i * (1 - g**2)
        gates[t, :, 3] = dh * squashed * o * (1 - o)
        dc = dc * f
        dh = gates[t].reshape(batch, rows) @ w_hh
    dgates = gates.reshape(count, rows)
    dbias = dgates.sum(0)
    return outputs | {
        "dx": (dgates @ w_ih).reshape(steps, batch, hidden),
        "dweight_ih_l0": dgates.T @ x,
        "dweight_hh_l0": dgates.T @ h[:-1].reshape(count, hidden),
        "dbias_ih_l0": dbias,
        "dbias_hh_l0": dbias,
    }


_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _sigmoid(xp: Any, value: Any) -> Any:
    return (1 + xp.tanh(value / 2)) / 2


def check(xp: Any, case: Case, mode: str, outputs: Arrays, expected: Arrays) -> Verdict:
    """Compare what was returned, which is at least REQUIRED, with the truth; as :func:`bench.verify.check`."""
    missing, unknown = REQUIRED[mode] - outputs.keys(), outputs.keys() - expected.keys()
    if missing or unknown:
        return Verdict(None, f"returned {sorted(outputs)}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    worst, where = 0.0, ""
    for name, value in outputs.items():
        if value.shape != expected[name].shape or value.dtype != element(case.dtype):
            return Verdict(None, f"{name}: {value.dtype} {value.shape}; expected {case.dtype} {expected[name].shape}")
        error = float(xp.abs(wide(value) - expected[name]).max() / xp.abs(expected[name]).max())
        if not np.isfinite(error):
            return Verdict(None, f"{name}: holds NaN or infinite values")
        if error > worst:
            worst, where = error, name
    tolerance = TOLERANCE[case.dtype]
    return Verdict(worst, f"{where}: relative error {worst:.1e} over {tolerance:.0e}" if worst > tolerance else None)
