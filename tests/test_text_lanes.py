"""Lanes of text: every byte once an epoch, from files that are mapped, and may change meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from text_files import PROSE, fill

from gpulstm.data import Lanes, mapped
from gpulstm.data import lanes as lanes_module
from gpulstm.data.text import read
from gpulstm.tasks.text import Settings, TextTask


def test_lanes_cover_the_data_once_an_epoch():
    documents = [bytes([65 + i]) * (20 + i) for i in range(26)]
    size = sum(map(len, documents)) + 26
    lanes = Lanes(documents, batch=4, seq_len=10, seed=1)
    assert lanes.steps_per_epoch == (size - 1) // 4 // 10
    seen: list[Counter[int]] = []
    for epoch in range(3):
        counts: Counter[int] = Counter()
        before = None
        for window in range(lanes.steps_per_epoch):
            assert lanes.epoch == epoch
            batch = lanes.next()
            assert batch["inputs"].shape == batch["targets"].shape == (10, 4)
            assert batch.tokens == 40
            assert batch.fresh == (window == 0)
            np.testing.assert_array_equal(batch["inputs"][1:], batch["targets"][:-1])
            if before is not None:
                np.testing.assert_array_equal(batch["inputs"][0], before["targets"][-1])
            before = batch
            counts.update(batch["targets"].reshape(-1).tolist())
        seen.append(counts)
        for code in range(65, 91):
            assert counts[code] <= code - 65 + 20
        left = size - sum(counts.values())
        assert 1 <= left <= 1 + 4 * 10 + 3
    assert seen[0] != seen[1] or seen[1] != seen[2]  # the bytes left over are others each time


def test_lanes_depend_on_the_seed_alone():
    documents = [b"abc" * 50, b"defg" * 40, b"xyz" * 33]
    for seed, same in ((3, True), (4, False)):
        a, b = Lanes(documents, 2, 9, seed=3), Lanes(documents, 2, 9, seed=seed)
        equal = [np.array_equal(a.next()["inputs"], b.next()["inputs"]) for _ in range(50)]
        assert all(equal) if same else not any(equal)


def test_lanes_go_on_anywhere():
    documents = [b"abc" * 50, b"defg" * 40]
    whole = Lanes(documents, 3, 7, seed=2)
    steps = 2 * whole.steps_per_epoch + 2
    states, batches = [], []
    for _ in range(steps):
        states.append(whole.state_dict())
        batches.append(whole.next())
    for at in range(steps):
        other = Lanes(documents, 3, 7, seed=2)
        other.load_state_dict(states[at])
        assert other.state_dict() == states[at]
        for expected in batches[at:]:
            found = other.next()
            assert found.fresh == expected.fresh
            np.testing.assert_array_equal(found["inputs"], expected["inputs"])
            np.testing.assert_array_equal(found["targets"], expected["targets"])


class Rolled:
    """Lanes as they are described: all documents in one array, which is rolled and cut."""

    def __init__(self, documents: list[bytes], batch: int, seq_len: int, seed: int, separator: bytes) -> None:
        self.batch, self.seq_len, self.seed = batch, seq_len, seed
        self.documents = [np.frombuffer(document + separator, np.uint8) for document in documents]

    def epoch(self, number: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, number])
        ring = np.concatenate([self.documents[i] for i in rng.permutation(len(self.documents))])
        ring = np.roll(ring, -int(rng.integers(len(ring))))
        length = (len(ring) - 1) // self.batch
        lanes = np.stack([ring[lane * length : (lane + 1) * length + 1] for lane in range(self.batch)])
        for at in range(0, length // self.seq_len * self.seq_len, self.seq_len):
            yield lanes[:, at : at + self.seq_len + 1].T


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
@pytest.mark.parametrize("separator", [b"\0", b"", b"<end>"])
def test_lanes_are_those_of_one_long_array(monkeypatch, block, separator):
    monkeypatch.setattr(lanes_module, "_BLOCK", block)
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 256, size, np.uint8).tobytes() for size in (200, 1, 0, 77, 350, 2)]
    for batch, seq_len, seed in ((1, 1, 0), (3, 7, 1), (5, 110, 2), (40, 3, 3)):
        lanes = Lanes([memoryview(d) for d in documents], batch, seq_len, seed=seed, separator=separator)
        for epoch in range(3):
            for window in Rolled(documents, batch, seq_len, seed, separator).epoch(epoch):
                assert lanes.epoch == epoch
                found = lanes.next()
                np.testing.assert_array_equal(found["inputs"], window[:-1])
                np.testing.assert_array_equal(found["targets"], window[1:])
                assert found["inputs"].dtype == found["targets"].dtype == np.int64


def test_mapped_files_are_as_those_read(tmp_path, monkeypatch):
    fill(tmp_path, 60)
    for path in (tmp_path, tmp_path / "part0" / "0.txt"):
        expected = read(path)
        with monkeypatch.context() as patch:
            patch.setattr(mapped, "LEAST", 300)
            corpus = read(path)
        assert corpus == expected
        assert corpus.mapped
        assert not expected.mapped


def test_progress_is_told_of_every_byte(tmp_path, monkeypatch):
    fill(tmp_path, 40)
    monkeypatch.setattr(mapped, "LEAST", 300)
    monkeypatch.setattr(mapped, "_CHUNK", 7)
    told: list[tuple[int, int]] = []
    corpus = read(tmp_path, lambda *figures: told.append(figures))
    size = sum(map(len, corpus.train + corpus.held_out))
    assert told[-1] == (size, size)
    assert sorted(told) == told
    assert len(told) > size / 10
    told.clear()
    TextTask(Settings(embed=2, hidden=2, batch=3, seq_len=5), corpus).evaluate(lambda *figures: told.append(figures))
    assert told[-1][0] == told[-1][1] == sum(map(len, corpus.held_out)) + len(corpus.held_out)


def long_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> TextTask:
    """A task on a mapped file of 100 kB of which every batch is gathered by itself."""
    path.write_bytes(PROSE.encode() * 1000)
    monkeypatch.setattr(mapped, "LEAST", 1)
    monkeypatch.setattr(lanes_module, "_BLOCK", 1)
    return TextTask(Settings(embed=2, hidden=2, batch=3, seq_len=50), read(path))


@pytest.mark.skipif(os.name == "nt", reason="a file that is mapped cannot be cut short on Windows")
@pytest.mark.parametrize("name", ["a", "a.1"])
def test_a_mapped_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path, monkeypatch, name):
    task = long_file(tmp_path / "a", monkeypatch)
    task.batches.next()
    os.rename(tmp_path / "a", tmp_path / name)  # as logs are rotated
    os.truncate(tmp_path / name, 50)
    message = r"data: '.*a' was cut to 50 bytes while it was in use; expected its \d+ bytes to stay until training ends"
    for use in (task.batches.next, task.validate, task.evaluate):
        with pytest.raises(ValueError, match=message):
            use()


def test_so_many_files_are_mapped_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "LEAST", 1)
    monkeypatch.setattr(mapped, "MOST", 2)
    for name in "abcd":
        (tmp_path / name).write_bytes(PROSE.encode())
    corpus = read(tmp_path)
    assert [file.path.name for file in corpus.mapped] == ["a", "b"]
    monkeypatch.setattr(mapped, "LEAST", 1 << 24)
    assert read(tmp_path).digest == corpus.digest


@pytest.mark.skipif(os.name == "nt", reason="a file that is mapped cannot be replaced on Windows")
def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"the first")
    file = mapped.Mapped(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"the other")
    os.replace(tmp_path / "b", tmp_path / "a")
    with pytest.raises(ValueError, match=r"data: '.*a' was replaced while it was read; expected it to stay"):
        list(file.chunks())


@pytest.mark.skipif(os.name == "nt", reason="a file that is mapped cannot be removed on Windows")
def test_a_mapped_file_that_is_replaced_stays_as_it_was(tmp_path, monkeypatch, caplog):
    task = long_file(tmp_path / "a", monkeypatch)
    other = Lanes([bytes(task._corpus.train[0])], 3, 50)
    (tmp_path / "b").write_text("short")
    for change in (lambda: os.replace(tmp_path / "b", tmp_path / "a"), (tmp_path / "a").unlink):
        change()
        np.testing.assert_array_equal(task.batches.next()["inputs"], other.next()["inputs"])
        assert task.validate()["bits_per_char"] > 0
    assert not caplog.records


@pytest.mark.skipif(os.name == "nt", reason="a file that is mapped cannot be written to on Windows")
def test_a_mapped_file_that_is_written_over_is_said_once(tmp_path, monkeypatch, caplog):
    task = long_file(tmp_path / "a", monkeypatch)
    with open(tmp_path / "a", "r+b") as stream:
        stream.write(b"other")
    os.utime(tmp_path / "a", (1, 1))
    for _ in range(3):
        task.batches.next()
    assert len(caplog.records) == 1
    assert "was written to while it was in use" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux has it")
def test_a_long_file_takes_little_memory(tmp_path):
    """Reading, a batch from everywhere in the file, all of it once, and a validation."""
    size = 1 << 26
    code = f"""
from gpulstm.data.text import read
from gpulstm.tasks.text import Settings, TextTask, evaluate
import numpy as np
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def use(name):
    corpus = read(name)
    task = TextTask(Settings(embed=2, hidden=2, layers=1, batch=64, seq_len=128), corpus)
    for _ in range(task.batches.steps_per_epoch + 1):
        task.batches.next()
    assert task.batches.epoch == 1
    table = np.zeros((256, 256), np.float32)
    evaluate(lambda ids, state: (table[ids], state), corpus.held_out, limit=65536, check=corpus.check, utf8=[task.utf8])
use({str(tmp_path / "short")!r})  # what the modules take is none of it
before = peak()
use({str(tmp_path / "long")!r})
print(peak() - before)
"""
    for name, length in (("short", 1 << 20), ("long", size)):
        with open(tmp_path / name, "wb") as stream:
            for _ in range(length // (1 << 20)):
                stream.write((PROSE.encode() * (1 << 14))[: 1 << 20])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.6 * size  # measured: 0.27, the same 17 MB whatever the size


def test_lanes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"data: too short: 5 bytes .* expected more than batch 2 × seq_len 4 = 8"):
        Lanes([b"abcd"], 2, 4)
    with pytest.raises(ValueError, match="batch: expected an integer >= 1, got 0"):
        Lanes([b"abcd"], 0, 4)
    with pytest.raises(ValueError, match="seq_len: expected an integer >= 1, got -1"):
        Lanes([b"abcd"], 1, -1)
    state = Lanes([b"abcdefgh"], 1, 4).state_dict()
    for other, message in (
        (Lanes([b"abcdefgh"], 2, 4), "batch 1, expected 2"),
        (Lanes([b"abcdefgh"], 1, 3), "seq_len 4, expected 3"),
        (Lanes([b"abcdefghi"], 1, 4), "bytes 9, expected 10"),
        (Lanes([b"abcdefgh"], 1, 4, seed=1), "seed 0, expected 1"),
    ):
        with pytest.raises(ValueError, match=f"data position: made for {message}"):
            other.load_state_dict(state)
