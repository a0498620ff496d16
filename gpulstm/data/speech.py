"""Spoken digits: recordings as cepstral coefficients, one digit each, in three parts.

No recording is in two parts, and one that is there twice counts once. Who speaks is not known, so that the same voices
are in all parts. Which part a recording is in depends on the SHA-256 of its values alone, not on its place in the file.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from . import packages
from .speech_features import scale, with_deltas

DIGITS = 10
_NAME = "digits"  # in packages.PACKAGES
_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_QUIET = 0.03  # share of the training part's steps that gaps are made of
_LEAST = 15  # recordings in a part: strings of 1, 2, 3, 4 and 5
_RULE = f"speech 1 {_SHARES} {_QUIET}"  # of the split, for the digest


@dataclass(frozen=True)
class Recordings:
    """Some recordings, each (T, F) float32, and the digit that each says, int64 (N,)."""

    values: tuple[np.ndarray, ...]
    digits: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def taken(self, which: Sequence[int]) -> Recordings:
        """Those of the numbers ``which``."""
        return Recordings(tuple(self.values[k] for k in which), self.digits[list(which)])


@dataclass(frozen=True)
class Spoken:
    """The parts of a set of recordings, and what follows from its training part alone.

    ``quiet`` (N, F) are the steps of lowest energy, of which gaps between digits are made; ``mean`` and ``deviation``
    are those of a step's coefficients and their slopes (3·F,).
    """

    source: str
    train: Recordings
    validation: Recordings
    test: Recordings
    quiet: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    digest: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for people."""
        sizes = f"{len(self.train)} to train on, {len(self.validation)} to validate with, {len(self.test)} to test"
        line = f"{self.source}: recordings of spoken digits, {sizes}; joined into strings with gaps (synthetic)"
        return "; ".join((line, *self.notes))


def read(data: str | Path | None = None, progress: Callable[[int, int], None] | None = None) -> Spoken:
    """The recordings in ``data``, a file as :func:`recordings` takes it, or those of the package, in three parts.

    Args:
        progress: is told how many bytes of how many were downloaded.

    Raises:
        ValueError: a file that is no such one, or too few recordings.
        OSError: it cannot be read.
    """
    if data is None:
        file, source = packages.get(_NAME, progress) / "digits.npz", packages.PACKAGES[_NAME].source
    else:
        file = checks.path(data, "data")
        source = str(file)
    found = recordings(file)
    keys = [_key(values, digit) for values, digit in zip(found.values, found.digits.tolist(), strict=True)]
    distinct = {key: number for number, key in enumerate(keys)}
    order = [distinct[key] for key in sorted(distinct)]
    tested, validated = (round(_SHARES[part] * len(order)) for part in ("test", "validation"))
    parts = [order[tested + validated :], order[tested:][:validated], order[:tested]]
    if (fewest := min(map(len, parts))) < _LEAST:
        needed = round(_LEAST / min(_SHARES.values()))
        raise ValueError(f"data: {file}: {len(order)} different recordings, of which a part gets {fewest}; "
                         f"expected {needed} or more")  # fmt: skip
    train, validation, test = (found.taken(part) for part in parts)
    steps = np.concatenate(train.values)
    energy = np.argsort(steps[:, 0], kind="stable")  # the first coefficient is the logarithm of it
    quiet = steps[energy[: max(1, round(_QUIET * len(steps)))]]
    mean, deviation = scale([with_deltas(values) for values in train.values])
    digest = hashlib.sha256(_RULE.encode())
    for key in keys:
        digest.update(key)
    repeated = len(keys) - len(order)
    notes = (f"{repeated} that are there twice are left out",) if repeated else ()
    return Spoken(source, train, validation, test, quiet, mean, deviation, digest.hexdigest(), notes)


def recordings(file: str | Path, *, labelled: bool = True) -> Recordings:
    """The recordings in an NPZ file with the arrays ``X`` (sum of steps, F), ``lengths`` (N,) and ``y`` (N,).

    ``X`` has the steps of all recordings one after another, the first column being energy, and ``y`` the digit that
    each says; where it is not ``labelled``, ``y`` may be missing, which digits of -1 say.

    Raises:
        ValueError: no such file, or arrays that contradict each other; the message names the file and the array.
        OSError: it cannot be read.
    """
    if Path(file).is_dir():
        raise ValueError(f"data: {file}: expected an NPZ file of arrays X, y and lengths, got a folder")
    arrays = _arrays(Path(file))
    for name in ("X", "lengths", *(["y"] if labelled else [])):
        if name not in arrays:
            raise ValueError(f"data: {file}: expected arrays X, y and lengths, got {checks.shown(sorted(arrays))}")
    x, lengths = arrays["X"], arrays["lengths"]
    digits = arrays.get("y", np.full(len(lengths) if lengths.ndim else 0, -1))
    if x.ndim != 2 or not x.shape[1] or x.dtype.kind != "f":
        raise ValueError(f"data: {file}: X: expected floats of shape (steps, F), got {x.dtype} of shape {x.shape}")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths):
        got = f"{lengths.dtype} of shape {lengths.shape}"
        raise ValueError(f"data: {file}: lengths: expected integers of shape (recordings,), got {got}")
    if digits.shape != lengths.shape or digits.dtype.kind not in "iu":
        got = f"{digits.dtype} of shape {digits.shape}"
        raise ValueError(f"data: {file}: y: expected integers of shape {lengths.shape}, got {got}")
    # with two steps each, a blank fits between any two in a string
    if lengths.min() < 2 or lengths.astype(object).sum() != len(x):
        raise ValueError(f"data: {file}: lengths: expected numbers above 1 that add up to the {len(x)} steps of X, got "
                         f"{lengths.min()} at least and {lengths.astype(object).sum()} together")  # fmt: skip
    if "y" in arrays and ((digits < 0) | (digits >= DIGITS)).any():
        number = int(np.argmax((digits < 0) | (digits >= DIGITS)))
        raise ValueError(f"data: {file}: y: expected digits 0 to 9, got {digits[number]} for recording {number}")
    values = x.astype(np.float32)
    if not np.isfinite(values).all():
        step = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise ValueError(
            f"data: {file}: X: expected finite numbers, got {checks.shown(x[step].tolist())} in row {step}"
        )
    ends = np.cumsum(lengths.astype(np.int64))[:-1]
    return Recordings(tuple(np.split(values, ends)), digits.astype(np.int64))


def _arrays(file: Path) -> dict[str, Any]:
    """The arrays of an NPZ file; pickled objects, which could run code, are refused."""
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with archive:
            return {name: archive[name] for name in archive.files if name in ("X", "y", "lengths")}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"data: {file}: expected an NPZ file of arrays X, y and lengths: {error}") from error


def _key(values: np.ndarray, digit: int) -> bytes:
    shape = f"{digit} {values.shape} ".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(values, "<f4").tobytes()).digest()
