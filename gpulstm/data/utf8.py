"""UTF-8 byte by byte: whether a document is, and which bytes may come next."""

from __future__ import annotations

import codecs

from .joined import Document

_CHUNK = 1 << 20  # so that no second copy of a long document is made
# The first byte after these is one of fewer: no overlong forms, no surrogates, nothing beyond U+10FFFF.
_AFTER = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
_CONTINUATION = (0x80, 0xBF)


def is_utf8(document: Document) -> bool:
    """Whether ``document`` is valid UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(document), _CHUNK):
            decoder.decode(bytes(document[at : at + _CHUNK]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


class Writer:
    """Follows a text that is written byte by byte, from the start of a character on."""

    def __init__(self) -> None:
        self._left = 0  # bytes that the character lacks
        self._range = _CONTINUATION

    def impossible(self) -> tuple[slice, slice]:
        """The bytes that cannot come next."""
        if self._left == 0:
            return slice(0x80, 0xC2), slice(0xF5, 0x100)
        return slice(0, self._range[0]), slice(self._range[1] + 1, 0x100)

    def add(self, byte: int) -> None:
        """``byte`` came, one of those that can."""
        if self._left:
            self._left -= 1
            self._range = _CONTINUATION
        elif byte >= 0x80:
            self._left = 1 + (byte >= 0xE0) + (byte >= 0xF0)
            self._range = _AFTER.get(byte, _CONTINUATION)
