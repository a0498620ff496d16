"""From a GPU's record to the table that people read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from ..registry import MODES, Case
from ..report import markdown, version
from .grid import DTYPES, is_own
from .run import outcome


@dataclass(frozen=True)
class Row:
    """Seconds (median, quartiles) of every contender that was checked and timed on a case."""

    case: Case
    seconds: dict[str, dict[str, float]]

    def best(self, own: bool) -> str | None:
        """The fastest of gpulstm's walks, or of the others."""
        names = [name for name in self.seconds if is_own(name) == own]
        return min(names, key=self._median, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times longer the fastest of the others takes than gpulstm's fastest walk."""
        own, other = self.best(True), self.best(False)
        return self._median(other) / self._median(own) if own and other else None

    def _median(self, name: str) -> float:
        return self.seconds[name]["median"]


def rows(record: dict[str, Any], dtype: str, mode: str) -> list[Row]:
    """By hidden size, then batch."""
    found: dict[Case, dict[str, dict[str, float]]] = {}
    for cell in record["cells"]:
        if (cell["case"]["dtype"], cell["mode"]) == (dtype, mode):
            figures = found.setdefault(Case(**cell["case"]), {})
            if cell["seconds"]:
                figures[cell["provider"]] = cell["seconds"]
    ordered = sorted(found.items(), key=lambda item: (item[0].hidden, item[0].batch))
    return [Row(case, figures) for case, figures in ordered]


def report(record: dict[str, Any]) -> str:
    """The whole report: where, tests, probes, a table for each dtype and mode, and what is missing and why."""
    parts = [heading(record), probes(record)]
    for dtype in DTYPES:
        for mode in MODES:
            if table_rows := rows(record, dtype, mode):
                parts.append(f"{dtype}, {mode}: microseconds a step\n\n{table(record, table_rows)}")
    return "\n\n".join(part for part in [*parts, notes(record)] if part) + "\n"


def heading(record: dict[str, Any]) -> str:
    device = record["device"]
    lines = [
        f"{device['name']}, compute capability {device['capability']}, {device['multiprocessors']} multiprocessors; "
        f"driver {device['driver']}, CUDA {device['runtime']}, CuPy {device['cupy']}; {record['started']}; commit "
        f"{(record['commit'] or 'none')[:10]}, sources {record['sources']}",
        "one LSTM layer, I = H, T = 512 and an initial state of zero; each result was checked against float64 before "
        "it was timed; CUDA events, medians ± half the interquartile range of the whole layer, divided by T",
        "versions: " + ", ".join(f"{name} {version(entry)}" for name, entry in record["providers"].items()),
        f"tests on this device: {outcome(record['tests'])}",
    ]
    if not record["finished"]:
        lines.append("This run was cut: it shows what had been measured.")
    return "\n".join(f"- {line}" for line in lines)


def probes(record: dict[str, Any]) -> str:
    """The costs that were probed, microseconds but where another unit is named."""
    lines = [
        [name, ", ".join(f"{what} {_short(figure)}" for what, figure in figures.items())]
        for name, figures in record["probes"].items()
    ]
    return markdown([["probe", "microseconds"], *lines]) if lines else ""


def _short(figure: Any) -> str:
    return f"{figure:.3g}" if isinstance(figure, float) else str(figure)


def table(record: dict[str, Any], table_rows: Sequence[Row]) -> str:
    """Cases down, contenders across; last how many times longer the best of the others takes than the best walk."""
    names = [name for name in record["providers"] if any(name in row.seconds for row in table_rows)]
    body = [
        [
            f"{row.case.batch}, {row.case.hidden}",
            *(figure(row, name) for name in names),
            f"{row.ratio:.2f}×" if row.ratio else "-",
        ]
        for row in table_rows
    ]
    ratios = [row.ratio for row in table_rows if row.ratio]
    mean = f"{geometric_mean(ratios):.2f}×" if ratios else "-"
    return markdown([["B, H", *names, "best other"], *body, ["geometric mean", *("" for _ in names), mean]])


def figure(row: Row, name: str) -> str:
    """``1.31 ±2%``, microseconds a step."""
    spread = row.seconds.get(name)
    if spread is None:
        return "-"
    half = (spread["q3"] - spread["q1"]) / 2 / spread["median"]
    return f"{spread['median'] / row.case.steps * 1e6:.3g} ±{half:.0%}"


def notes(record: dict[str, Any]) -> str:
    """Which contenders are missing, and which were not timed because a result was wrong or a process failed."""
    lines = [f"- {name}: {entry['missing']}" for name, entry in record["providers"].items() if entry["missing"]]
    for cell in record["cells"]:
        if cell["rejected"]:
            case = Case(**cell["case"])
            where = f"{case.dtype} {cell['mode']} B={case.batch} H={case.hidden}"
            lines.append(f"- {cell['provider']}, {where}, no figure: {cell['rejected']}")
    return "\n".join(lines)
