"""Documents end to end, without a copy: a ring of bytes that is read in place, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

Document: TypeAlias = "bytes | memoryview"


class Joined:
    """``documents`` in the ``order`` given, each followed by ``separator``; after the last comes the first again."""

    def __init__(self, documents: Sequence[Document], separator: bytes, order: Iterable[int] | None = None) -> None:
        chosen = range(len(documents)) if order is None else order
        after = np.frombuffer(separator, np.uint8)
        self._parts = [part for i in chosen for part in (np.frombuffer(documents[i], np.uint8), after)]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.size = int(self._ends[-1]) if self._parts else 0

    def take(self, at: int, count: int) -> np.ndarray:
        """(count,) uint8: the bytes from position ``at`` on."""
        result = np.empty(count, np.uint8)
        filled = 0
        for part, begin, end in self._runs(at, count):
            result[filled : filled + end - begin] = self._parts[part][begin:end]
            filled += end - begin
        return result

    def characters(self, at: int, count: int, utf8: Sequence[bool]) -> int:
        """How many characters begin in the bytes from ``at`` on; separators are none.

        In a document for which ``utf8`` is False every byte is one. The documents are in the order they were given in.
        """
        found = 0
        for part, begin, end in self._runs(at, count):
            if part % 2:
                continue
            codes = self._parts[part][begin:end]
            found += int(np.count_nonzero((codes & 0xC0) != 0x80)) if utf8[part // 2] else len(codes)
        return found

    def _runs(self, at: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Part, begin and end in it, of each run of bytes that lies in one part."""
        at %= self.size
        part = int(np.searchsorted(self._ends, at, side="right"))
        begin = at - (int(self._ends[part]) - len(self._parts[part]))
        while count > 0:
            end = min(len(self._parts[part]), begin + count)
            yield part, begin, end
            count -= end - begin
            part, begin = (part + 1) % len(self._parts), 0
