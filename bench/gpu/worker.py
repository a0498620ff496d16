"""The process that computes: ``python -m bench.gpu.worker``, spoken to as :mod:`bench.worker`.

One process for all contenders, so that the truth of a case is computed once and stays on the device. A kernel that
faults takes the process with it; the parent starts another.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

from ..registry import Case
from ..worker import serve
from . import probes
from .grid import CONTENDERS
from .problem import Arrays, Problem, check, truth
from .timing import Elapsed, Events, samples


class Session:
    """What the parent may ask for.

    Args:
        xp: CuPy, or NumPy in tests.
        elapsed: what times calls.
        free: gives back the memory of a case that is done with.
    """

    def __init__(self, xp: Any, elapsed: Elapsed, free: Callable[[], None]) -> None:
        self._xp, self._elapsed, self._free = xp, elapsed, free
        self._known: tuple[Case, Problem, Arrays] | None = None

    def probes(self) -> dict[str, Any]:
        """The names of :mod:`.probes`: the parent may not have gpulstm on its path."""
        return {"names": list(probes.PROBES)}

    def probe(self, name: str) -> dict[str, Any]:
        """The figures of one of :mod:`.probes`."""
        figures: dict[str, Any] = probes.PROBES[name](self._elapsed)
        return figures

    def measure(self, case: dict[str, Any], mode: str, contender: str, seconds: float) -> dict[str, Any]:
        """Check a contender's result, then time it for about ``seconds``.

        Returns:
            ``misfit``, why it cannot compute the case; or ``deviation``, its largest relative error, and ``rejected``,
            why it was not timed, or ``samples``, seconds of a call.
        """
        chosen, one = CONTENDERS[contender], Case(**case)
        module = importlib.import_module(chosen.module)
        misfit = module.misfit(one, mode, chosen)
        if misfit is not None:
            return {"misfit": misfit}
        problem, expected = self._case(one)
        call, outputs = getattr(module, mode)(problem, chosen)
        for _ in range(3):  # at once, into a graph, from the graph
            verdict = check(self._xp, one, mode, outputs(call()), expected)
            if verdict.reason:
                return {"deviation": verdict.error, "rejected": verdict.reason}
        return {"deviation": verdict.error, "samples": samples(self._elapsed, call, seconds)}

    def _case(self, case: Case) -> tuple[Problem, Arrays]:
        if self._known is None or self._known[0] != case:
            self._known = None
            gc.collect()
            self._free()
            problem = Problem.of(self._xp, case)
            self._known = case, problem, truth(self._xp, problem)
        return self._known[1:]


class OnDevice(Session):
    """A session on the current GPU."""

    def __init__(self) -> None:
        import cupy

        def free() -> None:
            cupy.get_default_memory_pool().free_all_blocks()
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()

        super().__init__(cupy, Events(cupy), free)

    def describe(self) -> dict[str, Any]:
        """The GPU and what drives it."""
        api = self._xp.cuda.runtime
        has = api.getDeviceProperties(api.getDevice())
        return {
            "name": has["name"].decode(),
            "capability": f"{has['major']}.{has['minor']}",
            "multiprocessors": has["multiProcessorCount"],
            "memory": has["totalGlobalMem"],
            "driver": api.driverGetVersion(),
            "runtime": api.runtimeGetVersion(),
            "cupy": self._xp.__version__,
        }


if __name__ == "__main__":
    serve(OnDevice)
