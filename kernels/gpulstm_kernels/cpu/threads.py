"""A crew of threads that run one kernel together.

Kernels are compiled without the GIL, so Python threads are enough: no OpenMP, no second pool that would spin against
the first, nothing that breaks after a fork or aborts when two Python threads call at once. A call takes the whole
crew or, where another call has it, runs alone in its own thread with the same result: the split of the work never
changes the order of a sum. How a share reaches a thread is :mod:`.team`'s.
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

from .team import CROWDED, FAILED, POSTED, TAKEN, attend, for_python, new_box, new_team, run_shares

_PAUSE, _LONGEST_PAUSE = 0.1, 3.2  # seconds for which a crowded crew is left alone, doubled as long as it stays so
_ALONE = new_team([])


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
        self._team = _ALONE
        self._crowded, self._pause = 0, _PAUSE
        self._alone_until = self._together_until = 0.0
        self._crowded_call: tuple[Any, float] = None, 0.0  # the last one's kernel, and its seconds for a unit of work
        self.size = self._default_size()

    @staticmethod
    def _default_size() -> int:
        text = os.environ.get("GPULSTM_NUM_THREADS", "")
        if not text:
            return available_cores()
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"GPULSTM_NUM_THREADS: expected a whole number above 0, got {text!r}")
        return int(text)

    @property
    def crowded(self) -> bool:
        """Whether calls whose shares wait for each other run alone for now."""
        return time.monotonic() < self._alone_until

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

    def _hire(self, count: int) -> list[_Worker]:
        """``count`` threads, whose boxes are in the team's array."""
        if len(self._workers) < count:
            self._workers += [_Worker(rank) for rank in range(len(self._workers) + 1, count + 1)]
            self._team = new_team([worker.box for worker in self._workers])
        return self._workers[:count]

    def run(self, kernel: Any, key: Any, arguments: tuple[Any, ...], at_most: int, work: int = 0) -> None:
        """Run ``kernel(*arguments, rank, size, barrier)`` for each rank, on at most ``at_most`` threads.

        ``key``: what the types of the arguments follow from; arrays are C-contiguous. ``work``: of a call whose shares
        wait for each other on the way, how much there is to do, in any unit. Where others want the cores too, they
        would wait for a thread that does not run; once that was seen, such calls run alone for a while, unless that
        turns out to be no faster.

        Raises:
            RuntimeError: a share ended with an error.
        """
        began = time.monotonic()
        alone = work > 0 and self.crowded
        if at_most > 1 and not alone and self._lock.acquire(blocking=False):
            try:
                size = min(self.size, at_most)
                if size > 1:
                    result = self._run_together(kernel, key, arguments, size)
                    if work:
                        if result & CROWDED:
                            self._crowded_call = kernel, (time.monotonic() - began) / work
                        self.look_back(bool(result & CROWDED))
                    _check(kernel, result)
                    return
            finally:
                self._lock.release()
        _check(kernel, run_shares(_ALONE, kernel, key, arguments))
        if alone and at_most > 1:
            self._compare(kernel, (time.monotonic() - began) / work)

    def _run_together(self, kernel: Any, key: Any, arguments: tuple[Any, ...], size: int) -> int:
        workers = self._hire(size - 1)
        for worker in workers:
            worker.announce()
        self._team[0] = size
        try:
            return run_shares(self._team, kernel, key, arguments)
        except BaseException:  # it could not be compiled: nothing comes
            for worker in workers:
                for_python(worker.box)
            raise

    def _compare(self, kernel: Any, seconds: float) -> None:
        """A call ran alone, so fast for a unit of work: stay together for a while if it was no faster than crowded."""
        crowded, slow = self._crowded_call
        if kernel is crowded and seconds > slow:
            self._alone_until, self._together_until = 0.0, time.monotonic() + _LONGEST_PAUSE

    def lend(self, rank: int, task: Callable[[np.ndarray, int], None]) -> None:
        """Have the thread ``rank`` > 0 call ``task(counter, posted)`` when it can, and do not wait for it.

        ``task`` must return as soon as ``counter[0]`` is above ``posted``: then a call wants the thread. Nothing
        happens while a call has the crew, while it is crowded, or where the thread has not come to the task before.
        """
        if rank >= self.size or self.crowded or not self._lock.acquire(blocking=False):
            return
        try:
            self._hire(rank)[rank - 1].lend(task)
        finally:
            self._lock.release()

    def _recall(self) -> None:
        """Have lent threads come back, unless a call has the crew, which has recalled them."""
        if self._lock.acquire(blocking=False):
            try:
                for worker in self._workers:
                    worker.recall()
            finally:
                self._lock.release()

    def look_back(self, crowded: bool) -> None:
        """Two crowded calls in a row, and threads are not used for a while: one may be bad luck."""
        if not crowded or time.monotonic() < self._together_until:
            self._crowded, self._pause = 0, _PAUSE
            return
        self._crowded += 1
        if self._crowded > 1:
            self._alone_until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._recall()


def _check(kernel: Any, result: int) -> None:
    if result & FAILED:
        raise RuntimeError(f"{kernel.py_func.__name__}: a share of the kernel ended with an error")


class _Worker:
    """A thread that attends to its box. It polls for a while after each share, since calls come in rows."""

    def __init__(self, rank: int) -> None:
        self.box = new_box()
        self._rank = rank
        self._task: Callable[[], None] | None = None  # that Python has for the thread, which has not begun it
        self._asleep, self._ends, self._wake = False, False, threading.Semaphore(0)
        self._cores: set[int] = set()  # that the thread may run on, where that can be said
        self._caller = -1  # the one among them that it leaves to the thread that it works for
        self._thread = threading.Thread(target=self._work, name="gpulstm", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        """Wake the thread for a call or a task of Python's that is about to begin; what was before is over, or lent."""
        self._task = None
        if self._caller != (core := _core()):
            self._avoid(core)
        self.box[POSTED // 8] += 1
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
        if not self._idle:
            return
        self.announce()
        self._task = functools.partial(task, self.box, int(self.box[POSTED // 8]))
        for_python(self.box)

    def recall(self) -> None:
        """End a task that was lent."""
        self.announce()
        for_python(self.box)

    def end(self) -> None:
        """End the thread, which is in no call."""
        self._ends = True
        self.recall()
        self._thread.join()

    @property
    def _idle(self) -> bool:
        """Whether nothing is announced that the thread has not taken."""
        return bool(self.box[POSTED // 8] == self.box[TAKEN // 8])

    def _work(self) -> None:
        if hasattr(os, "sched_setaffinity"):
            self._cores = os.sched_getaffinity(0)
        while not self._ends:
            if attend(self.box, self._rank):
                task, self._task = self._task, None
                if task is not None:
                    task()
                continue
            self._asleep = True
            if self._idle:
                self._wake.acquire()
            self._asleep = False


crew = Crew()
atexit.register(crew.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.after_fork)
