"""Files written whole or not at all: beside their place, synced, and then renamed."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_synced(file: Path, data: bytes) -> None:
    """Write a new ``file`` and wait until the disk has it; one that exists is an OSError."""
    with open(file, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the disk has the names in ``path``."""
    if os.name == "nt":  # a directory cannot be opened there; the rename is journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(file: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``file``: whatever fails, what was there before is untouched."""
    folder = Path(tempfile.mkdtemp(prefix=f".tmp-{file.name}-", dir=file.parent))
    temporary = folder / file.name
    try:
        write_synced(temporary, data)
        os.replace(temporary, file)
        sync_directory(file.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        folder.rmdir()
