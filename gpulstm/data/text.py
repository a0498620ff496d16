"""Text from files, as bytes: read, split into train and held-out, described.

Any file is text to a byte-level model; "characters" are those of UTF-8 where a file is UTF-8, else its bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import checks

VOCABULARY = 256
SEPARATOR = b"\0"  # stands before and after every document; a prompt begins with it
HELD_OUT = 0.05
_LEAST = 16  # bytes in each part; less is no text
_SKIPPED = {"__pycache__", "site-packages", "dist-packages"}
_SKIPPED_IN_STDLIB = {*_SKIPPED, "test", "tests"}


@dataclass(frozen=True)
class Corpus:
    """Documents by part; ``source`` says where they are from, ``digest`` (SHA-256) what they are."""

    source: str
    train: tuple[bytes, ...]
    held_out: tuple[bytes, ...]
    digest: str

    def describe(self) -> str:
        """One line for people."""
        sizes = f"{_megabytes(self.train)} to train on, {_megabytes(self.held_out)} held out"
        return f"{self.source}: {len(self.train)} files, {sizes}"


def read(data: str | Path | None = None) -> Corpus:
    """The corpus in ``data``: a file, a directory (its text files, recursively), or None for the source of
    the standard library of the Python that is running.

    About 5% of the bytes are held out: whole files, chosen by the hash of their relative path, or the end of
    each file where there are too few for that. The same files give the same split on every machine.

    Raises:
        ValueError: ``data`` is missing, unreadable, empty, too short, or a directory without text.
        TypeError: it is no path.
    """
    if data is None:
        root = Path(sysconfig.get_path("stdlib"))
        files = {name: path for name, path in _walk(root, _SKIPPED_IN_STDLIB) if name.endswith(".py")}
        source = f"Python standard library ({root})"
    else:
        root = checks.path(data, "data")
        source = str(root)
        try:
            mode = root.stat().st_mode
        except OSError as error:
            raise ValueError(f"data: expected a file or a directory, got {source!r}: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            files = dict(_walk(root, _SKIPPED))
        elif stat.S_ISREG(mode):
            files = {root.name: root}
        else:
            raise ValueError(f"data: expected a file or a directory, but {source!r} is neither")
    documents = {name: _read(path) for name, path in files.items()}
    if root.is_dir():
        documents = {name: text for name, text in documents.items() if _is_text(text)}
        if not documents:
            raise ValueError(
                f"data: expected text in the directory {source!r}, found {len(files)} files, all empty or binary"
            )
    digest = hashlib.sha256()
    for name, text in documents.items():
        digest.update(b"%d %d " % (len(name.encode("utf-8", "surrogateescape")), len(text)))
        digest.update(name.encode("utf-8", "surrogateescape") + text)
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
    return Corpus(source, tuple(train), tuple(held_out), digest.hexdigest())


def character_starts(document: bytes) -> np.ndarray:
    """(bytes,) bool: True where a character begins; everywhere in a document that is not UTF-8."""
    codes = np.frombuffer(document, np.uint8)
    try:
        document.decode("utf-8")
    except UnicodeDecodeError:
        return np.ones(len(codes), bool)
    return (codes & 0xC0) != 0x80


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"data: could not read {str(path)!r}: {error.strerror}; expected a text file") from error


def _is_text(content: bytes) -> bool:
    return bool(content) and b"\0" not in content[:8192]  # as git tells text from binary


def _split(documents: dict[str, bytes]) -> tuple[list[bytes], list[bytes]]:
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
    return [text[: cuts[n]] for n, text in documents.items()], [text[cuts[n] :] for n, text in documents.items()]


def _cut(text: bytes) -> int:
    """Where the held-out end begins: at the start of a character, if the text is UTF-8."""
    cut = int(len(text) * (1 - HELD_OUT))
    for at in range(cut, min(cut + 4, len(text))):
        if text[at] & 0xC0 != 0x80:
            return at
    return cut


def _megabytes(texts: tuple[bytes, ...]) -> str:
    return f"{sum(map(len, texts)) / 1e6:.2f} MB"
