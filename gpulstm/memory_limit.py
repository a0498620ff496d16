"""How much memory this process may have."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gpulstm_kernels import cgroups

_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of a control group, version 2 and version 1


def memory_limit(process: Path = cgroups.SELF) -> int | None:
    """Bytes of memory that this process could have at most; None if unknown.

    That is what the machine has, or less where a control group that the process is in is limited, such as a
    container's; ``process`` is where Linux tells of it.
    """
    found = [size for size in (_physical(), *_limits(process)) if size is not None]
    return min(found, default=None)


def _limits(process: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):  # another system, or one that reports it elsewhere
        for folder in cgroups.folders("memory", process):
            for name in _LIMITS:
                with suppress(OSError, ValueError):  # another version, or "max"
                    yield int((folder / name).read_text())


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
