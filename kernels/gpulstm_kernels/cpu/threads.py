"""A crew of threads that run one serial kernel together, and the barrier they meet at.

Kernels are compiled without the GIL, so Python threads are enough: no OpenMP, no second pool that would spin against
the first, nothing that breaks after a fork or aborts when two Python threads call at once. A call takes the whole
crew or, where another call has it, runs alone in its own thread with the same result: the split of the work never
changes the order of a sum.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import inline, kernel
from .vector import INT64, IS_X86

_SPINS = 1 << 14  # some two hundred microseconds of polling, then a thread sleeps from time to time
_LINE = 64  # bytes: what threads write lies at least so far apart
_MOST_PARTS = 1 << 16  # of one step
_POLLS = _SPINS  # for which a thread looks out for work before it sleeps, from which it takes long to wake
_ABORTED, _WAITED = 1, 8  # places in the barrier's array beside the count; who waits writes another cache line
_TOO_LONG = 0.3  # the part of a call's time that threads may wait for each other before it counts as crowded
_PAUSE, _LONGEST_PAUSE = 0.1, 3.2  # seconds for which a crowded crew is left alone, doubled as long as it stays so


def available_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_libc = ctypes.PyDLL(None) if os.name == "posix" else None
_core: Callable[[], int] = getattr(_libc, "sched_getcpu", lambda: -1)  # that the caller is on, where the system tells


class Crew:
    """Threads that are handed shares of one call; the calling thread takes the first share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._crowded, self._alone_until, self._pause = 0, 0.0, _PAUSE
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
            self._dismiss()

    def close(self) -> None:
        """End the threads; the next call starts new ones."""
        with self._lock:
            self._dismiss()

    def _dismiss(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def after_fork(self) -> None:
        """Forget threads and lock: a forked child has neither."""
        self._lock = threading.Lock()
        self._workers = []

    def run(self, share: Callable[[int, int, np.ndarray], None], at_most: int, meets: bool = False) -> None:
        """Call ``share(rank, size, barrier)`` once for each rank below ``size`` <= ``at_most``, all at once.

        ``meets``: shares wait for each other on the way. Where others want the cores too, they would wait for a
        thread that does not run; once that was seen, such calls run alone for a while.
        """
        if at_most > 1 and not (meets and time.monotonic() < self._alone_until) and self._lock.acquire(blocking=False):
            try:
                size = min(self.size, at_most)
                if size > 1:
                    crowded = self._run_together(share, size)
                    if meets:
                        self.look_back(crowded)
                    return
            finally:
                self._lock.release()
        share(0, 1, new_barrier())

    def lend(self, rank: int, task: Callable[[np.ndarray, int], None]) -> None:
        """Have the thread ``rank`` > 0 call ``task(counter, posted)`` when it can, and do not wait for it.

        ``task`` must return as soon as ``counter[0]`` is above ``posted``: then a call wants the thread. Nothing
        happens while a call has the crew, while it is crowded, or where the thread has not come to the task before.
        """
        if rank >= self.size or time.monotonic() < self._alone_until or not self._lock.acquire(blocking=False):
            return
        try:
            while len(self._workers) < rank:
                self._workers.append(_Worker())
            self._workers[rank - 1].lend(task)
        finally:
            self._lock.release()

    def _recall(self) -> None:
        """Have lent threads come back, unless a call has the crew, which has recalled them."""
        if self._lock.acquire(blocking=False):
            try:
                for worker in self._workers:
                    worker.post(lambda: None)
            finally:
                self._lock.release()

    def look_back(self, crowded: bool) -> None:
        """Two crowded calls in a row, and threads are not used for a while: one may be bad luck."""
        if not crowded:
            self._crowded, self._pause = 0, _PAUSE
            return
        self._crowded += 1
        if self._crowded > 1:
            self._alone_until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._recall()

    def _run_together(self, share: Callable[[int, int, np.ndarray], None], size: int) -> bool:
        """Whether threads waited for each other for too long."""
        while len(self._workers) < size - 1:
            self._workers.append(_Worker())
        barrier, began = new_barrier(), _cycles()
        workers = self._workers[: size - 1]

        def run(rank: int) -> None:
            try:
                share(rank, size, barrier)
            except BaseException:
                barrier[:, _ABORTED] = 1  # whoever waits for a share that will not come goes on and ends
                raise

        try:
            for rank, worker in enumerate(workers, 1):
                worker.post(functools.partial(run, rank))
            run(0)
        finally:
            errors = [worker.finish() for worker in workers]
        for error in errors:
            if error is not None:
                raise error
        return bool(barrier[:, _WAITED].max() > _TOO_LONG * (_cycles() - began))


class _Worker:
    """A thread that runs what is posted to it. It polls for a while after each task, since calls come in rows."""

    def __init__(self) -> None:
        self._tasks: list[Callable[[], None]] = []  # the one that nobody has begun yet
        self._error: BaseException | None = None
        self._box = np.zeros(16, np.int64)  # how many were posted, and on another cache line how many are done with
        self._asleep, self._ends, self._wake = False, False, threading.Semaphore(0)
        self._cores: set[int] = set()  # that the thread may run on, where that can be said
        self._caller = -1  # the one among them that it leaves to the thread that it works for
        self._thread = threading.Thread(target=self._work, name="gpulstm", daemon=True)
        self._thread.start()

    def post(self, task: Callable[[], None]) -> None:
        """Run ``task``; the one before is finished, or was lent."""
        self._tasks[:] = [task]
        if self._caller != (core := _core()):
            self._avoid(core)
        self._box[0] += 1
        if self._asleep:
            self._wake.release()

    def _avoid(self, core: int) -> None:
        """Keep the thread off its caller's core: some kernels wake it there, and leave it while others are idle."""
        if len(self._cores) > 1:
            with suppress(OSError):  # the process may no longer run on those
                os.sched_setaffinity(self._thread.native_id or 0, self._cores - {core})
            self._caller = core

    def lend(self, task: Callable[[np.ndarray, int], None]) -> None:
        """Run ``task(counter, posted)`` unless something waits to be run; see :meth:`Crew.lend`."""
        if not self._tasks:
            self.post(functools.partial(task, self._box, int(self._box[0]) + 1))

    def finish(self) -> BaseException | None:
        """Wait until the task is done, or do it here if the thread has not come to it; what it raised."""
        if self._run_next():
            while not _poll(self._box[8:], self._box[0]):
                time.sleep(1e-4)
        error, self._error = self._error, None
        return error

    def end(self) -> None:
        """End the thread, which has no task."""
        self._ends = True
        self.post(lambda: None)
        self._thread.join()

    def _run_next(self) -> bool:
        """Run the task unless the other side has taken it; whether it has."""
        try:
            task = self._tasks.pop()
        except IndexError:
            return True
        try:
            task()
        except BaseException as error:
            self._error = error
        return False

    def _work(self) -> None:
        box, number = self._box, 0
        if hasattr(os, "sched_setaffinity"):
            self._cores = os.sched_getaffinity(0)
        while not self._ends:
            number += 1
            while not _poll(box, number):
                self._asleep = True
                if box[0] < number:
                    self._wake.acquire()
                self._asleep = False
            self._run_next()
            box[8] = number


def new_barrier() -> np.ndarray:
    """Two barriers (one a direction): in each, how often a thread arrived, and whether the call was given up."""
    return np.zeros((2, 16), np.int64)


@inline
def share(count, rank, size):
    """The first and the last (exclusive) of ``count`` things that fall to ``rank``."""
    return count * rank // size, count * (rank + 1) // size


@intrinsic
def next_number(typing: Any, address: Any) -> Any:
    """0, 1, 2, ... from the counter at a byte address: each number once, to whichever thread asks first."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], INT64.as_pointer()), INT64(1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def publish(typing: Any, address: Any, value: Any) -> Any:
    """Write a number that others wait for: who sees it sees what was written before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], INT64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def _exchange(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write ``value`` to a byte address if ``expected`` is there; whether it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT64.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def _read(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], INT64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the core that this is a spin loop, where it wants to know."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if IS_X86:
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _sleep(typing: Any) -> Any:
    """Leave the core to other threads for as short as the system does, where its C library is at hand by name."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if os.name == "posix":
            number = ir.IntType(32)
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number]), "usleep")
            builder.call(function, [number(1)])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _now(typing: Any) -> Any:
    """The core's clock, in ticks of its own."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function_type = ir.FunctionType(INT64, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.readcyclecounter"), [])

    return types.int64(), codegen


@kernel
def _cycles():
    return _now()


@kernel
def _poll(counter, n):
    """Whether the counter has come to ``n`` within some two hundred microseconds."""
    for _ in range(_POLLS):
        if _read(counter.ctypes.data) >= n:
            return True
        _pause()
    return False


@inline
def wait_for(counter, n):
    """Wait until the number at byte address ``counter`` is ``n``, or the one behind it is not 0.

    What others wrote before is then visible. Returns the clock's ticks since it took long, 0 if it did not.
    """
    spins, began = 0, 0
    while _read(counter) < n and _read(counter + 8) == 0:
        spins += 1
        _pause()
        if spins > _SPINS:
            began = began or _now()
            _sleep()
    return _now() - began if began else 0


@inline
def meet(barrier, times, size):
    """Wait until all ``size`` threads have been here ``times`` times; what they wrote before is then visible."""
    if size > 1:
        next_number(barrier.ctypes.data)
        waited = wait_for(barrier.ctypes.data, times * size)
        if waited:
            barrier[_WAITED] += waited


@inline
def next_step(number, last, counter, posted):
    """Wait until the number at a byte address is not ``last``, and return it.

    Returns 0 instead if the one at ``counter`` is above ``posted``, or after some two hundred microseconds.
    """
    for _ in range(_POLLS):
        if _read(number) != last:
            return _read(number)
        if _read(counter) > posted:
            break
        _pause()
    return 0


@inline
def open_claims(claims, step, size):
    """Let ``size`` threads claim the parts of ``step``; ``claims``: byte address of a cache line for each of them."""
    for rank in range(size):
        publish(claims + _LINE * rank, step * _MOST_PARTS)


@inline
def claim(claims, step, count, rank, size):
    """A part of ``step`` below ``count`` that no other thread has, or -1 if there is none.

    A thread first takes those of its own share, from step to step forth and back: what it read last is still in its
    cache. Then it takes those of the others.
    """
    for k in range(size):
        owner = (rank + k) % size
        first, last = share(count, owner, size)
        place = claims + _LINE * owner
        value = _read(place)
        while value // _MOST_PARTS == step and value % _MOST_PARTS < last - first:
            if _exchange(place, value, value + 1):
                taken = value % _MOST_PARTS
                return first + taken if step % 2 else last - 1 - taken
            value = _read(place)
    return -1


crew = Crew()
atexit.register(crew.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.after_fork)
