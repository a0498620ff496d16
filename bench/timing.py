"""One turn of one provider, and what a handful of turns say."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Turn:
    """``calls`` calls took ``seconds`` in all; its threads then needed ``settle`` seconds to fall asleep."""

    calls: int
    seconds: float
    settle: float

    @property
    def per_call(self) -> float:
        return self.seconds / self.calls


def turn(call: Callable[[], Any], target: float, expected: float | None = None) -> Turn:
    """Warm up for a quarter of ``target`` seconds, one call at least; then time calls for ``target``.

    A call ``expected``, by the turn before, to take longer than ``target`` needs no warming: what the others left
    cold is a small part of it.
    """
    calls = 1 if expected and expected > target else warm_up(call, target)
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        seconds = time.perf_counter() - started
    finally:
        if collecting:
            gc.enable()
    return Turn(calls, seconds, settle())


def warm_up(call: Callable[[], Any], target: float) -> int:
    """How many calls fill ``target`` seconds, found while warming up."""
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < target / 4 or not calls:
        call()
        calls += 1
    return max(1, round(target * calls / elapsed))


def settle(window: float = 0.01, limit: float = 1.0) -> float:
    """Wait until this process's threads are idle: a pool spins on after its work and would disturb the next.

    Runtimes keep their own wait policies, since others would change their speed. The wait is over when the
    process has used less than a tenth of a core for ``window`` seconds, or after ``limit`` seconds.
    """
    started = time.perf_counter()
    while (waited := time.perf_counter() - started) < limit:
        before = time.process_time()
        time.sleep(window)
        if time.process_time() - before < window / 10:
            break
    return waited


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, _, q3 = quantiles(values, n=4, method="inclusive")
        return cls(median(values), q1, q3)
