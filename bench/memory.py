"""What a training step holds in memory: ``python -m bench.memory MODULE THREADS B,T,H`` prints bytes, one process each.

The peak of the resident set while a few steps run, less what was resident before the first: inputs, parameters and all
that a small case of the same kind loaded and compiled. Linux alone tells and resets the peak.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .pool import environment
from .problem import Problem
from .registry import Case, Provider, parse_case
from .worker import limit_cores

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STEPS = 3  # what a step leaves behind shows in the next


def measure(provider: Provider, case: Case, threads: int) -> dict[str, Any]:
    """``{"case", "provider", "bytes"}``; bytes is None where it cannot be known, and ``reason`` says why."""
    sizes = f"{case.batch},{case.steps},{case.hidden}"
    command = [sys.executable, "-m", "bench.memory", provider.module, str(threads), sizes]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or [f"process ended with status {done.returncode}"])[-1]
    found = {"case": asdict(case), "provider": provider.name}
    return found | ({"bytes": None, "reason": last} if done.returncode else {"bytes": json.loads(done.stdout)})


def progress(found: dict[str, Any]) -> str:
    size = found["reason"] if found["bytes"] is None else f"{found['bytes'] / 2**20:.0f} MiB"
    return f"memory {Case(**found['case']).label}: {found['provider']} {size}"


def least(case: Case) -> int:
    """Bytes that no training step of ``case`` can do without, in float32.

    y, the state and four gates of every step, the gradient of the input, and those of the parameters.
    """
    parameters = sum(rows * (shape[0] if shape else 1) for rows, *shape in case.parameters.values())
    return 4 * (case.steps * case.batch * case.hidden * 7 + parameters)


def peak_of_training(module: str, case: Case) -> int:
    """Bytes by which training steps of ``case`` raise the peak of this process."""
    provider = importlib.import_module(module)
    provider.training(Problem.of(Case(16, 16, case.hidden)))[0]()
    call, _ = provider.training(Problem.of(case))
    _RESET.write_text("5")  # the peak begins anew
    before = _kilobytes("VmRSS")
    for _ in range(_STEPS):
        result = call()
        del result
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def main() -> None:
    module, threads, sizes = sys.argv[1:]
    limit_cores(int(threads))
    importlib.import_module(module).setup(int(threads))
    print(json.dumps(peak_of_training(module, parse_case(sizes))))


if __name__ == "__main__":
    main()
