"""Compiled kernels on disk: one file a kernel and types of its arguments, which is checked before it is read.

Numba's own cache has an index that processes write over each other's, believes whatever its files hold, and ends a
call where its folder cannot be written. Here a file is named by a digest of all that it depends on, and begins with a
digest of what follows. A file that was cut or changed is compiled anew and replaced; where nothing can be written,
kernels are compiled for the process alone. Either is logged once a folder. The digest tells damage, not intent: whoever
may write to the folder may run code, as with Numba's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

logger = logging.getLogger("gpulstm")
_said: set[tuple[str, str]] = set()  # what was logged, by folder
NOT_KEPT = "not kept on disk"  # in the name of a type whose kernels are not
_MAGIC = b"gpulstm kernel 1\n"
_DIGEST_BYTES = 32


def _digest(*contents: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(contents), digest_size=_DIGEST_BYTES).digest()


class DiskCache(FunctionCache):
    """The cache of one kernel, as Numba's dispatcher uses it."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for ``sig``, or None.

        Before Numba's cache looks for a file, it imports what implements Python and NumPy in Numba and fills its
        tables, a third of a second that a process spends in vain where everything comes from the cache. Numba does so
        again before it compiles.
        """
        rtsys.initialize(target_context)  # machine code calls it
        key, path = self._place(sig, target_context.codegen())
        try:
            found = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn("kernels cannot be read and are compiled anew", error)
            return None
        head = len(_MAGIC) + _DIGEST_BYTES
        if found[:head] != _MAGIC + _digest(key, found[head:]):
            self._warn("damaged files are compiled anew and replaced", path.name)
            return None
        return self._impl.rebuild(target_context, pickle.loads(found[head:]))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for ``sig``, where that can be."""
        key, path = self._place(sig, data.codegen)
        if NOT_KEPT.encode() in key or not self._impl.check_cachable(data):
            return
        content = dumps(self._impl.reduce(data))
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(_MAGIC + _digest(key, content) + content)
                partial.replace(path)  # other processes see all of it or nothing
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if os.name == "nt" and path.exists():  # where no file is replaced that another process reads
                return
            self._warn("kernels cannot be written and are compiled in every process", error)

    def _place(self, sig: Any, codegen: Any) -> tuple[bytes, Path]:
        """What a kernel for ``sig`` depends on beside its name, and its file."""
        key = repr((numba.__version__, llvmlite.__version__, self._index_key(sig, codegen))).encode()
        return key, Path(self._cache_path) / f"{self._impl.filename_base}.{_digest(key).hex()[:16]}.nbc"

    def _warn(self, what: str, example: object) -> None:
        said = self._cache_path, what
        if said not in _said:
            _said.add(said)
            logger.warning(f"kernel cache {self._cache_path}: {what}: {example}")
