"""Where a record comes from: processor, operating system, package versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

from .registry import Provider

FEATURES = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_bf16 amx_int8 asimd asimddp asimdhp bf16 i8mm sve sve2"
)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The machine, as far as it tells (Linux tells most)."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "family": " ".join(cpu[key] for key in ("cpu family", "model", "stepping") if key in cpu),
        "cores": cores(),
        "features": [feature for feature in FEATURES.split() if feature in flags],
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def vectors(machine: dict[str, Any]) -> str:
    """The widest registers of a processor, whose model name may not tell its generation."""
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    return next((name for feature, name in known.items() if feature in machine["features"]), "")


def slug(machine: dict[str, Any]) -> str:
    """A folder's name: ``amd-epyc-avx2-2-cores``."""
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", "", machine["cpu"].lower())
    words = f"{name} {vectors(machine).replace('-', '').lower()} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def commit(root: Path) -> str | None:
    """The commit of the tree at ``root``, with ``+`` where it was changed since; None if there is none."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class OtherLoad:
    """How busy other processes kept the machine since this was made: they disturb every figure (Linux)."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._before = self._foreign_seconds()

    def share(self) -> float | None:
        """Cores' worth of foreign work over the time, None where it cannot be known.

        Processes started from here count as ours once they have ended and been waited for.
        """
        now = self._foreign_seconds()
        if self._before is None or now is None:
            return None
        return max(0.0, (now - self._before) / (time.perf_counter() - self._started))

    @staticmethod
    def _foreign_seconds() -> float | None:
        path = Path("/proc/stat")
        if not path.exists():
            return None
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, path.read_text().split()[1:9])
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        mine = os.times()
        return busy - (mine.user + mine.system + mine.children_user + mine.children_system)


def versions(provider: Provider) -> dict[str, str | None]:
    """Versions of the packages that ``provider`` needs; None where one is run without being installed."""
    found: dict[str, str | None] = {}
    for package in provider.requires:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def missing(provider: Provider) -> str | None:
    """Why ``provider`` cannot run here, None if it can be tried."""
    absent = [package for package in provider.requires if util.find_spec(package) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
