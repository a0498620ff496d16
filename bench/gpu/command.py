"""Command line of ``python -m bench run gpu``; it needs nothing that a GPU machine may lack."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ..pool import ROOT, ProviderError
from ..registry import select
from ..run import Record, load
from .grid import CONTENDERS, DTYPES, cases, tasks
from .json_record import alike, measured_table, new_record, unfinished
from .plot import plot
from .report import report
from .run import WorkerClient, device_tests, in_process, run_gpu

_PATIENCE = 30.0  # seconds for what only looks

Begin = Callable[[], tuple[WorkerClient, AbstractContextManager[object]]]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m bench run gpu",
        description="Test, probe and time every walk beside torch.nn.LSTM on a GPU. A run that was "
        "interrupted, or whose budget ended, continues when it is started again.",
    )
    result.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="for everything (540)")
    result.add_argument("--out", type=Path, help="folder; default: bench/results/DEVICE")
    result.add_argument("--resume", type=Path, metavar="RECORD.json", help="go on with this record, kept where it is")
    result.add_argument("--fresh", action="store_true", help="begin a new record even where one was cut")
    result.add_argument("--no-tests", action="store_true", help="leave out pytest -m gpu")
    result.add_argument("--providers", metavar="A,B", help=f"some of {', '.join(CONTENDERS)}")
    result.add_argument("--dtypes", metavar="A,B", help=f"some of {', '.join(DTYPES)}")
    return result


def main(arguments: Sequence[str], begin: Begin = in_process) -> int:
    """Run it; the exit status is 0 where everything was measured and gpulstm was right."""
    options = parser().parse_args(arguments)
    try:
        named = select(options.providers, CONTENDERS) if options.providers else None
    except ValueError as error:
        parser().error(str(error))
    contenders = [c for c in CONTENDERS.values() if (c in named if named else c.default)]
    dtypes = options.dtypes.split(",") if options.dtypes else list(DTYPES)
    if unknown := sorted(set(dtypes) - set(DTYPES)):
        parser().error(f"--dtypes: unknown {unknown}; known are {', '.join(DTYPES)}")
    started = time.monotonic()
    client, context = begin()
    with context:
        try:
            device = client.ask("describe", _PATIENCE)
        except ProviderError as error:
            say(f"no GPU can be measured here: {error}")
            return 1
        try:
            path, record = _record(options, new_record(device, contenders))
        except ValueError as error:
            parser().error(str(error))
        budget = options.budget - (time.monotonic() - started)
        try:
            grid = tasks(cases(dtypes), contenders)
            run_gpu(record, path, list(grid), client, budget, say, None if options.no_tests else device_tests)
        except KeyboardInterrupt:
            say("interrupted")
        except ProviderError as error:
            say(f"stopped: {error}")
    return finish(record, path)


def _record(options: argparse.Namespace, new: Record) -> tuple[Path, Record]:
    """Where to write, and what is there already.

    Raises:
        ValueError: the record to go on with is none, or is not about this GPU and these sources.
    """
    if options.resume:
        record = load(options.resume)
        if not alike(record, new):
            raise ValueError(f"--resume: {options.resume} is about another GPU or other sources")
        record["providers"] = new["providers"] | record["providers"]
        return options.resume, record
    name = re.sub(r"[^a-z0-9]+", "-", new["device"]["name"].lower()).strip("-")
    folder = options.out or ROOT / "bench" / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    found = None if options.fresh else unfinished(folder, new)
    if found:
        say(f"going on with {found[0]}: {len(found[1]['cells'])} figures")
        return found
    return folder / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}.json", new


def finish(record: Record, path: Path) -> int:
    """Print and write the table, the table for selection and the plot; the exit status."""
    text = report(record)
    print(text)
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".walks.json").write_text(json.dumps(measured_table(record), indent=1) + "\n")
    say(plot(record, path.with_suffix(".png")) or f"drawn: {path.with_suffix('.png')}")
    say(f"written: {path} .md .walks.json")
    wrong = any(cell["rejected"] for cell in record["cells"] if CONTENDERS[cell["provider"]].walk)
    failed = record["tests"] is not None and record["tests"]["passed"] is False
    return int(wrong or failed or not record["finished"])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
