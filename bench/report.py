"""From a record to the table that people read: aligned Markdown, the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from . import footprint, peak
from .provenance import vectors
from .registry import BASELINE, MODES, NARROW, OWN, SCALED, SUBJECT, Case

CELL_TITLES = {  # of registry.CELL_TABLES; the baseline is Case.baseline
    "products": "cells of as many products as the LSTM, or fewer; baseline: our LSTM",
    "gru": "GRU",
    "layer_norm": "LSTM with layer normalisation; baseline: our LSTM",
    "resets": "LSTM, sequences that begin anew in the middle; baseline: the same without resets",
    "slstm": "sLSTM; baseline: our LSTM, of more heads the same of one",
    "scans": "cells without a recurrent product",
    "scans_positive": "those that keep h above 0, as minGRU-pytorch has them",
    "cases": "cases asked for; baseline: the same without resets and heads, or our LSTM",
}


@dataclass(frozen=True)
class Row:
    """Figures of one case: seconds (median, q1, q3) of each provider that was checked and timed."""

    case: Case
    seconds: dict[str, dict[str, float]]

    def ratio(self, peer: str, subject: str = SUBJECT) -> float | None:
        """How many times longer ``peer`` takes than ``subject``; above 1, that is faster."""
        if not {peer, subject} <= self.seconds.keys():
            return None
        return self.seconds[peer]["median"] / self.seconds[subject]["median"]

    @property
    def best_peer(self) -> str | None:
        """The fastest of the others that compute as exactly."""
        peers = [name for name in self.seconds if name not in OWN]
        return min(peers, key=lambda name: self.seconds[name]["median"], default=None)

    @property
    def shown(self) -> str | None:
        """Whose rate is printed: gpulstm's, or the fastest peer's where there is none of it."""
        return SUBJECT if SUBJECT in self.seconds else self.best_peer


def rows(record: dict[str, Any], mode: str, table: str = "grid") -> list[Row]:
    """A row for each case of ``mode`` in ``table``, in the order they were run."""
    found: dict[Case, dict[str, dict[str, float]]] = {}
    for cell in record["cells"]:
        if cell["mode"] == mode and cell.get("table", "grid") == table:
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
    for table, title in CELL_TITLES.items():
        for mode in MODES:
            if table_rows := rows(record, mode, table):
                parts.append(f"{title}: {mode}, milliseconds\n\n{cell_table(record, mode, table_rows)}")
    if any(NARROW.keys() & row.seconds.keys() for row in rows(record, "inference")):
        parts.append(
            f"inference with weights in fewer bits, milliseconds, and how many times longer the best float32 peer and "
            f"{SUBJECT} in float32 take\n\n{narrow_table(rows(record, 'inference'))}"
        )
    # bench.providers.gpulstm times a single step in a stream; layers of torch have none
    single = f" (inference of one step by {SUBJECT}: in its stream)" if record["kind"] == "cpu" else ""
    for table, title in (("steps", f"steps T{single}"), ("batch", "sequences B")):
        scaled = [(mode, rows(record, mode, table)) for mode in MODES]
        if any(table_rows for _, table_rows in scaled):
            parts.append(
                f"cost of more {title}: milliseconds a call, and nanoseconds a step of a sequence\n\n"
                + scaling_table(scaled)
            )
    if record.get("memory"):
        parts.append(
            "peak memory of training, MiB above what is resident before: tape is y, c and gates of every step, least "
            f"adds the gradients of x and parameters\n\n{memory_table(record['memory'])}"
        )
    parts.append(notes(record))
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(record: dict[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    lines = [
        f"{machine['cpu']} ({vectors(machine) or 'no vectors'}), {settings['threads']} threads of "
        f"{machine['cores']} cores; {record['started']}; "
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
    return "(not here)" if entry["missing"] else next(iter(entry["versions"].values())) or "of this tree"


def mode_table(record: dict[str, Any], mode: str, table_rows: Sequence[Row]) -> str:
    """Cases down, providers across; the last line holds geometric means of the ratios."""
    names = [name for name in record["providers"] if any(name in row.seconds for row in table_rows)]
    names = [name for name in names if name not in NARROW]
    header = ["B,T,H", *names, "best peer", "GF/s", "of bound"]
    body = [
        [row.case.label, *(figure(row, name) for name in names), ratio_to_best(row), *rate(record, mode, row)]
        for row in table_rows
    ]
    to_best = [row.ratio(row.best_peer) for row in table_rows if row.best_peer]
    means = [mean([row.ratio(name) for row in table_rows]) if name != SUBJECT else "" for name in names]
    return markdown([header, *body, ["geometric mean", *means, mean(to_best), "", ""]])


def cell_table(record: dict[str, Any], mode: str, table_rows: Sequence[Row]) -> str:
    """Cases down, providers across; times and products of gpulstm over those of its baseline, where that was timed."""
    names = [name for name in record["providers"] if any(name in row.seconds for row in table_rows)]
    with_baseline = BASELINE in names
    header = ["B,T,H", *names, "best peer", *["of baseline", "products"] * with_baseline]
    body = []
    for row in table_rows:
        line = [row.case.label, *(figure(row, name) for name in names), ratio_to_best(row)]
        if with_baseline:
            ratio = row.ratio(SUBJECT, BASELINE)
            products = row.case.flops(mode) / row.case.baseline.flops(mode)
            line += ["-" if ratio is None else f"{ratio:.2f}×", f"{products:.2f}×"]
        body.append(line)
    to_best = [row.ratio(row.best_peer) for row in table_rows if row.best_peer]
    means = [mean([row.ratio(name) for row in table_rows]) if name != SUBJECT else "" for name in names]
    to_baseline = [mean([row.ratio(SUBJECT, BASELINE) for row in table_rows]), ""] if with_baseline else []
    return markdown([header, *body, ["geometric mean", *means, mean(to_best), *to_baseline]])


def narrow_table(table_rows: Sequence[Row]) -> str:
    """Cases down, kinds of weights across."""
    names = [name for name in NARROW if any(name in row.seconds for row in table_rows)]
    header = ["B,T,H"]
    for name in names:
        header += [name, "best peer", SUBJECT]
    ratios: dict[tuple[str, int], list[float | None]] = {}
    body = []
    for row in table_rows:
        line = [row.case.label]
        for name in names:
            line.append(milliseconds(row.seconds[name]["median"]) if name in row.seconds else "-")
            for column, other in enumerate((row.best_peer, SUBJECT)):
                ratio = row.ratio(other, name) if other else None
                ratios.setdefault((name, column), []).append(ratio)
                line.append("-" if ratio is None else f"{ratio:.2f}×")
        body.append(line)
    means = [part for name in names for part in ("", mean(ratios[name, 0]), mean(ratios[name, 1]))]
    return markdown([header, *body, ["geometric mean", *means]])


def scaling_table(scaled: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Cases down; for each mode and provider, time and time a step."""
    found = {(mode, row.case): row for mode, table_rows in scaled for row in table_rows}
    columns = [(mode, name) for mode, _ in scaled for name in SCALED if any(name in r.seconds for r in found.values())]
    header = ["B,T,H", *(part for mode, name in columns for part in (f"{name}, {mode}", "ns"))]
    body = []
    for case in dict.fromkeys(case for _, case in found):
        line = [case.label]
        for mode, name in columns:
            row = found.get((mode, case))
            if row is None or name not in row.seconds:
                line += ["-", "-"]
                continue
            seconds = row.seconds[name]["median"]
            line += [milliseconds(seconds), f"{seconds * 1e9 / (case.batch * case.steps):.0f}"]
        body.append(line)
    return markdown([header, *body])


def memory_table(found: Sequence[dict[str, Any]]) -> str:
    """Cases down, providers across, each with its share of gpulstm's."""
    sizes = {(Case(**entry["case"]), entry["provider"]): entry["bytes"] for entry in found}
    names = list(dict.fromkeys(name for _, name in sizes))
    body = []
    for case in dict.fromkeys(case for case, _ in sizes):
        line = [case.label, *(f"{floor(case) / 2**20:.0f}" for floor in (footprint.tape, footprint.least))]
        own = sizes.get((case, SUBJECT))
        for name in names:
            size = sizes.get((case, name))
            ratio = f" {size / own:.2f}×" if size is not None and own and name != SUBJECT else ""
            line.append("-" if size is None else f"{size / 2**20:.0f}{ratio}")
        body.append(line)
    return markdown([["B,T,H", "tape", "least", *names], *body])


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
        f"- {entry['provider']}, memory of {Case(**entry['case']).label}: {entry['reason']}"
        for entry in record.get("memory", ())
        if entry["bytes"] is None
    ]
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
