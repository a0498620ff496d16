"""Command line: ``python -m bench run cpu``, ``run torch``, ``run gpu`` and ``report RECORD.json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click

from . import machine
from .gpu import command as on_gpu
from .plot import plot
from .pool import ROOT, ProviderError
from .registry import (
    BATCH,
    CPU_GRID,
    CPU_PROVIDERS,
    MEMORY_CASES,
    STEPS,
    SUBJECT,
    TORCH_GRID,
    TORCH_PROVIDERS,
    Case,
    Provider,
    Table,
    parse_case,
    select,
)
from .report import report
from .run import Record, Settings, load, new_record, run_cpu

RESULTS = "bench/results/MACHINE"


@click.group(help="Time gpulstm beside the LSTMs it competes with.")
def main() -> None:
    pass


@main.group(help="Measure.")
def run() -> None:
    pass


def measures(
    kind: str,
    grid: tuple[Case, ...],
    providers: Mapping[str, Provider],
    further: tuple[Table, ...] = (),
    memory_cases: tuple[Case, ...] = (),
) -> Callable[..., None]:
    """A command that times ``grid`` and ``further`` tables with ``providers`` on the CPU."""

    @click.option("--quick", is_flag=True, help="Fewer and shorter turns, the grid alone: three minutes on two cores.")
    @click.option("--out", type=click.Path(file_okay=False, path_type=Path), help=f"Folder; default: {RESULTS}.")
    @click.option("--providers", "names", metavar="A,B", help=f"Some of {', '.join(providers)}; default: all.")
    @click.option("--case", "cases", multiple=True, metavar="B,T,H", help="Instead of all tables; may be repeated.")
    @click.option("--rounds", type=click.IntRange(1), help="Turns for each provider and case (9; quick: 3).")
    @click.option("--threads", type=click.IntRange(1), help="The same for every provider; default: all cores.")
    @click.option("--dtype", type=click.Choice(["float32"]), default="float32", show_default=True)
    def command(
        quick: bool,
        out: Path | None,
        names: str | None,
        cases: tuple[str, ...],
        rounds: int | None,
        threads: int | None,
        dtype: str,
    ) -> None:
        try:
            chosen = select(names, providers)
            asked = tuple(map(parse_case, cases))
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        whole = not asked and not quick
        tables = [Table("grid", asked or grid), *(further if whole else ())]
        tables = [replace(t, cases=tuple(replace(case, dtype=dtype) for case in t.cases)) for t in tables]
        threads = threads or machine.cores()
        settings = Settings(threads, rounds or 3, 0.05) if quick else Settings(threads, rounds or 9, 0.25)
        record = new_record(kind, settings, chosen)
        folder = out or ROOT / "bench" / "results" / machine.slug(record["machine"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        try:
            run_cpu(record, path, tables, chosen, settings, say, memory_cases if whole else ())
        except KeyboardInterrupt:
            say("interrupted")
        except ProviderError as error:
            say(f"stopped: the reference failed, so nothing more can be checked: {error}")
        finish(record, path)

    return command


run.command(
    "cpu",
    help="One layer, I = H, float32, on the CPU: inference, training, narrow weights, cost of more steps, memory.",
)(measures("cpu", CPU_GRID, CPU_PROVIDERS, (STEPS, BATCH), MEMORY_CASES))
run.command(
    "torch", help="gpulstm.torch.LSTM beside torch.nn.LSTM on the CPU, and the same layer on NumPy arrays ('arrays')."
)(measures("torch", TORCH_GRID, TORCH_PROVIDERS))


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
    say(note or f"written: {path.with_suffix('')}.json .md .png")
    rejected = any(cell["rejected"] for cell in record["cells"] if cell["provider"] == SUBJECT)
    if rejected or not record["finished"]:
        sys.exit(1)


def say(line: str) -> None:
    click.echo(line, err=True)
