"""From a record to the table that people read: aligned Markdown, the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from . import peak
from .registry import MODES, SUBJECT, Case


@dataclass(frozen=True)
class Row:
    """Figures of one case: seconds (median, q1, q3) of each provider that was checked and timed."""

    case: Case
    seconds: dict[str, dict[str, float]]

    def ratio(self, peer: str) -> float | None:
        """How many times longer ``peer`` takes than gpulstm; above 1, gpulstm is faster."""
        if not {peer, SUBJECT} <= self.seconds.keys():
            return None
        return self.seconds[peer]["median"] / self.seconds[SUBJECT]["median"]

    @property
    def best_peer(self) -> str | None:
        """The fastest of the others."""
        peers = [name for name in self.seconds if name != SUBJECT]
        return min(peers, key=lambda name: self.seconds[name]["median"], default=None)

    @property
    def shown(self) -> str | None:
        """Whose rate is printed: gpulstm's, or the fastest peer's where there is none of it."""
        return SUBJECT if SUBJECT in self.seconds else self.best_peer


def rows(record: dict[str, Any], mode: str) -> list[Row]:
    """A row for each case of ``mode``, in the order they were run."""
    found: dict[Case, dict[str, dict[str, float]]] = {}
    for cell in record["cells"]:
        if cell["mode"] == mode:
            figures = found.setdefault(Case(**cell["case"]), {})
            if cell["seconds"] and not cell["rejected"]:
                figures[cell["provider"]] = cell["seconds"]
    return [Row(case, figures) for case, figures in found.items()]


def report(record: dict[str, Any]) -> str:
    """The whole report: where, how, a table for each mode, and what is missing and why."""
    parts = [heading(record)]
    for mode in MODES:
        if table_rows := rows(record, mode):
            parts.append(f"{mode}, milliseconds\n\n{mode_table(record, mode, table_rows)}")
    parts.append(notes(record))
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(record: dict[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    lines = [
        f"{machine['cpu']}, {settings['threads']} threads of {machine['cores']} cores; {record['started']}; "
        f"commit {(record['commit'] or 'none')[:10]}; "
        f"{settings['rounds']} interleaved rounds of {settings['target']:g} s turns; medians ± half the "
        f"interquartile range; n× is the time over {SUBJECT}'s",
        "versions: " + ", ".join(f"{name} {version(entry)}" for name, entry in record["providers"].items()),
    ]
    if record["peaks"]:
        sgemm = ", ".join(f"{name} {rate:.0f}" for name, rate in record["peaks"]["sgemm"].items())
        read = ", ".join(f"{size / 2**20:g} MiB {rate:.0f}" for size, rate in record["peaks"]["read"])
        lines += [f"peak sgemm, GF/s: {sgemm}", f"peak read of a working set, GB/s: {read}"]
    if errors := worst_errors(record):
        shown = ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
        lines.append(f"largest relative error against the float64 reference: {shown}")
    if (record["bystanders"] or 0) > 0.05:
        lines.append(
            f"DISTURBED: other processes kept {record['bystanders']:.2f} cores busy meanwhile; "
            "run it again on an idle machine."
        )
    if not record["finished"]:
        lines.append("This run was cut: it shows what had been measured.")
    return "\n".join(f"- {line}" for line in lines)


def worst_errors(record: dict[str, Any]) -> dict[str, float]:
    """Of each provider, over all cells that were timed."""
    worst: dict[str, float] = {}
    for cell in record["cells"]:
        if not cell["rejected"]:
            worst[cell["provider"]] = max(worst.get(cell["provider"], 0.0), cell["error"])
    return worst


def version(entry: dict[str, Any]) -> str:
    return next(iter(entry["versions"].values())) or "of this tree"


def mode_table(record: dict[str, Any], mode: str, table_rows: Sequence[Row]) -> str:
    """Cases down, providers across; the last line holds geometric means of the ratios."""
    names = [name for name in record["providers"] if any(name in row.seconds for row in table_rows)]
    header = ["B,T,H", *names, "best peer", "GF/s", "of bound"]
    body = [
        [row.case.label, *(figure(row, name) for name in names), ratio_to_best(row), *rate(record, mode, row)]
        for row in table_rows
    ]
    to_best = [row.ratio(row.best_peer) for row in table_rows if row.best_peer]
    means = [mean([row.ratio(name) for row in table_rows]) if name != SUBJECT else "" for name in names]
    return markdown([header, *body, ["geometric mean", *means, mean(to_best), "", ""]])


def figure(row: Row, name: str) -> str:
    """``8.51 ±2% 1.31×``."""
    if name not in row.seconds:
        return "-"
    spread, ratio = row.seconds[name], row.ratio(name)
    half = (spread["q3"] - spread["q1"]) / 2 / spread["median"]
    text = f"{milliseconds(spread['median'])} ±{f'{half:.0%}' if half < 1 else '>99%'}"
    return text if name == SUBJECT or ratio is None else f"{text} {ratio:.2f}×"


def milliseconds(seconds: float) -> str:
    """Three significant digits, never in exponents."""
    value = seconds * 1e3
    digits = 4 if value < 0.1 else 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def ratio_to_best(row: Row) -> str:
    if row.best_peer is None:
        return "-"
    ratio = row.ratio(row.best_peer)
    return row.best_peer if ratio is None else f"{ratio:.2f}× {row.best_peer}"


def rate(record: dict[str, Any], mode: str, row: Row) -> tuple[str, str]:
    """GF/s of the matrix products, and the share of what the machine could do, with what binds it."""
    if row.shown is None:
        return "-", "-"
    seconds = row.seconds[row.shown]["median"]
    gigaflops = f"{row.case.flops(mode) / seconds / 1e9:.1f}"
    if not record["peaks"]:
        return gigaflops, "-"
    least, kind = peak.bound(record["peaks"], row.case, mode)
    return gigaflops, f"{least / seconds:.0%} {kind}"


def mean(ratios: Sequence[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{geometric_mean(known):.2f}×" if known else "-"


def notes(record: dict[str, Any]) -> str:
    """Who is missing and who was rejected, with reasons."""
    lines = [f"- {name}: {entry['missing']}" for name, entry in record["providers"].items() if entry["missing"]]
    lines += [
        f"- {cell['provider']}, {cell['mode']} {Case(**cell['case']).label}, no figure: {cell['rejected']}"
        for cell in record["cells"]
        if cell["rejected"]
    ]
    return "\n".join(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to one width; the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(line(cells) for cells in (lines[0], rule, *lines[1:]))
