"""One run at a time writes to a folder; the lock of one that is gone is in nobody's way."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpulstm import files
from gpulstm.files import FolderInUse, FolderLock

HOLD = """
import sys, time
from pathlib import Path
from gpulstm.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds ``folder`` until it is killed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_held_by_one_and_free_again(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(FolderInUse, match=rf"out: .* is in use by process {os.getpid()} on .+ since \d{{4}}-"):
            FolderLock(tmp_path).take()
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path).take()
    assert names(tmp_path) == []
    with FolderLock(tmp_path):
        assert names(tmp_path) == [".lock"]


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(FolderInUse, match=f"in use by process {process.pid} on "):
            FolderLock(tmp_path).take()
        process.kill()
        process.wait()
    assert names(tmp_path) == [".lock"]
    with FolderLock(tmp_path), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()} on "):
        FolderLock(tmp_path).take()
    assert names(tmp_path) == []


def test_folders_that_were_made_for_nothing_go(tmp_path):
    with FolderLock(tmp_path / "a" / "b") as lock:
        assert lock.made == [tmp_path / "a" / "b", tmp_path / "a"]
    assert names(tmp_path) == []
    with FolderLock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert names(tmp_path / "a" / "b") == ["result"]
    (tmp_path / "own").mkdir()
    with FolderLock(tmp_path / "own"):
        pass
    assert (tmp_path / "own").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed on Windows")
def test_a_folder_that_is_removed_is_noticed(tmp_path):
    with FolderLock(tmp_path / "out") as lock:
        assert not lock.lost()
        shutil.rmtree(tmp_path / "out")
        assert lock.lost()
        with FolderLock(tmp_path / "out"):  # another run
            assert lock.lost()
            with pytest.raises(FolderInUse):
                lock.take()
        lock.take()
        assert not lock.lost()


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed on Windows")
def test_a_folder_that_becomes_a_file_is_noticed(tmp_path):
    with FolderLock(tmp_path / "out") as lock:
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").touch()
        assert lock.lost()
    assert (tmp_path / "out").is_file()


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed on Windows")
def test_a_lock_that_is_removed_while_it_is_taken(tmp_path, monkeypatch):
    """The last holder ends between the two moments in which the next one opens and locks the file."""
    try_lock, left = files._try_lock, [2]

    def removed(descriptor: int, folder: Path) -> bool:
        if left[0]:
            left[0] -= 1
            (tmp_path / ".lock").unlink()
        return try_lock(descriptor, folder)

    monkeypatch.setattr(files, "_try_lock", removed)
    with FolderLock(tmp_path) as lock:
        assert left == [0]
        assert not lock.lost()
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path).take()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ValueError, match=r"out: .* cannot be written to: .*; expected a writable folder"):
            FolderLock(folder).take()


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are POSIX's")
def test_a_full_disk(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(
            ValueError, match=r"out: .* cannot be written to: File too large; expected a writable folder"
        ):
            FolderLock(tmp_path / "out").take()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="fcntl is POSIX's")
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, "gpulstm"), FolderLock(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
    assert "see to it that no other run writes to it" in caplog.text
