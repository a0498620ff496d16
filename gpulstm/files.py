"""Files: read within bounds, and written whole or not at all (under another name, synced, and then renamed).

A folder can be locked by one run at a time.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

logger = logging.getLogger("gpulstm")
_LOCK = ".lock"


class FolderInUse(ValueError):
    """Another run writes to the folder; the message says which process, where and since when."""


_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe without a writer would block
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
    """Replace the content of ``file`` by ``data``; whatever fails, the old file is untouched."""
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


class FolderLock:
    """Holds ``folder`` for one run, from ``with`` or :meth:`take` on; makes the folder where there is none.

    The lock is the operating system's, on a file in the folder, so it ends with its process, however that ends: a run
    that was killed blocks no other. Where the file system has no locks, a warning is logged and nothing is locked.

    Raises:
        FolderInUse: another run holds it.
        ValueError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Path] = []
        """The folders that this lock made, ``folder`` first; empty ones are removed at the end."""
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> FolderLock:
        self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def take(self) -> None:
        """Lock the folder, or raise FolderInUse, which names the process that has locked it."""
        file = self.folder / _LOCK
        try:
            self.made = _made(self.folder)
            while not self._is_held(file):  # false where the last holder removed the file that was just locked
                self._close()
                self._stream = open(file, "a+b", buffering=0)  # noqa: SIM115  # release() closes it
                if not _try_lock(self._stream.fileno(), self.folder):
                    raise FolderInUse(_in_use(self.folder, file))
            assert self._stream is not None
            holder = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            self._stream.truncate(0)
            self._stream.write(json.dumps(holder).encode())
        except OSError as error:
            self.release()
            raise ValueError(
                f"out: {self.folder} cannot be written to: {error.strerror or error}; expected a writable folder"
            ) from error
        except FolderInUse:
            self._close()
            raise

    def lost(self) -> bool:
        """Whether the folder, or the lock in it, was removed or renamed since."""
        return not self._is_held(self.folder / _LOCK)

    def release(self) -> None:
        """Unlock the folder; it is removed if this lock made it and it is still empty."""
        file = self.folder / _LOCK
        held = self._stream is not None and self._is_held(file)
        if os.name == "nt":  # an open file cannot be removed there, neither this one nor one that another run holds
            self._close()
        if held:
            with suppress(OSError):
                file.unlink()
        self._close()
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()

    def _is_held(self, file: Path) -> bool:
        try:
            return self._stream is not None and os.path.samestat(os.fstat(self._stream.fileno()), file.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _made(folder: Path) -> list[Path]:
    """Make ``folder`` and its parents; those that this call made, ``folder`` first."""
    made: list[Path] = []
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with suppress(FileExistsError):  # another process was quicker; what is no folder shows below
            path.mkdir()
            made.insert(0, path)
    return made


def _try_lock(descriptor: int, folder: Path) -> bool:
    """Lock an open file for as long as it is open; False where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # what is locked cannot be read: not where the holder is named
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some network file systems
        logger.warning("%s: cannot be locked (%s); see to it that no other run writes to it", folder, error.strerror)
    return True


def _in_use(folder: Path, file: Path) -> str:
    try:
        holder = json.loads(file.read_bytes())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just taken it
        who = "another process"
    return f"out: {folder} is in use by {who}; expected a folder of its own for each run, or that one to end"
