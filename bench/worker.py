"""A provider's process: ``python -m bench.worker MODULE THREADS``, one JSON object a line in, one out.

Between requests it is blocked in a read. Large results go through ``.npz`` files, never through a pickle.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .problem import Problem, Runner
from .registry import Case
from .timing import settle, turn


class Session:
    """The provider's module and the callable of the case at hand."""

    def __init__(self, module: str, threads: int) -> None:
        self.provider = importlib.import_module(module)
        self.provider.setup(threads)
        self.runner: Runner | None = None
        self.expected: float | None = None

    def prepare(self, case: dict[str, Any], mode: str, path: str) -> dict[str, Any]:
        """Build ``mode`` of ``case``, run it once and write what it returned to ``path``."""
        self.runner = self.expected = None  # frees the last case
        self.runner = getattr(self.provider, mode)(Problem.of(Case(**case)))
        call, outputs = self.runner
        np.savez(Path(path), **outputs(call()))
        settle()
        return {}

    def time(self, target: float) -> dict[str, Any]:
        """One turn of the very callable whose result :meth:`prepare` wrote."""
        assert self.runner
        done = turn(self.runner[0], target, self.expected)
        self.expected = done.per_call
        return asdict(done)


def main() -> None:
    module, threads = sys.argv[1], int(sys.argv[2])
    limit_cores(threads)
    serve(lambda: Session(module, threads))


def serve(start: Callable[[], Any]) -> None:
    """Answer requests with the methods of what ``start`` makes; first an empty answer, once it is made."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr, not between the replies

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    def attempt(action: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
        try:
            return action(**arguments)
        except Exception as error:  # the parent shows it beside the provider's name
            return {"error": f"{type(error).__name__}: {error}"}

    try:
        session = start()
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({})
    for line in sys.stdin:
        request = json.loads(line)
        reply(attempt(getattr(session, request.pop("do")), **request))


def limit_cores(threads: int) -> None:
    """Confine the process to ``threads`` cores: the one limit that every runtime heeds (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    main()
