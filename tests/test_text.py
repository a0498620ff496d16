"""Text files as a data set: how they are split, what is refused, encodings."""

from __future__ import annotations

import os
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from text_files import PROSE, fill

from gpulstm.data import mapped, packages, utf8
from gpulstm.data.text import read


def test_a_file_is_split_by_position(tmp_path):
    path = tmp_path / "a.txt"
    for shift in range(8):  # wherever the cut falls, no character is cut
        content = ("x" * shift + "größe 中文 " * 100).encode()
        path.write_bytes(content)
        corpus = read(path)
        assert corpus.train[0] + corpus.held_out[0] == content
        assert len(corpus.held_out[0]) == pytest.approx(0.05 * len(content), abs=4)
        corpus.train[0].decode()
        corpus.held_out[0].decode()


def test_a_directory_is_split_by_file(tmp_path):
    fill(tmp_path, 100)
    corpus = read(tmp_path)
    assert len(corpus.train) + len(corpus.held_out) == 100
    assert len(corpus.held_out) == 5
    assert not set(corpus.train) & set(corpus.held_out)
    assert read(str(tmp_path)) == corpus
    assert corpus.describe() == f"{tmp_path}: 95 files, 0.04 MB to train on, 0.00 MB held out"


def test_few_files_are_split_by_position_each(tmp_path):
    fill(tmp_path, 3)
    corpus = read(tmp_path)
    assert len(corpus.train) == len(corpus.held_out) == 3
    assert {a + b for a, b in zip(corpus.train, corpus.held_out, strict=True)} == {
        path.read_bytes() for path in tmp_path.rglob("*.txt")
    }


def test_one_large_file_is_not_held_out(tmp_path):
    fill(tmp_path, 60)
    (tmp_path / "large.txt").write_bytes(PROSE.encode() * 1000)
    corpus = read(tmp_path)
    held, size = sum(map(len, corpus.held_out)), sum(map(len, corpus.train + corpus.held_out))
    assert 0.025 < held / size < 0.075


def test_the_standard_library_is_the_default():
    corpus = read()
    root = Path(sysconfig.get_path("stdlib"))
    everything = Counter(corpus.train + corpus.held_out)
    assert everything[(root / "os.py").read_bytes()] == 1
    assert not everything.keys() & {path.read_bytes() for path in root.glob("test/test_[a-d]*.py")}
    held, size = sum(map(len, corpus.held_out)), sum(map(len, corpus.train + corpus.held_out))
    assert size > 5e6
    assert 0.045 < held / size < 0.075
    assert read() == corpus


def test_a_name_is_text_in_a_package_where_no_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GPULSTM_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = packages.folder("shakespeare")
    folder.mkdir(parents=True)
    (folder / "a_gut.txt").write_text("To be, or not to be. " * 40)
    corpus = read("shakespeare")
    assert corpus.source == "shakespeare (shakespeare 0.6, texts in the public domain, package CC-BY 2.5)"
    assert corpus.digest == read(folder).digest
    (tmp_path / "shakespeare").write_text("Now is the winter. " * 40)
    assert read("shakespeare").source == "shakespeare"


def test_what_is_left_out_of_a_directory(tmp_path):
    fill(tmp_path, 40)
    expected = read(tmp_path)
    for name in (".git/config", "__pycache__/a.pyc", "site-packages/b.py", "runs/step-00000001/c.json", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("not for you")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "runs" / "metrics.jsonl").write_text("nor this")
    assert read(tmp_path) == expected


def test_the_digest_tells_data_apart(tmp_path):
    fill(tmp_path / "a", 10)
    fill(tmp_path / "b", 10)
    first = read(tmp_path / "a").digest
    assert read(tmp_path / "b").digest == first
    (tmp_path / "b" / "part0" / "0.txt").rename(tmp_path / "b" / "part0" / "00.txt")
    assert read(tmp_path / "b").digest != first
    (tmp_path / "a" / "part0" / "0.txt").write_text("other")
    assert read(tmp_path / "a").digest != first


def test_data_that_is_no_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("größe ".encode("latin-1") * 200)
    corpus = read(path)
    assert b"".join(corpus.train + corpus.held_out) == path.read_bytes()


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
def test_what_is_utf8(monkeypatch, chunk):
    monkeypatch.setattr(utf8, "_CHUNK", chunk)
    for document in ("g→ö", "", "😀", PROSE):
        assert utf8.is_utf8(document.encode())
        assert utf8.is_utf8(memoryview(document.encode()))
    for wrong in ("gröé".encode("latin-1"), "g→".encode()[:-1], b"\x80", b"\xc0\x80", b"\xed\xa0\x80"):
        assert not utf8.is_utf8(wrong)


def test_every_character_can_be_written_and_nothing_else():
    ends = (0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xCFFF, 0xD000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)
    rng = np.random.default_rng(0)
    for code in [*ends, *(int(code) for code in rng.integers(0x110000, size=500) if not 0xD800 <= code < 0xE000)]:
        writer = utf8.Writer()
        for byte in chr(code).encode():
            for part in writer.impossible():
                assert byte not in range(part.start, part.stop)
            writer.add(byte)
    written = bytearray()
    writer = utf8.Writer()
    for _ in range(20000):
        possible = np.ones(256, bool)
        for part in writer.impossible():
            possible[part] = False
        written.append(int(rng.choice(np.flatnonzero(possible))))
        writer.add(written[-1])
    text = written.decode("utf-8", errors="ignore")
    assert 20000 - 3 <= len(text.encode()) <= 20000  # no byte is wrong, though the last character may lack some


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_becomes_utf8(tmp_path, monkeypatch, encoding):
    prose = PROSE * 20
    for name in ("plain", "wide"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_bytes(
            prose.encode() if name == "plain" else ("\ufeff" + prose).encode(encoding)
        )
    plain = read(tmp_path / "plain" / "a.txt")
    for least in (1 << 24, 1):  # read, and mapped
        monkeypatch.setattr(mapped, "LEAST", least)
        for path in ("wide", "wide/a.txt"):
            wide = read(tmp_path / path)
            assert (wide.train, wide.held_out, wide.digest) == (plain.train, plain.held_out, plain.digest)
            assert wide.describe().endswith("held out; 1 converted from UTF-16 or UTF-32 to UTF-8")
    (tmp_path / "wide" / "a.txt").write_bytes(("x" * 500 + prose).encode(encoding))  # without the mark
    with pytest.raises(
        ValueError, match=r"data: '.*a\.txt' looks like UTF-16 or UTF-32 without a byte order mark; expe"
    ):
        read(tmp_path / "wide" / "a.txt")
    (tmp_path / "wide" / "b.txt").write_text(prose, "utf-8")
    left_out = "; 1 left out that look like UTF-16 or UTF-32 without a byte order mark"
    assert read(tmp_path / "wide").describe().endswith(f"0.00 MB held out{left_out}")


def test_wide_text_that_is_damaged(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff".encode("utf-16-le") + b"\x00\xd8" * 50)  # halves of surrogate pairs
    with pytest.raises(ValueError, match=r"data: '.*a\.txt' begins as UTF-16, but is not: illegal"):
        read(path)
    (tmp_path / "b.txt").write_text(PROSE * 20, "utf-8")
    assert len(read(tmp_path).train) == 1  # in a directory it is a binary file


def test_zeros_alone_are_no_wide_text(tmp_path):
    path = tmp_path / "a"
    for content in (bytes(4000), b"\0\0a\0" * 1000, b"ab\0" * 1000, np.arange(1000, dtype="<i4").tobytes()):
        path.write_bytes(content)
        assert len(read(path).train) == 1


def test_missing_data(tmp_path):
    with pytest.raises(ValueError, match=r"data: expected a file or a directory, got .*: "):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data: expected a path, got 'a\\x00b'"):
        read("a\0b")


def test_empty_data(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=r"data: '.*empty' is empty; expected text"):
        read(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"data: expected text in the directory '.*', found 1 files, all empty or b"):
        read(tmp_path)
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match=r"data: expected text in the directory '.*', found 0 files"):
        read(tmp_path / "new")


def test_short_data(tmp_path):
    (tmp_path / "short").write_text("0123456789" * 10)
    message = "data: '.*short' is too short: 100 bytes leave 5 for the held-out part, expected at least 16"
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "short")


def test_unreadable_data(tmp_path, monkeypatch):
    fill(tmp_path, 3)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"data: could not read '.*0\.txt': Permission denied; expected a text file"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_a_pipe_is_no_data(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"data: expected a file or a directory, but '.*pipe' is neither"):
        read(tmp_path / "pipe")
    fill(tmp_path, 3)
    read(tmp_path)  # and inside a directory it is passed over, not waited for
