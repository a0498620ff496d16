"""The report as a picture: speed relative to gpulstm, a panel for each mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .registry import MODES, SUBJECT
from .report import Row, rows


def plot(record: dict[str, Any], path: Path) -> str | None:
    """Draw ``record`` as a PNG at ``path``; if it cannot be drawn, say why."""
    try:
        import matplotlib
    except ImportError as error:
        return f"no plot: {error}; pip install matplotlib"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if record["kind"] == "cells":
        return "no plot: cells have tables alone"
    tables = {mode: [row for row in rows(record, mode) if row.shown] for mode in MODES}
    tables = {mode: table for mode, table in tables.items() if table}
    if not tables:
        return "no plot: nothing was measured"
    figure, panels = pyplot.subplots(len(tables), 1, figsize=(10, 3.6 * len(tables)), squeeze=False)
    for axes, (mode, table) in zip(panels[:, 0], tables.items(), strict=True):
        draw(axes, table, list(record["providers"]))
        axes.set_title(mode)
    threads = record["settings"]["threads"]
    figure.suptitle(
        f"one-layer LSTM, I = H, (B,T,H): {record['machine']['cpu']}, {threads} threads; higher is faster",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None


def draw(axes: Any, table: list[Row], names: list[str]) -> None:
    """Median and quartiles of each provider's speed; the unit is :attr:`Row.shown`'s median."""
    from matplotlib import ticker

    for index, name in enumerate(names):
        points = [
            (position, row.seconds[row.shown]["median"], row.seconds[name])
            for position, row in enumerate(table)
            if row.shown and name in row.seconds
        ]
        if not points:
            continue
        offset = (index - (len(names) - 1) / 2) * 0.12
        speed = [unit / spread["median"] for _, unit, spread in points]
        error = [
            [unit / spread["median"] - unit / spread["q3"] for _, unit, spread in points],
            [unit / spread["q1"] - unit / spread["median"] for _, unit, spread in points],
        ]
        places = [position + offset for position, _, _ in points]
        axes.errorbar(places, speed, error, fmt="o", color=f"C{index}", capsize=2, label=name)
    base = SUBJECT if all(row.shown == SUBJECT for row in table) else "the fastest"
    axes.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.set(yscale="log", ylabel=f"speed relative to {base}")
    axes.set_xticks(range(len(table)), [row.case.label for row in table], fontsize=8)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=8, ncols=len(names))
