"""Linux control groups: the folders in which the limits of this process's groups stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SELF = Path("/proc/self")  # where Linux tells of this process


def folders(controller: str, process: Path = SELF) -> Iterator[Path]:
    """The folders of the groups that ``process`` is in and of those that these lie in, as far as they are mounted.

    Version 2 has one hierarchy, whose folders hold the files of all controllers; version 1 has one for ``controller``,
    such as "cpu" or "memory".

    Raises:
        OSError, ValueError: another system, or one that tells in another way.
    """
    groups: dict[str, str] = {}  # by controller; "" is version 2
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(process / "mountinfo"):
        own, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        wanted = "" if kind == "cgroup2" else controller
        of_this = kind == "cgroup2" or (kind == "cgroup" and controller in options.split(","))
        if of_this and wanted in groups:
            root, mounted = (_unescaped(field) for field in own.split(" ")[3:5])
            yield from _from_mount(Path(mounted), root, groups[wanted])


def _from_mount(mounted: Path, root: str, group: str) -> Iterator[Path]:
    """The folders down to ``group`` from where ``root`` is mounted."""
    inside = group.removeprefix(root.rstrip("/"))
    parts = inside.split("/")[1:] if inside.startswith("/") else []
    yield mounted
    for n in range(len(parts) * (".." not in parts)):
        yield mounted.joinpath(*parts[: n + 1])


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="surrogateescape").splitlines()


def _unescaped(field: str) -> str:
    """A path as the list of mounts writes it, where blanks are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
