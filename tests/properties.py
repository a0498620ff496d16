"""How properties are tested with Hypothesis: the same examples in every run and nothing stored, so no run differs."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,  # the first example compiles kernels
    suppress_health_check=[HealthCheck.too_slow],
)
