"""The other end of :mod:`bench.worker`: starting providers' processes and talking to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .problem import Outputs
from .registry import Case, Provider
from .timing import Turn

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300.0  # seconds for one answer


class ProviderError(Exception):
    """A provider could not do what it was asked; the message says why."""


class Process:
    """A child that answers :mod:`bench.worker`'s requests: they are sent at once, :meth:`receive` waits for answers."""

    def __init__(self, name: str, command: list[str], threads: int, scratch: Path) -> None:
        self._errors = scratch / f"{name}.stderr"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(threads),
            )

    def send(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it died: receive() says why
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def receive(self, patience: float | None = None) -> dict[str, Any]:
        """The answer to the oldest open request, after ``patience`` seconds at most (PATIENCE).

        Raises:
            ProviderError: the answer is an error, or the process ended or gave none in time.
        """
        assert self._process.stdout
        watchdog = threading.Timer(patience or PATIENCE, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            last = self._errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise ProviderError(": ".join([f"process ended with status {self._process.wait()}", *last]))
        answer = json.loads(line)
        if "error" in answer:
            raise ProviderError(answer["error"])
        return answer

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Worker(Process):
    """A provider's process."""

    def __init__(self, provider: Provider, threads: int, scratch: Path) -> None:
        super().__init__(provider.name, ["bench.worker", provider.module, str(threads)], threads, scratch)
        self.provider = provider
        self._results = scratch / f"{provider.name}.npz"

    def send_prepare(self, case: Case, mode: str) -> None:
        self.send("prepare", case=asdict(case), mode=mode, path=str(self._results))

    def receive_outputs(self) -> Outputs:
        """The arrays of the ``prepare`` that was sent.

        Raises:
            ProviderError: as :meth:`receive`; or what it wrote are no plain arrays.
        """
        self.receive()
        try:
            with np.load(self._results, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise ProviderError(f"result cannot be read: {error}") from error

    def time(self, target: float) -> Turn:
        self.send("time", target=target)
        return Turn(**self.receive())


def environment(threads: int) -> dict[str, str]:
    """The same for every provider: thread counts, and a path that finds gpulstm whether installed or not."""
    counts = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "PJRT_NPROC",
    )
    path = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        os.environ | dict.fromkeys(counts, str(threads)) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path)}
    )
