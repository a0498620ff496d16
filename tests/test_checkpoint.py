"""Checkpoints are whole or not there, whatever happens while they are written, and say what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulstm.train import checkpoint
from gpulstm.train.checkpoint import CheckpointError, latest, load, save

MODEL = {"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "1.bias": np.ones(3, np.float64)}
TRAINING = {
    "optimizer.step": np.array(7),
    "schedule.best": np.array(np.inf),
    "state.0.0": np.zeros((1, 2, 3)),
}
RECORD = {"rng": {"state": 2**127 + 1}, "name": "ü", "loss": None, "pair": [1, 0.1]}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, so nothing cleans up."""


def write(out: Path, step: int, **options: Any) -> Path:
    return save(out, step, MODEL, TRAINING, RECORD | {"of": step}, **options)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_round_trip(tmp_path):
    path = write(tmp_path / "new" / "run", 1234)
    assert path.name == "step-00001234"
    assert names(path) == ["checkpoint.json", "model.safetensors", "training.safetensors"]
    for where in (path, path.parent, str(path)):
        loaded = load(where)
        assert (loaded.path, loaded.step) == (path, 1234)
        assert loaded.record == RECORD | {"of": 1234}
        assert loaded.versions.keys() == {"gpulstm", "numpy", "python"}
        for given, found in ((MODEL, loaded.model), (TRAINING, loaded.training)):
            assert given.keys() == found.keys()
            for name, value in given.items():
                assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
                np.testing.assert_array_equal(found[name], value)


def test_the_last_ones_stay(tmp_path):
    for step in (5, 10, 90, 100, 1000):
        write(tmp_path, step, keep=2, protect=[10])
    assert names(tmp_path) == ["step-00000010", "step-00000100", "step-00001000"]
    assert latest(tmp_path) == checkpoint.path_of(tmp_path, 1000)
    write(tmp_path, 1001, keep=1)
    assert names(tmp_path) == ["step-00001001"]
    with pytest.raises(ValueError, match="keep: expected an integer >= 1, got 0"):
        write(tmp_path, 1002, keep=0)


def test_what_is_no_checkpoint_stays(tmp_path):
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000099").write_text("a file")
    write(tmp_path, 1, keep=1)
    write(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000002", "step-00000099", "step-notes"]
    assert latest(tmp_path).name == "step-00000002"
    assert latest(tmp_path / "nowhere") is None
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000005").mkdir()
    (tmp_path / "step-00000005" / "notes").touch()
    write(tmp_path, 3, keep=1)
    assert load(tmp_path).step == 3
    write(tmp_path, 4, keep=1)  # an empty folder is in nobody's way
    assert load(tmp_path).step == 4
    with pytest.raises(CheckpointError, match=r"step-00000005: could not be written"):
        write(tmp_path, 5)
    assert names(tmp_path) == ["step-00000004", "step-00000005", "step-00000099", "step-notes"]


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch, caplog):
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    for step in (2, 3):
        write(tmp_path, step, keep=1)
    assert "could not be removed: Permission denied" in caplog.text
    assert load(tmp_path).step == 3


def test_no_overwriting(tmp_path):
    write(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"step-00000003: there is a checkpoint of this step already"):
        write(tmp_path, 3)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Raise ``error`` instead of the ``number``-th call that touches the disk."""
    count = 0

    def patch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if name == "write_synced":  # killed in the middle of a file
                    args[0].write_bytes(args[1][: len(args[1]) // 2])
                raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, replaced)

    patch(checkpoint, "write_synced")
    patch(checkpoint, "sync_directory")
    patch(os, "rename")
    patch(os, "fsync")
    patch(os, "unlink")  # rmtree's
    patch(os, "rmdir")


def test_killed_at_every_point_of_a_save(tmp_path, monkeypatch):
    number = finished = 0
    outcomes = set()
    while not finished:
        number += 1
        out = tmp_path / str(number)
        for step in (1, 2):
            write(out, step)
        with monkeypatch.context() as patch:
            interrupt_at(patch, number, Killed())
            try:
                write(out, 3, keep=2)
                finished = number
            except Killed:
                pass
        found = load(out)  # whole, and either the new one or the one before
        assert found.step == found.record["of"]
        outcomes.add(found.step)
        write(out, 4, keep=9)
        assert all(load(path).step == int(path.name[5:]) for path in out.iterdir())  # no halves, no leftovers
        assert names(out)[-2:] == [f"step-{step:08d}" for step in (found.step, 4)]
    assert outcomes == {2, 3}
    assert finished > 10


def test_all_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("file") or fsync(file))
    monkeypatch.setattr(os, "rename", lambda *paths: calls.append("rename") or rename(*paths))
    monkeypatch.setattr(checkpoint, "sync_directory", lambda path: calls.append("directory"))
    write(tmp_path, 1)
    assert calls == ["file"] * 3 + ["directory", "rename", "directory"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("number", range(1, 8))
def test_full_disk(tmp_path, monkeypatch, code, number):
    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, number, OSError(code, os.strerror(code)))
        with pytest.raises(CheckpointError, match="step-00000002: could not be written") as caught:
            write(tmp_path, 2)
    assert os.strerror(code) in str(caught.value)
    assert "room for" in str(caught.value)
    assert "earlier checkpoints are untouched" in str(caught.value)
    assert names(tmp_path) == ["step-00000001"]
    assert load(tmp_path).step == 1
    write(tmp_path, 2)


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are POSIX's")
def test_file_size_limit(tmp_path):
    write(tmp_path, 1)
    code = f"""
import resource, numpy as np
from gpulstm.train.checkpoint import save
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
save({str(tmp_path)!r}, 2, {{"w": np.ones(100_000, np.float32)}}, {{}}, {{}})
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "CheckpointError" in done.stderr
    assert "File too large" in done.stderr
    assert names(tmp_path) == ["step-00000001"]


def test_out_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="out/step-00000001: could not be written".replace("/", r"[\\/]")):
        write(tmp_path / "out", 1)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    for value in (np.nan, np.inf):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: 'w' holds NaN or infinite values"):
            save(tmp_path, 1, {"w": np.array([1, value], np.float32)}, {}, {})
    assert names(tmp_path) == []


def damaged(tmp_path: Path) -> Path:
    return write(tmp_path, 1)


def rewrite(path: Path, **changes: Any) -> None:
    """Change ``checkpoint.json`` and make its own digest right again."""
    file = path / checkpoint.RECORD
    body = json.loads(file.read_text()) | changes
    body.pop("sha256")
    file.write_text(json.dumps(body | {"sha256": checkpoint._digest_of(body)}))


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "checkpoint.json"])
def test_every_cut_is_found(tmp_path, name):
    path = damaged(tmp_path)
    content = (path / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (path / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=name) as caught:
            load(path)
        assert "expected" in str(caught.value)
        if name != "checkpoint.json":
            assert f"holds {length} bytes, expected {len(content)}" in str(caught.value)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: could not be read"):
        load(path)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "checkpoint.json"])
def test_every_altered_byte_is_found(tmp_path, name):
    path = damaged(tmp_path)
    content = (path / name).read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=100):
        altered = bytearray(content)
        altered[at] ^= 1 << int(rng.integers(7))
        (path / name).write_bytes(altered)
        if name == "checkpoint.json" and _same_json(altered, content):
            continue  # white space means nothing
        with pytest.raises(CheckpointError, match=name):
            load(path)


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, got"),
        ("[1]", "format is 'list', expected 'gpulstm-checkpoint'"),
        ("{}", "format is None, expected 'gpulstm-checkpoint'"),
        ('{"format": "other"}', "format is 'other', expected 'gpulstm-checkpoint'"),
        ('{"format": "gpulstm-checkpoint", "version": 2}', "version is 2, expected 1"),
        ('{"format": "gpulstm-checkpoint", "version": 1}', "was altered: SHA-256 is .*, expected None"),
        ("\udcff", "expected JSON, got"),
    ],
)
def test_foreign_record(tmp_path, text, message):
    path = damaged(tmp_path)
    (path / "checkpoint.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: " + message):
        load(path)


def test_foreign_tensors(tmp_path):
    path = damaged(tmp_path)
    junk = b"this is no safetensors file"
    (path / "model.safetensors").write_bytes(junk)
    files = json.loads((path / "checkpoint.json").read_text())["files"]
    files["model.safetensors"] = {"bytes": len(junk), "sha256": checkpoint._digest(junk)}
    rewrite(path, files=files)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a safetensors file, got"):
        load(path)


def test_nan_parameters(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_check_finite", lambda *_: None)
        path = save(tmp_path, 1, {"w": np.array([np.nan], np.float32)}, {}, {})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 'w' holds NaN or infinite values"):
        load(path)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint, or a directory with step-… ones; it holds none"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere: expected a checkpoint.*; there is no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"step-00000009.checkpoint\.json: could not be read"):
        load(tmp_path / "step-00000009")


def test_a_moved_checkpoint_loads(tmp_path):
    shutil.copytree(write(tmp_path, 1), tmp_path / "best")
    assert load(tmp_path / "best").step == 1
