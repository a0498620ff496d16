"""What the machine has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # version 2, version 1


def memory() -> int | None:
    """Bytes of memory that this process could have at most: the machine's, or its container's; None if unknown."""
    found = [_physical(), *(_limit(Path(path)) for path in _CGROUP_LIMITS)]
    return min((size for size in found if size is not None), default=None)


def _physical() -> int | None:
    if sys.platform == "win32":
        import ctypes

        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = (
                ("length", ctypes.c_uint32),
                ("load", ctypes.c_uint32),
                ("physical", ctypes.c_uint64),
                ("others", ctypes.c_uint64 * 6),
            )

        status = Status(length=ctypes.sizeof(Status))
        found = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.physical) if found else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # names that the system does not know
        return None


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no cgroups, or "max"
        return None
