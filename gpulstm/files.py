"""Files: read within bounds, and written whole or not at all (beside their place, synced, and then renamed)."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe with nobody at its other end would be waited for
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def read(file: Path, most: int, *, offset: int = 0, length: int | None = None, alone: bool = False) -> bytes:
    """The bytes of ``file`` from ``offset`` on, ``length`` of them, or all that follow.

    Args:
        file: its path.
        most: bytes that the whole file may have. Its size is looked at before anything is read.
        offset, length: the part that is wanted; one that is not in the file is an OSError.
        alone: whether to refuse a file that is a symbolic link, or that has another name besides (a hard link).

    Raises:
        OSError: no such file, one that is no regular file, that is too large, or that cannot be read.
    """
    if alone and file.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link, expected the file itself")
    if not stat.S_ISREG(os.stat(file).st_mode):  # asked before it is opened, which on a device may do something
        raise OSError(errno.EINVAL, "not a regular file")
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | _NO_WAIT | (_NO_LINK if alone else 0)
    with open(os.open(file, flags), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if alone and status.st_nlink > 1:
            raise OSError(errno.EMLINK, f"a hard link, one of {status.st_nlink}; expected a file of one name")
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"holds {status.st_size} bytes; expected at most {most}")
        end = status.st_size if length is None else offset + length
        if not 0 <= offset <= end <= status.st_size:
            raise OSError(errno.EINVAL, f"holds {status.st_size} bytes; expected bytes {offset} to {end} in it")
        stream.seek(offset)
        data = stream.read(end - offset)
    if len(data) < end - offset:
        raise OSError(errno.EIO, f"ended after {offset + len(data)} bytes of {end}")
    return data


def of_tensors(tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The tensors as a safetensors file; its library writes the memory of an array as if it were C-contiguous."""
    from safetensors.numpy import save

    return save({name: np.asarray(value, order="C") for name, value in tensors.items()}, metadata)


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
