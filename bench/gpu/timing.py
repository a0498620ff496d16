"""How long a call takes on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

WARM = 3  # calls at least: the first compiles, the second captures a graph, the third launches it
LEAST, MOST = 5, 51  # samples
SAMPLE = 2e-3  # seconds that a sample lasts at least: short calls are timed several at once

Elapsed = Callable[[Callable[[], Any], int], float]  # (call, how many) -> seconds of all


class Events:
    """Seconds between two CUDA events around ``calls`` calls, on the null stream: CuPy's and torch's by default."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def __call__(self, call: Callable[[], Any], calls: int) -> float:
        begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return self._cupy.cuda.get_elapsed_time(begin, end) / 1e3


def samples(elapsed: Elapsed, call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of a call, again and again for about ``seconds``, warm-up included."""
    started = time.perf_counter()
    for _ in range(WARM):
        once = elapsed(call, 1)
    calls = max(1, round(SAMPLE / max(once, 1e-7)))
    found: list[float] = []
    while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - started < seconds):
        found.append(elapsed(call, calls) / calls)
    return found
