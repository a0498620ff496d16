"""Command line: ``python -m bench run cpu``, ``run torch``, ``run cells``, ``run gpu`` and ``report RECORD.json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import click

from . import provenance
from .gpu import command as on_gpu
from .plot import plot
from .pool import ROOT, ProviderError
from .registry import (
    CELL_PROVIDERS,
    CELL_TABLES,
    CPU_GRID,
    CPU_PROVIDERS,
    ITEMSIZE,
    MEMORY_CASES,
    NARROW,
    OWN,
    TABLES,
    TORCH_GRID,
    TORCH_PROVIDERS,
    Case,
    Provider,
    Table,
    cell_tables,
    named,
    parse_case,
    select,
    timed_tables,
)
from .report import report
from .run import Record, Settings, load, new_record, run_cpu

RESULTS = "bench/results/MACHINE"
CELL_NAMES = tuple(table.name for table in CELL_TABLES)


@click.group(help="Time gpulstm beside the LSTMs it competes with.")
def main() -> None:
    pass


@main.group(help="Measure.")
def run() -> None:
    pass


def measures(
    kind: str,
    providers: Mapping[str, Provider],
    known: tuple[str, ...],
    tables: tuple[str, ...],
    timed: Callable[[Collection[str], tuple[Case, ...], bool], list[Table]],
) -> Callable[..., None]:
    """A command that fills ``tables`` by default, of those ``known``, by ``providers`` on the CPU.

    ``timed`` are tables by their names, with the cases asked for, if any, and whether in a hurry.
    """
    for_cases = [name for name in tables if name in ("grid", "narrow")]

    @click.option("--quick", is_flag=True, help="Fewer and shorter turns, fewer cases: minutes on two cores.")
    @click.option("--out", type=click.Path(file_okay=False, path_type=Path), help=f"Folder; default: {RESULTS}.")
    @click.option("--providers", "names", metavar="A,B", help=f"Some of {', '.join(providers)}; default: all.")
    @click.option(
        "--case",
        "cases",
        multiple=True,
        metavar="B,T,H[,NAME=VALUE]",
        help="Instead of those that tables have; may be repeated. gpulstm.explain prints a call's own.",
    )
    @click.option(
        "--tables",
        "wanted",
        metavar="A,B",
        help=f"Some of {', '.join(known)}; default: {','.join(tables)}, with --case {','.join(for_cases) or 'one'}.",
    )
    @click.option("--rounds", type=click.IntRange(1), help="Turns for each provider and case (9; quick: 3).")
    @click.option("--threads", type=click.IntRange(1), help="The same for every provider; default: all cores.")
    @click.option("--dtype", type=click.Choice(list(ITEMSIZE)), help="Of every case. [default: its own, float32]")
    def command(
        quick: bool,
        out: Path | None,
        names: str | None,
        cases: tuple[str, ...],
        wanted: str | None,
        rounds: int | None,
        threads: int | None,
        dtype: str | None,
    ) -> None:
        try:
            asked = tuple(map(parse_case, cases))
            shown = named(wanted, known, "tables") if wanted is not None else for_cases if asked else tables
            entitled = {n: p for n, p in providers.items() if n not in NARROW or "narrow" in shown}
            chosen = select(names, entitled)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        found = [
            replace(table, cases=tuple(replace(case, dtype=dtype or case.dtype) for case in table.cases))
            for table in timed(shown, asked, quick)
        ]
        memory_cases = asked or MEMORY_CASES[:: 2 if quick else 1]
        threads = threads or provenance.cores()
        settings = Settings(threads, rounds or 3, 0.05) if quick else Settings(threads, rounds or 9, 0.25)
        record = new_record(kind, settings, chosen)
        folder = out or ROOT / "bench" / "results" / provenance.slug(record["machine"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        try:
            run_cpu(record, path, found, chosen, settings, say, memory_cases if "memory" in shown else ())
        except KeyboardInterrupt:
            say("interrupted")
        except ProviderError as error:
            say(f"stopped: the reference failed, so nothing more can be checked: {error}")
        finish(record, path)

    return command


def of_grid(grid: tuple[Case, ...]) -> Callable[[Collection[str], tuple[Case, ...], bool], list[Table]]:
    """Of :func:`measures`, with ``grid`` where no cases are asked for."""
    return lambda shown, asked, quick: timed_tables(shown, asked or grid, quick)


run.command(
    "cpu",
    help="One layer, I = H, float32, on the CPU: inference, training, narrow weights, cost of more steps, memory.",
)(measures("cpu", CPU_PROVIDERS, TABLES, TABLES, of_grid(CPU_GRID)))
run.command(
    "torch", help="gpulstm.torch.LSTM beside torch.nn.LSTM on the CPU, and the same layer on NumPy arrays ('arrays')."
)(measures("torch", TORCH_PROVIDERS, TABLES, ("grid",), of_grid(TORCH_GRID)))
run.command(
    "cells",
    help="Cells of all kinds in plain calls, on the CPU, beside the loops, layers and packages that have them.",
)(measures("cells", CELL_PROVIDERS, CELL_NAMES, CELL_NAMES, cell_tables))


@run.command(
    help="The grid on a GPU; options: python -m bench run gpu --help.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gpu(arguments: tuple[str, ...]) -> None:
    sys.exit(on_gpu.main(arguments))


@main.command("report", help="Print the table of a record, and draw it again.")
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def report_command(record: Path) -> None:
    try:
        found = load(record)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if found["kind"] == "gpu":
        sys.exit(on_gpu.finish(found, record))
    finish(found, record)


def finish(record: Record, path: Path) -> None:
    """Print and write the table, draw the plot; exit with 1 if the run was cut or gpulstm was wrong."""
    text = report(record)
    click.echo(text)
    path.with_suffix(".md").write_text(text)
    note = plot(record, path.with_suffix(".png"))
    say(f"written: {path.with_suffix('')}.json .md{f'; {note}' if note else ' .png'}")
    rejected = any(cell["rejected"] for cell in record["cells"] if cell["provider"] in OWN)
    if rejected or not record["finished"]:
        sys.exit(1)


def say(line: str) -> None:
    click.echo(line, err=True)
