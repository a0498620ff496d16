"""A run: workers started once; cases checked, then timed in interleaved rounds; a record that grows."""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import footprint, peak, provenance
from .pool import ROOT, ProviderError, Worker
from .problem import Outputs, Problem
from .registry import MODES, REFERENCE, Case, Provider, Table
from .timing import Spread
from .verify import Verdict, check

SCHEMA = 1  # records of before there were further tables have no "memory", and cells without "table" are of the grid
Record = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """``rounds`` turns for each provider, each of about ``target`` seconds, on ``threads`` threads."""

    threads: int
    rounds: int
    target: float


def new_record(kind: str, settings: Settings, providers: Sequence[Provider]) -> Record:
    """All that is known before anything was measured."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "started": now(),
        "finished": None,
        "command": ["python", "-m", "bench", *sys.argv[1:]],
        "commit": provenance.commit(ROOT),
        "machine": provenance.describe(),
        "settings": asdict(settings),
        "peaks": None,
        "bystanders": None,
        "providers": {
            provider.name: {"versions": provenance.versions(provider), "missing": provenance.missing(provider)}
            for provider in providers
        },
        "cells": [],
        "memory": [],
    }


def run_cpu(
    record: Record,
    path: Path,
    tables: Sequence[Table],
    providers: Sequence[Provider],
    settings: Settings,
    say: Say,
    memory_cases: Sequence[Case] = (),
) -> None:
    """Fill ``record`` and keep it in the file ``path``; ``say`` hears a line for each case and mode.

    Raises:
        ProviderError: the reference failed, so no figure could be believed.
    """
    other_load = provenance.OtherLoad()
    say("measuring the machine's peaks")
    record["peaks"] = peak.measure(settings.threads)
    with ExitStack() as stack:

        @stack.callback
        def close_record() -> None:  # the last to be called: all workers have ended
            record["bystanders"] = other_load.share()
            save(record, path)

        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(provider: Provider) -> Worker:
            return stack.enter_context(closing(Worker(provider, settings.threads, scratch)))

        reference = start(REFERENCE)
        workers = [start(provider) for provider in providers if not record["providers"][provider.name]["missing"]]
        reference.receive()
        workers = [worker for worker in workers if ready(worker, record)]
        for table in tables:
            timed = [worker for worker in workers if worker.provider.name in (table.providers or record["providers"])]
            for case in table.cases if timed else ():
                truths = {case: truth(reference, case)}
                if any(worker.provider.baseline for worker in timed) and case.baseline != case:
                    truths[case.baseline] = truth(reference, case.baseline)
                for mode in table.modes:
                    entrants = [worker for worker in timed if mode in worker.provider.modes]
                    cells = prepare(entrants, case, mode, truths)
                    for _, cell in cells:
                        cell["table"] = table.name
                        record["cells"].append(cell)
                    interleave([pair for pair in cells if not pair[1]["rejected"]], settings)
                    save(record, path)
                    say(progress(case, mode, [cell for _, cell in cells]))
        for case in memory_cases:
            for provider in (worker.provider for worker in workers if MODES[-1] in worker.provider.modes):
                record["memory"].append(footprint.measure(provider, case, settings.threads))
                save(record, path)
                say(footprint.progress(record["memory"][-1]))
        record["finished"] = now()


def ready(worker: Worker, record: Record) -> bool:
    """Has the process started? If not, the record says why."""
    try:
        worker.receive()
    except ProviderError as error:
        record["providers"][worker.provider.name]["missing"] = str(error)
        return False
    return True


def truth(reference: Worker, case: Case) -> Outputs:
    """All outputs of a case as they should be: training's are inference's and more."""
    reference.send_prepare(case, MODES[-1])
    return reference.receive_outputs()


def prepare(
    workers: Sequence[Worker], case: Case, mode: str, truths: Mapping[Case, Outputs]
) -> list[tuple[Worker, Record]]:
    """Build ``mode`` of the case in all workers at once; a cell for each, rejected with a reason if wrong.

    ``truths``: of the case and of its baseline.
    """
    own = [case.baseline if worker.provider.baseline else case for worker in workers]
    problems = {given: Problem.of(given) for given in dict.fromkeys(own)}
    for worker, given in zip(workers, own, strict=True):
        worker.send_prepare(given, mode)
    return [
        (worker, entry(case, mode, worker.provider, checked(worker, problems[given], mode, truths[given])))
        for worker, given in zip(workers, own, strict=True)
    ]


def checked(worker: Worker, problem: Problem, mode: str, truth: Outputs) -> Verdict:
    try:
        return check(problem, mode, worker.receive_outputs(), truth, worker.provider.tolerance)
    except ProviderError as error:
        return Verdict(None, str(error))


def entry(case: Case, mode: str, provider: Provider, verdict: Verdict) -> Record:
    """Of a record, before anything was timed."""
    return {
        "case": asdict(case),
        "mode": mode,
        "provider": provider.name,
        "error": verdict.error,
        "rejected": verdict.reason,
        "turns": [],
        "seconds": None,
    }


def interleave(entries: Sequence[tuple[Worker, Record]], settings: Settings) -> None:
    """Time the checked ones in turns, a turn each per round; every round starts with another one."""
    for number in range(settings.rounds):
        first = number % max(1, len(entries))
        for worker, cell in [*entries[first:], *entries[:first]]:
            if cell["rejected"]:
                continue
            try:
                cell["turns"].append(asdict(worker.time(settings.target)))
            except ProviderError as error:
                cell |= {"rejected": str(error), "seconds": None}
                continue
            cell["seconds"] = asdict(Spread.of([turn["seconds"] / turn["calls"] for turn in cell["turns"]]))


def progress(case: Case, mode: str, cells: Sequence[Record]) -> str:
    def figure(cell: Record) -> str:
        return "rejected" if cell["rejected"] else f"{cell['seconds']['median'] * 1e3:.3g} ms"

    return f"{mode} {case.label}: " + ", ".join(f"{cell['provider']} {figure(cell)}" for cell in cells)


def save(record: Record, path: Path) -> None:
    """Write the record beside its place, then move it there."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(draft, path)


def load(path: Path) -> Record:
    """A record written by :func:`save`.

    Raises:
        ValueError: the file holds no record of this schema.
    """
    try:
        record = json.loads(path.read_text())
        schema = record["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a benchmark's JSON record ({error})") from error
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {schema!r}")
    return record


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
