"""A crew of threads that run one serial kernel together, and the barrier they meet at.

Kernels are compiled without the GIL, so Python threads are enough: no OpenMP, no second pool that would spin against
the first, nothing that breaks after a fork or aborts when two Python threads call at once. A call takes the whole
crew or, where another call has it, runs alone in its own thread with the same result: the split of the work never
changes the order of a sum.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import inline
from .vector import INT64

_SPINS = 4096  # a few microseconds of polling, then the core is offered to whoever else wants it
_ARRIVED, _ABORTED = 0, 8  # places in the barrier's array, a cache line apart


def available_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """Threads that are handed shares of one call; the calling thread takes the first share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.size = self._default_size()

    @staticmethod
    def _default_size() -> int:
        text = os.environ.get("GPULSTM_NUM_THREADS", "")
        if not text:
            return available_cores()
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"GPULSTM_NUM_THREADS: expected a whole number above 0, got {text!r}")
        return int(text)

    def resize(self, size: int) -> None:
        """Use ``size`` threads from the next call on."""
        with self._lock:
            self.size = size
            self._retire()

    def _retire(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def after_fork(self) -> None:
        """Forget threads and lock: a forked child has neither."""
        self._lock = threading.Lock()
        self._pool = None

    def run(self, share: Callable[[int, int, np.ndarray], None], at_most: int) -> None:
        """Call ``share(rank, size, barrier)`` once for each rank below ``size`` <= ``at_most``, all at once."""
        if at_most > 1 and self._lock.acquire(blocking=False):
            try:
                size = min(self.size, at_most)
                if size > 1:
                    return self._run_together(share, size)
            finally:
                self._lock.release()
        share(0, 1, new_barrier())

    def _run_together(self, share: Callable[[int, int, np.ndarray], None], size: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.size - 1, thread_name_prefix="gpulstm")
        barrier = new_barrier()
        others = []

        def run(rank: int) -> None:
            try:
                share(rank, size, barrier)
            except BaseException:
                barrier[:, _ABORTED] = 1  # whoever waits for a share that will not come goes on and ends
                raise

        try:
            for rank in range(1, size):
                others.append(self._pool.submit(run, rank))
            share(0, size, barrier)
        except BaseException:
            barrier[:, _ABORTED] = 1
            raise
        finally:
            wait(others)
        for other in others:
            other.result()


crew = Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.after_fork)


def new_barrier() -> np.ndarray:
    """Two barriers (one a direction): in each, how often a thread arrived, and whether the call was given up."""
    return np.zeros((2, 16), np.int64)


@inline
def share(count, rank, size):
    """The first and the last (exclusive) of ``count`` things that fall to ``rank``."""
    return count * rank // size, count * (rank + 1) // size


@intrinsic
def _arrive(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT64.as_pointer())
        builder.atomic_rmw("add", pointer, INT64(1), "seq_cst")
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@intrinsic
def _read(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], INT64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the core that this is a spin loop, where it wants to know."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "x86" in llvm.get_process_triple():
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _yield(typing: Any) -> Any:
    """Offer the core to other threads, where the system's C library is at hand by name."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if os.name == "posix":
            function_type = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "sched_yield"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@inline
def meet(barrier, times, size):
    """Wait until all ``size`` threads have been here ``times`` times; what they wrote before is then visible."""
    if size > 1:
        place = barrier.ctypes.data
        _arrive(place)
        spins = 0
        while _read(place + 8 * _ARRIVED) < times * size and _read(place + 8 * _ABORTED) == 0:
            spins += 1
            _pause()
            if spins > _SPINS:
                _yield()
