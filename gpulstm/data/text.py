"""Text from files, as bytes: read or mapped, split into train and held-out, described.

Any file is text to a byte-level model; "characters" are those of UTF-8 where a file is UTF-8, else its bytes. UTF-16
and UTF-32, of which such a model would learn the zeros between the letters, become UTF-8 where they say what they are.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import checks
from . import mapped, packages
from .joined import Document
from .mapped import Mapped

_T = TypeVar("_T")
VOCABULARY = 256
SEPARATOR = b"\0"  # stands before and after every document; a prompt begins with it
HELD_OUT = 0.05
_LEAST = 16  # bytes in each part; less is no text
_NAMED = ("shakespeare",)  # of the data in packages that which is text
_SKIPPED = {"__pycache__", "site-packages", "dist-packages"}
_SKIPPED_IN_STDLIB = {*_SKIPPED, "test", "tests"}
_VIEWED = 1 << 20  # bytes; a shorter file is cut by copying
_HEAD = 8192  # bytes that show what a file is
_WIDE = {  # the marks that such files begin with; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ZEROS = ((0, 1, 0, 1), (1, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 0))  # which of four bytes are, in their Latin text


@dataclass(frozen=True)
class Corpus:
    """Documents by part, each bytes or a view of some; ``source`` says where from, ``digest`` (SHA-256) what they are.

    ``notes`` say what was done to them; ``mapped`` are the files that some of them lie in.
    """

    source: str
    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    digest: str
    notes: tuple[str, ...] = ()
    mapped: tuple[Mapped, ...] = field(default=(), compare=False, repr=False)

    def describe(self) -> str:
        """One line for people."""
        sizes = f"{_megabytes(self.train)} to train on, {_megabytes(self.held_out)} held out"
        return "; ".join((f"{self.source}: {len(self.train)} files, {sizes}", *self.notes))

    def check(self) -> None:
        """See that the documents can be read on; call it before reading.

        Raises:
            ValueError: a mapped file was cut short.
        """
        for file in self.mapped:
            file.check()


def read(data: str | Path | None = None, progress: Callable[[int, int], None] | None = None) -> Corpus:
    """The corpus in ``data``: a file, a directory (its text files, recursively), ``"shakespeare"`` (a package's, see
    :mod:`gpulstm.data.packages`), or None for the source of the standard library of the Python that is running.

    About 5% of the bytes are held out: whole files, chosen by the hash of their relative path, or the end of
    each file where there are too few for that. The same files give the same split on every machine. Long files are
    mapped, not copied (see :mod:`gpulstm.data.mapped`). ``progress`` is told how many bytes of how many were read.

    Raises:
        ValueError: ``data`` is missing, unreadable, empty, too short, a directory without text, or UTF-16 that is
            damaged or does not begin with its byte order mark; or it cannot be downloaded.
        TypeError: it is no path.
    """
    checks.function(progress, "progress")
    if data is None:
        root = Path(sysconfig.get_path("stdlib"))
        paths = {name: path for name, path in _walk(root, _SKIPPED_IN_STDLIB) if name.endswith(".py")}
        source = f"Python standard library ({root})"
    else:
        root, source = packages.found(checks.path(data, "data"), _NAMED, progress)
        try:
            mode = root.stat().st_mode
        except OSError as error:
            raise ValueError(f"data: expected a file or a directory, got {source!r}: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            paths = dict(_walk(root, _SKIPPED))
        elif stat.S_ISREG(mode):
            paths = {root.name: root}
        else:
            raise ValueError(f"data: expected a file or a directory, but {source!r} is neither")
    reader = _Reader(root.is_dir(), progress)
    reader.read(paths)
    documents = reader.documents
    if root.is_dir() and not documents:
        raise ValueError(
            f"data: expected text in the directory {source!r}, found {len(paths)} files, all empty or binary"
        )
    size = sum(map(len, documents.values()))
    if size == 0:
        raise ValueError(f"data: {source!r} is empty; expected text")
    train, held_out = _split(documents)
    for part, texts in (("training", train), ("held-out", held_out)):
        if (left := sum(map(len, texts))) < _LEAST:
            raise ValueError(
                f"data: {source!r} is too short: {size} bytes leave {left} for the {part} part, "
                f"expected at least {_LEAST}"
            )
    return Corpus(
        source, tuple(train), tuple(held_out), reader.digest.hexdigest(), reader.notes(), tuple(reader.mapped)
    )


class _Reader:
    """Reads files into ``documents`` by name, and their SHA-256; in a directory leaves out what is no text."""

    def __init__(self, in_directory: bool, progress: Callable[[int, int], None] | None) -> None:
        self.documents: dict[str, Document] = {}
        self.mapped: list[Mapped] = []
        self.digest = hashlib.sha256()
        self._in_directory, self._progress = in_directory, progress
        self._decoded = self._unmarked = self._done = self._total = 0

    def read(self, paths: dict[str, Path]) -> None:
        """All files of ``paths``, in their order."""
        sizes = {name: _tried(path, path.stat).st_size for name, path in paths.items()}
        self._total = sum(sizes.values())
        for name, path in paths.items():
            if sizes[name] < mapped.LEAST or len(self.mapped) >= mapped.MOST:
                self._add(name, path, _tried(path, path.read_bytes))
            else:
                file = _tried(path, partial(Mapped, path))
                if self._add(name, path, file.content, file.chunks()):
                    self.mapped.append(file)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of it."""
        decoded = f"{self._decoded} converted from UTF-16 or UTF-32 to UTF-8"
        unmarked = f"{self._unmarked} left out that look like UTF-16 or UTF-32 without a byte order mark"
        return (*([decoded] if self._decoded else ()), *([unmarked] if self._unmarked else ()))

    def _add(self, name: str, path: Path, content: Document, chunks: Iterable[bytes] | None = None) -> bool:
        """Take in a file, whose bytes ``chunks`` give again; whether ``content`` itself is the document."""
        text = self._text(path, content)
        if text is not None:
            encoded = name.encode("utf-8", "surrogateescape")
            self.digest.update(b"%d %d " % (len(encoded), len(text)) + encoded)
            for chunk in chunks if text is content and chunks is not None else (text,):
                self.digest.update(chunk)
                self._count(len(chunk))
            self.documents[name] = text
        return text is content

    def _text(self, path: Path, content: Document) -> Document | None:
        """``content``, as UTF-8 if it says that it is UTF-16 or UTF-32; None if it is binary, in a directory."""
        head = bytes(content[:_HEAD])
        encoding = next((_WIDE[mark] for mark in _WIDE if head.startswith(mark)), None)
        if encoding is not None:
            try:
                text = _to_utf8(content, encoding)
                self._decoded += 1
                return text if text or not self._in_directory else None
            except UnicodeDecodeError as error:  # binary files, too, may begin with the same bytes
                if not self._in_directory:
                    raise ValueError(
                        f"data: {str(path)!r} begins as {encoding}, but is not: {error.reason}; "
                        f"expected text in UTF-8, or all of it in {encoding}"
                    ) from error
        unmarked = encoding is None and _is_wide(head)
        if not self._in_directory:
            if unmarked:
                raise ValueError(
                    f"data: {str(path)!r} looks like UTF-16 or UTF-32 without a byte order mark; expected UTF-8, "
                    f"which for example iconv -f utf-16le -t utf-8 makes of it"
                )
            return content
        self._unmarked += unmarked
        return content if head and b"\0" not in head else None  # as git tells text from binary

    def _count(self, size: int) -> None:
        self._done = min(self._done + size, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _tried(path: Path, access: Callable[[], _T]) -> _T:
    """What ``access`` to the file at ``path`` gives."""
    try:
        return access()
    except OSError as error:
        raise ValueError(f"data: could not read {str(path)!r}: {error.strerror}; expected a text file") from error


def _to_utf8(content: Document, encoding: str) -> bytes:
    """Text in ``encoding``, which begins with its mark, in UTF-8 without one; in pieces, since it may be long."""
    decoder = codecs.getincrementaldecoder(encoding)()
    pieces = []
    for at in range(0, len(content), 1 << 20):
        piece = bytes(content[at : at + (1 << 20)])
        pieces.append(decoder.decode(piece, final=at + len(piece) == len(content)).encode())
    return b"".join(pieces)


def _is_wide(head: bytes) -> bool:
    """Whether ``head`` looks like Latin text in UTF-16 or UTF-32: nearly all of some of four bytes are zero, and
    nearly none of the others."""
    zeros = np.frombuffer(head[: len(head) // 4 * 4], np.uint8).reshape(-1, 4) == 0
    if len(zeros) < 4:
        return False
    return any(bool((np.abs(zeros.mean(0) - pattern) < 0.2).all()) for pattern in _ZEROS)


def _walk(root: Path, skipped: set[str]) -> Iterator[tuple[str, Path]]:
    """Regular files below ``root`` with their path relative to it ("/" between), in that path's order."""
    found = []

    def refuse(error: OSError) -> None:
        raise ValueError(f"data: could not read the directory {error.filename!r}: {error.strerror}") from error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if name not in skipped and not name.startswith(".") and not _is_run(Path(folder, name))
        ]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += [(path.relative_to(root).as_posix(), path) for path in paths if path.is_file()]
    yield from sorted(found)


def _is_run(folder: Path) -> bool:
    """Whether ``folder`` holds checkpoints: what training writes inside its data must not become data."""
    return any(folder.glob("step-????????"))


def _split(documents: dict[str, Document]) -> tuple[list[Document], list[Document]]:
    size = sum(map(len, documents.values()))
    held: set[str] = set()
    held_size = 0
    for name in sorted(documents, key=lambda n: hashlib.sha256(n.encode("utf-8", "surrogateescape")).digest()):
        if held_size >= HELD_OUT * size:
            break
        if held_size + len(documents[name]) <= 1.5 * HELD_OUT * size:
            held.add(name)
            held_size += len(documents[name])
    if held_size >= 0.5 * HELD_OUT * size:
        train = [text for name, text in documents.items() if name not in held]
        return train, [documents[name] for name in documents if name in held]
    cuts = {name: _cut(text) for name, text in documents.items()}
    views = {name: memoryview(text) if len(text) >= _VIEWED else text for name, text in documents.items()}
    return [text[: cuts[n]] for n, text in views.items()], [text[cuts[n] :] for n, text in views.items()]


def _cut(text: Document) -> int:
    """Where the held-out end begins: at the start of a character, if the text is UTF-8."""
    cut = int(len(text) * (1 - HELD_OUT))
    for at in range(cut, min(cut + 4, len(text))):
        if text[at] & 0xC0 != 0x80:
            return at
    return cut


def _megabytes(texts: Sequence[Document]) -> str:
    return f"{sum(map(len, texts)) / 1e6:.2f} MB"
