"""Long files, mapped into memory instead of read.

Mapping costs no memory and no time before the first step, but the file must not change meanwhile. Renaming or
deleting it, or replacing it by a rename, is harmless: the mapping keeps the old file alive. Cutting it short in place
is fatal, since the system ends a process that reads beyond the end (SIGBUS); its length is therefore checked right
before every batch is gathered, which leaves the moment of one copy. Writing over it in place gives other bytes; that
is logged once, and --resume refuses the file, whose digest differs. Files smaller than :data:`LEAST` are read at once.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("gpulstm")
LEAST = 1 << 24  # bytes; a file below is read at once in some milliseconds
MOST = 64  # files, each of which keeps a descriptor open; further ones are read
_CHUNK = 1 << 22


class Mapped:
    """The file at ``path``, not empty, as ``content``.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as stream:
            self._before = os.fstat(stream.fileno())
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.content = memoryview(self._map)
        self._said = False

    def chunks(self) -> Iterator[bytes]:
        """Its bytes from first to last, read rather than mapped: pages that are mapped count as the process's own."""
        with open(self.path, "rb", buffering=0) as stream:
            if not os.path.samestat(os.fstat(stream.fileno()), self._before):
                raise ValueError(f"data: {str(self.path)!r} was replaced while it was read; expected it to stay")
            while chunk := stream.read(_CHUNK):
                yield chunk

    def check(self) -> None:
        """Check that the file is as it was, and release its pages, which are read again when they are needed.

        Raises:
            ValueError: it is shorter now.
        """
        size = self._map.size()  # of the file itself, whatever its name is now
        if size < len(self.content):
            raise ValueError(
                f"data: {str(self.path)!r} was cut to {size} bytes while it was in use; "
                f"expected its {len(self.content)} bytes to stay until training ends"
            )
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        try:
            now = os.stat(self.path)
        except OSError:  # it has another name now, or none
            return
        same = os.path.samestat(now, self._before)
        if same and now.st_mtime_ns != self._before.st_mtime_ns and not self._said:
            logger.warning(
                "data: %r was written to while it was in use; if its bytes are others now, --resume refuses it",
                str(self.path),
            )
            self._said = True
