"""The report as a picture: how many times longer the best other LSTM takes, a panel for each dtype and mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry import MODES
from .grid import DTYPES
from .report import rows


def plot(record: dict[str, Any], path: Path) -> str | None:
    """Draw ``record`` as a PNG at ``path``; if it cannot be drawn, say why."""
    try:
        import matplotlib
    except ImportError as error:
        return f"no plot: {error}"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = {
        (dtype, mode): [row for row in rows(record, dtype, mode) if row.ratio] for dtype in DTYPES for mode in MODES
    }
    dtypes = [dtype for dtype in DTYPES if any(tables[dtype, mode] for mode in MODES)]
    if not dtypes:
        return "no plot: nothing was measured beside another LSTM"
    size = (11, 3.2 * len(dtypes))
    figure, panels = pyplot.subplots(len(dtypes), len(MODES), figsize=size, squeeze=False, sharey=True)
    for line, dtype in zip(panels, dtypes, strict=True):
        for axes, mode in zip(line, MODES, strict=True):
            table = tables[dtype, mode]
            for batch in sorted({row.case.batch for row in table}):
                points = [(row.case.hidden, row.ratio) for row in table if row.case.batch == batch]
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"B = {batch}")
            axes.axhline(1, color="0.6", linewidth=0.8, zorder=0)
            axes.set(title=f"{dtype}, {mode}", xscale="log", yscale="log", xlabel="H")
            axes.set_ylabel("best other / best walk")
            if table:
                axes.legend(fontsize=8)
    figure.suptitle(f"one-layer LSTM, I = H, T = 512: {record['device']['name']}; higher is better", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None
