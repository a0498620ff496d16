"""How many cores this process may use: those that it is bound to, and no more than its cgroups' share of their time."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ... import cgroups

logger = logging.getLogger("gpulstm")


def available_cores(process: Path = cgroups.SELF) -> int:
    """At least 1; ``process``: where Linux tells of this one."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on: what -X cpu_count asks for
        count = min(count, os.process_cpu_count() or 1)
    with suppress(OSError, ValueError):  # another system, or one that tells in another way
        quotas = [quota for folder in cgroups.folders("cpu", process) for quota in _quota(folder)]
        count = math.floor(min([count, *quotas]))
    return max(1, count)


def limited(count: int, name: str) -> int:
    """``count`` threads, or as many as there are cores for; that it is too many is logged once under ``name``."""
    cores = available_cores()
    if count > cores:
        _say(name, str(count) if count < 10**9 else "over a billion", cores)
    return min(count, cores)


@functools.cache
def _say(name: str, count: str, cores: int) -> None:
    logger.warning("%s: %s threads asked for, %d used: the process may use no more cores", name, count, cores)


def _quota(folder: Path) -> Iterator[float]:
    """What a cgroup is limited to, of either version."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join([(folder / file).read_text() for file in files]).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # not there, or not as it should be
            pass
