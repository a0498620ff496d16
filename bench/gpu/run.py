"""A run on a GPU: tests, probes, then the grid, for as long as the budget lasts; the record grows cell by cell."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import provenance
from ..pool import ROOT, Process, ProviderError, environment
from ..registry import Case
from ..run import Record, Say, now, save
from ..timing import Spread
from .grid import Task
from .json_record import key, key_of

MODULE = "bench.gpu.worker"
_TESTS_SHARE = 0.3  # of the budget, at most
_SECONDS = 0.4  # that a contender is timed for, a cell
_START = 120.0  # seconds that the first import of all libraries may take
_LONGEST = 60.0  # seconds that one answer may take; compilation is most of it
_DEATHS = 3  # of the process over one contender's cells, after which it is left alone
_ENDED = "process ended"
_STICKY = ("illegal memory access", "launch failure", "misaligned address", "StreamCapture")
_TAIL = 2000  # characters of the tests' output that are kept


class NoProcess(ProviderError):
    """The process that computes does not start."""


class WorkerClient:
    """The process that computes, started when first needed and again after each death.

    Args:
        start: makes one.
    """

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self._process: Process | None = None

    def ask(self, do: str, patience: float, **arguments: Any) -> Record:
        """The answer to a request.

        Raises:
            NoProcess: the process did not start.
            ProviderError: it failed, died, or took longer than ``patience`` seconds.
        """
        if self._process is None:
            self._process = self._start()
            try:
                self._process.receive(_START)
            except ProviderError as error:
                self.close()
                raise NoProcess(str(error)) from error
        self._process.send(do, **arguments)
        try:
            return self._process.receive(patience)
        except ProviderError as error:
            if _lost(self._process, error):
                self.close()
            raise

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def _lost(process: Process, error: ProviderError) -> bool:
    """Whether the process is of no more use: gone, or with a CUDA context that a fault has broken for good."""
    return process.ended or str(error).startswith(_ENDED) or any(word in str(error) for word in _STICKY)


def in_process() -> tuple[WorkerClient, ExitStack]:
    """The computing process on this machine's GPU, and what ends it."""
    stack = ExitStack()
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    client = WorkerClient(lambda: Process("gpu", [MODULE], provenance.cores(), scratch))
    stack.enter_context(closing(client))
    return client, stack


def device_tests(seconds: float) -> Record:
    """``pytest -m gpu``, for ``seconds`` at most: whether every test passed, and the end of what was printed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--maxfail=5", "-p", "no:cacheprovider", "tests/cuda"]
    if importlib.util.find_spec("pytest") is None:
        return {"passed": None, "seconds": 0.0, "output": "pytest is not installed"}
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(provenance.cores()),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(1.0, seconds),
        )
    except subprocess.TimeoutExpired as error:
        partly = error.stdout or b""
        output = partly if isinstance(partly, str) else partly.decode(errors="replace")
        return {"passed": None, "seconds": time.monotonic() - started, "output": output[-_TAIL:]}
    return {"passed": done.returncode == 0, "seconds": time.monotonic() - started, "output": done.stdout[-_TAIL:]}


def run_gpu(
    record: Record,
    path: Path,
    tasks: Sequence[Task],
    client: WorkerClient,
    budget: float,
    say: Say,
    tests: Callable[[float], Record] | None = device_tests,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Fill ``record``, which may have been begun by an earlier run, and keep it in the file ``path``.

    Args:
        record: as :func:`bench.gpu.json_record.new_record` or an earlier run left it; what is in it is not done again.
        path: where it is written after each figure.
        tasks: in the order to measure them.
        client: what computes.
        budget: seconds; nothing is begun after them.
        say: hears a line for each figure.
        tests: what runs the device's tests, None to leave them out.
        clock: what the budget is counted by.

    Raises:
        NoProcess: nothing more can be measured.
    """
    begun = clock()

    def left() -> float:
        return budget - (clock() - begun)

    record["finished"] = None
    save(record, path)
    if tests is not None and (record["tests"] is None or record["tests"]["passed"] is None):
        record["tests"] = tests(budget * _TESTS_SHARE)
        save(record, path)
        say(f"tests: {outcome(record['tests'])}")
    for name in client.ask("probes", _LONGEST)["names"]:
        if name in record["probes"] or left() <= 0:
            continue
        try:
            record["probes"][name] = client.ask("probe", _LONGEST, name=name)
        except NoProcess:
            raise
        except ProviderError as error:
            record["probes"][name] = {"failed": str(error)}
        save(record, path)
        say(f"{name}: {record['probes'][name]}")
    done = {key(cell) for cell in record["cells"]}
    for task in tasks:
        name = task[2].name
        if key_of(task) in done or record["providers"][name]["missing"]:
            continue
        if left() <= 0:
            return
        record["cells"].append(cell := measured(task, client, _LONGEST))
        if sum(_died(each) for each in record["cells"] if each["provider"] == name) == _DEATHS:
            record["providers"][name]["missing"] = f"given up after {_DEATHS} times: {cell['rejected']}"
        save(record, path)
        say(progress(cell))
    record["finished"] = now()
    save(record, path)


def _died(cell: Record) -> bool:
    """Whether the process was lost over a cell: a kernel that hangs costs _LONGEST seconds each time."""
    return str(cell["rejected"]).startswith(_ENDED)


def measured(task: Task, client: WorkerClient, patience: float) -> Record:
    """A cell of the record: figures, or why there are none."""
    case, mode, contender = task
    cell: Record = {
        "case": asdict(case),
        "mode": mode,
        "provider": contender.name,
        "misfit": None,
        "error": None,
        "rejected": None,
        "seconds": None,
    }
    try:
        answer = client.ask(
            "measure", patience, case=asdict(case), mode=mode, contender=contender.name, seconds=_SECONDS
        )
    except NoProcess:
        raise
    except ProviderError as error:
        return cell | {"rejected": str(error)}
    cell |= {"misfit": answer.get("misfit"), "error": answer.get("deviation"), "rejected": answer.get("rejected")}
    if "samples" in answer:
        cell["seconds"] = asdict(Spread.of(answer["samples"])) | {"samples": len(answer["samples"])}
    return cell


def outcome(tests: Record | None) -> str:
    """What became of the device's tests, in words."""
    if tests is None:
        return "not run"
    last = (tests["output"].strip().splitlines() or ["no output"])[-1].strip("= ")
    if tests["passed"] is None:
        return f"not finished after {tests['seconds']:.0f} s: {last}"
    return f"{'passed' if tests['passed'] else 'FAILED'}: {last}"


def progress(cell: Record) -> str:
    case, seconds = Case(**cell["case"]), cell["seconds"]
    if seconds:
        figure = f"{seconds['median'] / case.steps * 1e6:.3g} us a step"
    else:
        figure = cell["rejected"] or f"does not fit: {cell['misfit']}"
    return f"{case.dtype} {cell['mode']} B={case.batch} H={case.hidden} {cell['provider']}: {figure}"
