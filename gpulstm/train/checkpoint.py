"""Checkpoints: directories that are either complete or absent.

``OUT/step-00001234/`` holds ``model.safetensors`` (parameters), ``training.safetensors`` (optimizer,
schedule, carried state) and ``checkpoint.json`` (everything else, with size and SHA-256 of the other two). It
is written under a temporary name in the same directory, synced, and renamed: a process killed at any moment, or
a disk that fills up, leaves the earlier checkpoints as they were and never half a new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks, parsing
from ..files import of_tensors, read, sync_directory, write_synced
from ..version import __version__

logger = logging.getLogger("gpulstm")
FORMAT = "gpulstm-checkpoint"
VERSION = 1
MODEL, TRAINING, RECORD = "model.safetensors", "training.safetensors", "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"
_MOST = {MODEL: 1 << 37, TRAINING: 1 << 38, RECORD: 1 << 24}  # bytes that are read


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or that is missing, damaged or not what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load` read: ``model`` and ``training`` arrays by name, ``record`` the JSON of save."""

    path: Path
    step: int
    model: dict[str, np.ndarray]
    training: dict[str, np.ndarray]
    record: dict[str, Any]
    versions: dict[str, str]


def save(
    out: str | Path,
    step: int,
    model: Mapping[str, np.ndarray],
    training: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    *,
    keep: int = 3,
    protect: Collection[int] = (),
) -> Path:
    """Write ``out/step-<step>`` and delete all but the last ``keep`` checkpoints and those in ``protect``.

    ``record`` is whatever JSON can hold (no NaN), as deep as :mod:`gpulstm.parsing` reads it. Leftovers of a killed run
    are cleared first.

    Raises:
        ValueError: ``keep`` below 1, ``step`` below 0, a ``record`` that could not be read again.
        CheckpointError: the checkpoint exists already, a parameter is not finite, or the disk refused (full,
            read-only, a file-size limit); checkpoints written earlier are untouched.
    """
    checks.integer(keep, "keep")
    checks.integer(step, "step", 0)
    target = path_of(out, step)
    out = target.parent
    if _is_whole(target):
        raise CheckpointError(f"{target}: there is a checkpoint of this step already; expected a new step")
    _check_finite(model, target / MODEL)
    contents = {MODEL: of_tensors(model), TRAINING: of_tensors(training)}
    body = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "versions": versions(),
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in contents.items()},
        "record": dict(record),
    }
    body = parsing.loads(json.dumps(body, allow_nan=False), _MOST[RECORD])  # as it will be read, for the digest
    contents[RECORD] = json.dumps(body | {"sha256": _digest_of(body)}, indent=1).encode()

    temporary = out / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        clear(out)
        if target.is_dir():
            target.rmdir()  # no checkpoint: an OSError unless it is empty
        temporary.mkdir()
        for name, data in contents.items():
            write_synced(temporary / name, data)
        sync_directory(temporary)
        os.rename(temporary, target)
        sync_directory(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(map(len, contents.values()))
        raise CheckpointError(
            f"{target}: could not be written: {error.strerror or error}; expected a writable directory with "
            f"room for {size} bytes; earlier checkpoints are untouched"
        ) from error
    _prune(out, keep, protect)
    return target


def load(path: str | Path) -> Checkpoint:
    """Read and verify the checkpoint at ``path``: a ``step-…`` directory, or a run's (its latest is taken).

    Raises:
        CheckpointError: nothing there, a file missing, cut short, altered or of another format or version, a field of
            the record missing or of another kind, or parameters that are not finite; the message names the file, what
            it holds and what was expected.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    path = checks.path(path)
    if not _NAME.fullmatch(path.name) and not (path / RECORD).exists():
        found = latest(path)
        if found is None:
            state = "it holds none" if path.is_dir() else "there is no such directory"
            raise CheckpointError(f"{path}: expected a checkpoint, or a directory with step-… ones; {state}")
        path = found
    body, contents = _read_record(path / RECORD)
    arrays = {}
    for name, (size, digest) in contents.items():
        file = path / name
        data = _read(file)
        if len(data) != size:
            raise CheckpointError(f"{file}: holds {len(data)} bytes, expected {size} ({RECORD})")
        if _digest(data) != digest:
            raise CheckpointError(f"{file}: SHA-256 is {_digest(data)}, expected {digest} ({RECORD})")
        try:
            arrays[name] = from_bytes(data)
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: expected a safetensors file, got {error}") from error
    _check_finite(arrays[MODEL], path / MODEL)
    record, versions = body.take("record"), body.take("versions")
    return Checkpoint(path, body.take("step"), arrays[MODEL], arrays[TRAINING], record, versions)


def latest(out: str | Path) -> Path | None:
    """The checkpoint of the highest step in ``out``, or None where there is none.

    Folders that have such a name and hold no checkpoint are skipped, with a line in the log.
    """
    named = _steps(checks.path(out, "out"))
    for step in sorted(named, reverse=True):
        if _is_whole(named[step]):
            return named[step]
        logger.warning("%s: passed over, since it holds no %s", named[step], RECORD)
    return None


def path_of(out: str | Path, step: int) -> Path:
    """Where :func:`save` puts the checkpoint of ``step``."""
    return checks.path(out, "out") / f"step-{step:08d}"


def clear(out: Path) -> None:
    """Remove what a killed process left in ``out``: a checkpoint half written or half deleted."""
    for entry in out.iterdir():
        if entry.name.startswith((f"{_TEMPORARY}step-", f"{_TEMPORARY}old-")):
            _remove(entry)


def versions() -> dict[str, str]:
    """Versions that a result can depend on."""
    return {"gpulstm": __version__, "numpy": np.__version__, "python": platform.python_version()}


def _read_record(file: Path) -> tuple[parsing.Fields, dict[str, tuple[int, str]]]:
    """The record, and size and digest of the files beside it."""
    text = _read(file)
    try:
        body = parsing.loads(text, _MOST[RECORD])
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else type(body).__name__
        raise CheckpointError(f"{file}: format is {checks.shown(found)}, expected {FORMAT!r}")
    if (version := body.get("version")) != VERSION or version is True:
        raise CheckpointError(f"{file}: version is {checks.shown(version)}, expected {VERSION}")
    digest = body.pop("sha256", None)
    if digest != _digest_of(body):
        raise CheckpointError(f"{file}: was altered: SHA-256 is {_digest_of(body)}, expected {checks.shown(digest)}")
    try:
        fields = parsing.Fields(body, "checkpoint")
        fields.integer("step")
        fields.fields("record")
        versions = fields.fields("versions")
        for name in versions.value:
            versions.text(name)
        parts = {name: fields.fields("files").fields(name) for name in (MODEL, TRAINING)}
        return fields, {name: (part.integer("bytes"), part.text("sha256")) for name, part in parts.items()}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read(file: Path) -> bytes:
    try:
        return read(file, _MOST[file.name])
    except OSError as error:
        raise CheckpointError(f"{file}: could not be read: {error.strerror}; expected a checkpoint's file") from error


def _check_finite(arrays: Mapping[str, np.ndarray], file: Path) -> None:
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CheckpointError(f"{file}: {name!r} holds NaN or infinite values; expected finite ones")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(body: Mapping[str, Any]) -> str:
    return _digest(json.dumps(body, sort_keys=True).encode())


def _steps(out: Path) -> dict[int, Path]:
    """The folders in ``out`` that are named as checkpoints, by step."""
    if not out.is_dir():
        return {}
    names = ((_NAME.fullmatch(entry.name), entry) for entry in out.iterdir() if entry.is_dir())
    return {int(match[1]): entry for match, entry in names if match}


def _is_whole(path: Path) -> bool:
    """Whether ``path`` is a checkpoint, and not a folder that is only named like one."""
    return (path / RECORD).is_file()


def _prune(out: Path, keep: int, protect: Iterable[int]) -> None:
    found = {step: path for step, path in _steps(out).items() if _is_whole(path)}
    staying = {*sorted(found)[-keep:], *protect}
    for step in found.keys() - staying:
        _remove(found[step], out / f"{_TEMPORARY}old-{found[step].name}")


def _remove(path: Path, aside: Path | None = None) -> None:
    """Delete a folder that is no longer needed; that it cannot be deleted is logged and does not end the run."""
    try:
        if aside is not None:  # so that a deletion cut short leaves no half a checkpoint
            os.rename(path, aside)
        shutil.rmtree(aside or path)
    except OSError as error:
        logger.warning("%s: could not be removed: %s", path, error.strerror or error)
