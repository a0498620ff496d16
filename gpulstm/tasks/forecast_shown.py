"""Forecasts as people see them: a table, a CSV file, a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from ..data.forecast import stamp

HEADER = ("time", "low", "median", "high")


def table(times: np.ndarray, forecast: np.ndarray, further: dict[str, np.ndarray] | None = None) -> str:
    """A line a step: its time, the ends of its interval and the median of ``forecast`` (horizon, 3), and what is
    ``further`` to show, by name."""
    further = further or {}
    names = [*HEADER, *further]
    columns = [[stamp(time) for time in times]]
    columns += [[_number(value) for value in values] for values in (*forecast.T, *further.values())]
    widths = [max(map(len, (name, *cells))) for name, cells in zip(names, columns, strict=True)]
    rows = [names, *zip(*columns, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def as_csv(times: np.ndarray, forecast: np.ndarray) -> bytes:
    """The same as CSV, times in ISO 8601."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    for time, values in zip(times, forecast, strict=True):
        writer.writerow([str(np.datetime_as_string(time, unit="s")), *(f"{value:.6g}" for value in values)])
    return stream.getvalue().encode()


def picture(path: Path, title: str, times: np.ndarray, forecast: np.ndarray, lines: dict[str, np.ndarray]) -> None:
    """Draw ``forecast`` (N, 3) and ``lines`` (N,), two of them by name, as a PNG."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 4.5), constrained_layout=True)
    when: Any = times
    axes.fill_between(when, forecast[:, 0], forecast[:, 2], alpha=0.25, color="tab:blue", label="80 % interval")
    axes.plot(when, forecast[:, 1], color="tab:blue", label="median")
    for (name, values), colour in zip(lines.items(), ("black", "tab:orange"), strict=True):
        axes.plot(when, values, linewidth=1, label=name, color=colour)
    axes.set_title(title)
    axes.legend()
    figure.autofmt_xdate()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _number(value: float) -> str:
    return "?" if np.isnan(value) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
