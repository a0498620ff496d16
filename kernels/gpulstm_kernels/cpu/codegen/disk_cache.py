"""Compiled kernels on disk: one file a kernel and types of its arguments, which is checked before it is read.

Numba's own cache has an index that processes write over each other's, believes whatever its files hold, and ends a
call where its folder cannot be written. Here a file is named by a digest of all that it depends on, and begins with a
digest of what follows. A file that was cut or changed is compiled anew and replaced; where nothing can be written,
kernels are compiled for the process alone. Either is logged once a folder. The digest tells damage, not intent: a user
who may write to the folder may run code, as with Numba's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import llvmlite
import numba

from .numba_internals import FunctionCache

logger = logging.getLogger("gpulstm")
_said: set[tuple[str, str]] = set()  # what was logged, by folder
NOT_CACHED = "not cached on disk"  # in the name of a type whose kernels are not
_MAGIC = b"gpulstm kernel 1\n"
_DIGEST_BYTES = 32


def _digest(*contents: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(contents), digest_size=_DIGEST_BYTES).digest()


class DiskCache(FunctionCache):
    """The cache of one kernel, as Numba's dispatcher uses it."""

    def read(self, key: tuple[Any, ...]) -> bytes | None:
        """What was written for ``key``, or None where nothing was, or it cannot be read or is damaged."""
        whole, path = self._place(key)
        try:
            found = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn("kernels cannot be read and are compiled anew", error)
            return None
        head = len(_MAGIC) + _DIGEST_BYTES
        if found[:head] != _MAGIC + _digest(whole, found[head:]):
            self._warn("damaged files are compiled anew and replaced", path.name)
            return None
        return found[head:]

    def write(self, key: tuple[Any, ...], content: bytes) -> None:
        """Write ``content`` for ``key``, where that can be."""
        whole, path = self._place(key)
        if NOT_CACHED.encode() in whole:
            return
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(_MAGIC + _digest(whole, content) + content)
                partial.replace(path)  # other processes see all of it or nothing
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if os.name == "nt" and path.exists():  # where no file is replaced that another process reads
                return
            self._warn("kernels cannot be written and are compiled in every process", error)

    def _place(self, key: tuple[Any, ...]) -> tuple[bytes, Path]:
        """All that a kernel depends on beside its name, and its file."""
        whole = repr((numba.__version__, llvmlite.__version__, key)).encode()
        return whole, Path(self.folder) / f"{self.name}.{_digest(whole).hex()[:16]}.nbc"

    def _warn(self, what: str, example: object) -> None:
        said = self.folder, what
        if said not in _said:
            _said.add(said)
            logger.warning(f"kernel cache {self.folder}: {what}: {example}")
