"""Is a provider's result right? A figure is reported only where :func:`check` says so.

The error of an array is its largest deviation from the float64 reference over the reference's largest
magnitude, so one wrong element is enough to fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .problem import Outputs, Problem

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Verdict:
    """``error`` is the worst of all arrays; ``reason`` says what is wrong, None if nothing is."""

    error: float | None
    reason: str | None = None


def check(problem: Problem, mode: str, outputs: Outputs, truth: Outputs, tolerance: float | None = None) -> Verdict:
    """Compare every output and, for training, every gradient with ``truth``; None: the tolerance of the dtype."""
    expected = problem.outputs(mode)
    if outputs.keys() != expected.keys():
        return Verdict(None, f"returned {sorted(outputs)}; expected {sorted(expected)}")
    worst, where = 0.0, ""
    for name, shape in expected.items():
        value = outputs[name]
        if value.shape != shape or value.dtype != problem.case.dtype:
            return Verdict(None, f"{name}: {value.dtype} {value.shape}; expected {problem.case.dtype} {shape}")
        if not np.isfinite(value).all():
            return Verdict(None, f"{name}: holds NaN or infinite values")
        error = float(np.abs(value - truth[name]).max() / np.abs(truth[name]).max())
        if error > worst:
            worst, where = error, name
    tolerance = tolerance or TOLERANCE[problem.case.dtype]
    if worst > tolerance:
        return Verdict(worst, f"{where}: relative error {worst:.1e} over {tolerance:.0e}")
    return Verdict(worst)
