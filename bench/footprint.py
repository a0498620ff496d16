"""What a training step holds in memory: ``python -m bench.footprint MODULE THREADS B,T,H`` prints bytes.

A measurement is a process of its own. The peak of the resident set while a few steps run, less what was resident before
the first: inputs, parameters and all that a small case of the same kind loaded and compiled. Where the system does not
begin the peak anew (Linux does), the peak until then stands for what was resident, and the figure may be too low by
what was freed.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import pool
from .problem import Problem
from .registry import ITEMSIZE, Case, Provider, parse_case
from .worker import limit_cores

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STEPS = 3  # what a step leaves behind shows in the next


def measure(provider: Provider, case: Case, threads: int) -> dict[str, Any]:
    """``{"case", "provider", "bytes"}``; bytes is None where it cannot be known, and ``reason`` says why."""
    command = [sys.executable, "-m", "bench.footprint", provider.module, str(threads), case.text]
    found = {"case": asdict(case), "provider": provider.name}
    try:
        done = subprocess.run(
            command, env=pool.environment(threads), capture_output=True, text=True, timeout=pool.PATIENCE
        )
    except subprocess.TimeoutExpired:
        return found | {"bytes": None, "reason": f"no answer in {pool.PATIENCE:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"process ended with status {done.returncode}"])[-1]
        return found | {"bytes": None, "reason": last}
    return found | {"bytes": int(done.stdout.split()[-1])}  # whatever a library printed before


def progress(found: dict[str, Any]) -> str:
    size = found["reason"] if found["bytes"] is None else f"{found['bytes'] / 2**20:.0f} MiB"
    return f"memory {Case(**found['case']).label}: {found['provider']} {size}"


def tape(case: Case) -> int:
    """Bytes that the forward pass saves for the backward one: y, of an LSTM c, and the gates of every step."""
    cell = case.of_cell
    values = case.outputs + (len(cell.preactivations) + len(cell.states)) * case.hidden
    return ITEMSIZE[case.dtype] * case.layers * case.directions * case.steps * case.batch * values


def least(case: Case) -> int:
    """Bytes of the tape and of the gradients that a step returns: those of x and of the parameters."""
    parameters = sum(map(math.prod, case.parameters.values()))
    return tape(case) + ITEMSIZE[case.dtype] * (case.steps * case.batch * case.features + parameters)


def peak_of_training(module: str, case: Case) -> int:
    """Bytes by which training steps of ``case`` raise the peak of this process."""
    provider = importlib.import_module(module)
    provider.training(Problem.of(replace(case, batch=16, steps=16)))[0]()
    call, _ = provider.training(Problem.of(case))
    before = _begin()
    for _ in range(_STEPS):
        result = call()
        del result
    return _peak() - before


def _begin() -> int:
    """Begin the peak anew; bytes that are resident now, or the peak until now where it cannot be begun anew."""
    try:
        _RESET.write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    """Bytes of the largest resident set so far."""
    if _STATUS.exists():
        return _status("VmHWM")  # getrusage may give that of the process which started this one
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def _status(name: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    module, threads, sizes = sys.argv[1:]
    limit_cores(int(threads))
    importlib.import_module(module).setup(int(threads))
    print(peak_of_training(module, parse_case(sizes)))


if __name__ == "__main__":
    main()
