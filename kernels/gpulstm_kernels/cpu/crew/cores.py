"""How many cores this process may use: those that it is bound to, and no more than its cgroups' share of their time."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("gpulstm")


def available_cores(process: Path = Path("/proc/self")) -> int:
    """At least 1; ``process``: where Linux tells of this one."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on: what -X cpu_count asks for
        count = min(count, os.process_cpu_count() or 1)
    with suppress(OSError, ValueError):  # another system, or one that tells in another way
        count = math.floor(min([count, *_quotas(process)]))
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


def _quotas(process: Path) -> Iterator[float]:
    """The processors' time that each cgroup which this process is in may use, in cores; nothing where none is set."""
    groups: dict[str, str] = {}  # by controller; "" is the second version, which has one hierarchy for all
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(process / "mountinfo"):
        own, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        controller = "" if kind == "cgroup2" else "cpu"
        if controller not in groups or (kind != "cgroup2" and (kind != "cgroup" or "cpu" not in options.split(","))):
            continue
        root, place = (_unescaped(field) for field in own.split(" ")[3:5])
        for folder in _folders(Path(place), root, groups[controller]):
            yield from _quota(folder)


def _folders(place: Path, root: str, group: str) -> Iterator[Path]:
    """Of a cgroup and those that it lies in, as far as they are seen from ``place``, where ``root`` is mounted."""
    inside = group.removeprefix(root.rstrip("/"))
    parts = inside.split("/")[1:] if inside.startswith("/") else []
    yield place
    for n in range(len(parts) * (".." not in parts)):
        yield place.joinpath(*parts[: n + 1])


def _quota(folder: Path) -> Iterator[float]:
    """What a cgroup is limited to, of either version."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join([(folder / file).read_text() for file in files]).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # not there, or not as it should be
            pass


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="surrogateescape").splitlines()


def _unescaped(field: str) -> str:
    """A path as the list of mounts writes it, where blanks are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
