"""Series to classify, in three parts: to train on, to validate with, and to test.

What is validated with is a share of the training part, and so is the test part where there is no file of it: of each
class those series whose values have the smallest SHA-256, so that the split is the same everywhere whatever the files
are called and however they are ordered, and equal series are in one part. Means and deviations, by which values are
scaled, are those of what is trained on alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import checks
from . import labelled, packages
from .labelled import Series

NAMES = ("vowels", "motions")  # of the data in packages
SHARE = 0.2  # of each class, for a part that is split off
_RULE = f"classify 1 {SHARE}"  # of the split, for the digest


@dataclass(frozen=True)
class Part:
    """Series with their classes: each (T, F) float32, scaled; ``labels`` (N,) are numbers of classes."""

    series: tuple[np.ndarray, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.series)


@dataclass(frozen=True)
class Classes:
    """The parts of a data set, the names of its classes, and what its values were scaled by."""

    source: str
    train: Part
    validation: Part
    test: Part
    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    digest: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for people."""
        lengths = [len(values) for part in (self.train, self.validation, self.test) for values in part.series]
        steps = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
        sizes = f"{len(self.train)} series to train on, {len(self.validation)} to validate, {len(self.test)} to test"
        line = f"{self.source}: {sizes}; {len(self.mean)} channels, {steps} steps, {len(self.names)} classes"
        return "; ".join((line, *self.notes))


def read(
    data: str | Path | None = None,
    test: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Classes:
    """The series of ``data``: a name of :data:`NAMES`, None for the first, or what :func:`labelled.read` takes.

    Args:
        test: the test part; without one a share of ``data`` is that.
        progress: is told how many bytes of how many were downloaded, or read of ``data``.

    Raises:
        ValueError: files that cannot be read or are not in their format, a series without a class, less than two
            classes, a class with too few series, one of the test part alone, or values too large for their mean.
        TypeError: no paths.
    """
    digest = hashlib.sha256(_RULE.encode())

    def taken(content: bytes) -> None:
        digest.update(b" %d " % len(content) + content)

    name = NAMES[0] if data is None else data
    if name in NAMES:
        if test is not None:
            raise ValueError(f"test: expected none for {name}, which has its own, got {checks.shown(test)}")
        folder = packages.get(str(name), progress)
        data, test = (next(folder.glob(f"*_{part}.ts")) for part in ("TRAIN", "TEST"))
        source = packages.PACKAGES[str(name)].source
    else:
        source = str(checks.path(name, "data"))
        data = Path(source)
    own = None if name in NAMES else progress  # else told of the download
    learnt = _with_classes(labelled.read(data, "data", taken, own))
    names = labelled.in_order([str(series.label) for series in learnt])
    if len(names) < 2:
        raise ValueError(f"data: expected series of at least two classes, got {checks.shown(names)} alone in {data}")
    notes: tuple[str, ...] = ()
    if test is None:
        learnt, tested = _split(learnt, "test")
    else:
        digest.update(b" test")
        tested = _with_classes(labelled.read(test, "test", taken))
        _check_test(tested, learnt, names)
        if repeated := len({_key(series) for series in tested} & {_key(series) for series in learnt}):
            notes = (f"{repeated} of the test series are in the training part too",)
    train, validation = _split(learnt, "validate")
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.concatenate([series.values for series in train])
        mean, deviation = steps.mean(axis=0), steps.std(axis=0)
    deviation[deviation == 0] = 1  # a channel that never changes
    if not np.isfinite(deviation).all():
        raise ValueError(f"{data}: the values of channel {int(np.argmin(np.isfinite(deviation))) + 1} are too large")
    return Classes(
        source,
        train=part_of(train, names, mean, deviation),
        validation=part_of(validation, names, mean, deviation),
        test=part_of(tested, names, mean, deviation),
        names=names,
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        digest=digest.hexdigest(),
        notes=notes,
    )


def part_of(series: Sequence[Series], names: Sequence[str], mean: np.ndarray, deviation: np.ndarray) -> Part:
    """``series``, scaled, with the numbers of their classes; -1 for one that is not known.

    Raises:
        ValueError: a value that float32 does not hold once it is scaled.
    """
    labels = np.array([-1 if each.label is None else names.index(each.label) for each in series], np.int64)
    scaled = []
    for each in series:
        with np.errstate(over="ignore"):
            scaled.append(((each.values - mean) / deviation).astype(np.float32))
        if not np.isfinite(scaled[-1]).all():
            raise ValueError(f"{each.where}: holds values that are too large beside those of the training part")
    return Part(tuple(scaled), labels)


def _with_classes(found: list[Series]) -> list[Series]:
    for series in found:
        if series.label is None:
            raise ValueError(
                f"{series.where}: a series without a class; expected one, as the name of its subfolder or "
                "at the end of its line"
            )
    return found


def _check_test(tested: Sequence[Series], learnt: Sequence[Series], names: Sequence[str]) -> None:
    channels = learnt[0].values.shape[1]
    for series in tested:
        if series.label not in names:
            raise ValueError(
                f"{series.where}: the class {checks.shown(series.label)} is in the test part alone; "
                f"expected one of {checks.shown(names)}"
            )
        if series.values.shape[1] != channels:
            raise ValueError(
                f"{series.where}: expected {channels} channels, as the training part has, got {series.values.shape[1]}"
            )


def _key(series: Series) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(series.values, "<f8").tobytes()).digest()


def _split(found: Sequence[Series], purpose: str) -> tuple[list[Series], list[Series]]:
    """The larger part of each class, and :data:`SHARE` of it to ``purpose``, both in the order of ``found``."""
    keys = [_key(series) for series in found]
    by_class: dict[str | None, list[bytes]] = defaultdict(list)
    for key, series in zip(keys, found, strict=True):
        by_class[series.label].append(key)
    apart: set[bytes] = set()
    for label, its in by_class.items():
        distinct = sorted(set(its))
        if len(distinct) < 2:
            raise ValueError(
                f"data: the class {checks.shown(label)} has too few series: one is left to train on and "
                f"to {purpose}; expected another"
            )
        apart.update(distinct[: max(1, round(SHARE * len(distinct)))])
    kept = [series for key, series in zip(keys, found, strict=True) if key not in apart]
    for label in by_class.keys() - {series.label for series in kept}:
        raise ValueError(
            f"data: of the class {checks.shown(label)} no series is left to train on: each is to {purpose}, as equal "
            "series of other classes are"
        )
    return kept, [series for key, series in zip(keys, found, strict=True) if key in apart]
