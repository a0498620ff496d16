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
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from .. import tuning
from .cores import available_cores, limited
from .team import (
    FAILED,
    OVERSUBSCRIBED,
    POSTED,
    TAKEN,
    new_box,
    new_team,
    post_python_task,
    run_posted_shares,
    run_shares,
)

_ALONE = new_team([])

_libc = ctypes.PyDLL(None) if os.name == "posix" else None
_core: Callable[[], int] = getattr(_libc, "sched_getcpu", lambda: -1)  # the caller's, where the system tells


class Crew:
    """A pool of threads that are handed shares of one call at a time; the calling thread takes the first share."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # which tells whether the calling thread has it
        self._pool: tuple[list[_Worker], np.ndarray] = [], _ALONE  # the threads, and their team with the caller
        self._oversubscribed, self._pause = 0, tuning.current.alone_seconds
        self._alone_until = self._together_until = 0.0
        # Of the last such call: its kernel, and its seconds for a unit of work.
        self._oversubscribed_call: tuple[Any, float] = None, 0.0
        self.size = self._default_size()

    @staticmethod
    def _default_size() -> int:
        text = os.environ.get("GPULSTM_NUM_THREADS", "")
        if not text:
            return available_cores()
        # What has more than 18 digits is too many, whatever they are.
        count = int(text.lstrip("0")[:18] or 0) if text.isdecimal() else 0
        if count < 1:
            raise ValueError(f"GPULSTM_NUM_THREADS: expected a whole number above 0, got {text!r}")
        return limited(count, "GPULSTM_NUM_THREADS")

    @property
    def oversubscribed(self) -> bool:
        """Whether calls whose shares wait for each other run alone for now."""
        return time.monotonic() < self._alone_until

    def resize(self, size: int) -> None:
        """Use ``size`` threads from the next call on."""
        self.size = size
        self.close()

    def close(self) -> None:
        """End the threads; the next call starts new ones. Nothing happens in a signal's handler during a call."""
        if not self._owned:
            with self._lock:
                (workers, _), self._pool = self._pool, ([], _ALONE)
                for worker in workers:
                    worker.end()
                for worker in workers:
                    worker.join()

    def after_fork(self) -> None:
        """Forget threads and lock: a forked child has neither."""
        self._lock = threading.RLock()
        self._pool = [], _ALONE
        _ALONE[:] = new_team([])  # another thread may be the main one now

    @property
    def _owned(self) -> bool:
        """Whether the calling thread is in a call already: then this is a signal's handler."""
        return self._lock._is_owned()  # type: ignore[attr-defined]

    def _if_free(self, use: Callable[[], None]) -> None:
        """Call ``use`` while no other call has the threads; not at all where one has them."""
        if self._owned:
            return
        # As in run: no context manager, in whose own calls a handler could raise.
        try:
            if self._lock.acquire(blocking=False):
                use()
        finally:
            try:  # noqa: SIM105 - a handler could run in the call of suppress
                self._lock.release()
            except RuntimeError:  # another thread has it
                pass

    def _start_workers(self, count: int) -> tuple[list[_Worker], np.ndarray]:
        """``count`` threads or more, and the team that they make with the caller."""
        while len(self._pool[0]) < count:
            workers = [*self._pool[0], _Worker(len(self._pool[0]) + 1)]
            self._pool = workers, new_team([worker.box for worker in workers])
        return self._pool

    def run(self, kernel: Any, key: Any, arguments: tuple[Any, ...], at_most: int, work: int = 0) -> None:
        """Run ``kernel(*arguments, rank, size, barrier)`` for each rank, on at most ``at_most`` threads.

        ``key``: what the types of the arguments follow from; arrays are C-contiguous. ``work``: of a call whose shares
        wait for each other on the way, how much there is to do, in any unit. Where the cores are oversubscribed, they
        would wait for a thread that does not run; once that was seen, such calls run on one thread for a while, unless
        that turns out to be no faster.

        Signals' handlers run meanwhile. What one raises ends the call early; no thread is in it any more then.

        Raises:
            RuntimeError: a share ended with an error.
        """
        began = time.monotonic()
        alone = work > 0 and self.oversubscribed
        if at_most > 1 and not alone and not self._owned:
            # A signal's handler may raise between any two instructions: hence the lock is released in any case.
            try:
                if self._lock.acquire(blocking=False):
                    size = min(self.size, at_most)
                    if size > 1:
                        result = self._run_together(kernel, key, arguments, size)
                        if work:
                            if result & OVERSUBSCRIBED:
                                self._oversubscribed_call = kernel, (time.monotonic() - began) / work
                            self.note_oversubscription(bool(result & OVERSUBSCRIBED))
                        _check(kernel, result)
                        return
            finally:
                try:  # noqa: SIM105 - a handler could run in the call of suppress
                    self._lock.release()
                except RuntimeError:  # another call has it
                    pass
        _check(kernel, run_shares(_ALONE, kernel, key, arguments))
        if alone and at_most > 1:
            self._compare(kernel, (time.monotonic() - began) / work)

    def _run_together(self, kernel: Any, key: Any, arguments: tuple[Any, ...], size: int) -> int:
        workers, team = self._start_workers(size - 1)
        try:
            for worker in workers[: size - 1]:
                worker.announce()
            team[0] = size
            return run_shares(team, kernel, key, arguments)
        except BaseException:  # it could not be compiled, or a signal's handler raised: nothing comes any more
            for worker in workers[: size - 1]:
                post_python_task(worker.box)
            raise

    def _compare(self, kernel: Any, seconds: float) -> None:
        """A call ran alone, in ``seconds`` for a unit of work: use threads for a while if that was no faster."""
        same, slow = self._oversubscribed_call
        if kernel is same and seconds > slow:
            self._alone_until, self._together_until = 0.0, time.monotonic() + tuning.current.alone_seconds_at_most

    def start_task(self, rank: int, task: Callable[[np.ndarray, int], None]) -> None:
        """Have the thread ``rank`` > 0 call ``task(counter, posted)`` when it is free, and do not wait for it.

        ``task`` must return as soon as ``counter[0]`` is above ``posted``: then a call wants the thread. Nothing
        happens while a call has the crew, while the cores are oversubscribed, or while the thread has a task that it
        has not begun.
        """
        if rank >= self.size or self.oversubscribed:
            return
        self._if_free(lambda: self._start_workers(rank)[0][rank - 1].start_task(task))

    def _end_tasks(self) -> None:
        """End the tasks of all threads, unless a call has the crew, which has ended them."""

        def end_all() -> None:
            for worker in self._pool[0]:
                worker.end_task()

        self._if_free(end_all)

    def note_oversubscription(self, oversubscribed: bool) -> None:
        """After two such calls in a row, threads are not used for a while; a single one may be bad luck."""
        if not oversubscribed or time.monotonic() < self._together_until:
            self._oversubscribed, self._pause = 0, tuning.current.alone_seconds
            return
        self._oversubscribed += 1
        if self._oversubscribed > 1:
            self._alone_until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, tuning.current.alone_seconds_at_most)
            self._end_tasks()


def _check(kernel: Any, result: int) -> None:
    if result & FAILED:
        raise RuntimeError(f"{kernel.py_func.__name__}: a share of the kernel ended with an error")


class _Worker:
    """A thread that polls its box. It goes on polling for a while after each share, since calls come in rows."""

    def __init__(self, rank: int) -> None:
        self.box = new_box()
        self._rank = rank
        self._task: Callable[[], None] | None = None  # that Python has for the thread, which has not begun it
        # A handler that raises in the middle of a threading.Semaphore's methods leaves its lock held for good.
        self._asleep, self._ends, self._wake = False, False, queue.SimpleQueue[None]()
        self._cores: set[int] = set()  # that the thread may run on, where that can be said
        self._caller = -1  # the one among them that it leaves to the thread that it works for
        self._thread = threading.Thread(target=self._work, name="gpulstm", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # of a signal's handler, perhaps when the thread had begun
            self.end()
            raise

    def announce(self) -> None:
        """Wake the thread for a call or a task of Python's that is about to begin; a task that it runs must end."""
        self._task = None
        if self._caller != (core := _core()):
            self._avoid(core)
        self.box[POSTED // 8] += 1
        if self._asleep:
            self._wake.put(None)

    def _avoid(self, core: int) -> None:
        """Keep the thread off its caller's core: some kernels wake it there, and leave it while others are idle."""
        if len(self._cores) > 1:
            with suppress(OSError):  # the process may no longer run on those
                os.sched_setaffinity(self._thread.native_id or 0, self._cores - {core})
            self._caller = core

    def start_task(self, task: Callable[[np.ndarray, int], None]) -> None:
        """Run ``task(counter, posted)`` unless something waits to be run; see :meth:`Crew.start_task`."""
        if not self._idle:
            return
        self.announce()
        self._task = functools.partial(task, self.box, int(self.box[POSTED // 8]))
        post_python_task(self.box)

    def end_task(self) -> None:
        """End the task that was started."""
        self.announce()
        post_python_task(self.box)

    def end(self) -> None:
        """Have the thread end, which is in no call."""
        self._ends = True
        self.end_task()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    @property
    def _idle(self) -> bool:
        """Whether nothing is announced that the thread has not taken."""
        return bool(self.box[POSTED // 8] == self.box[TAKEN // 8])

    def _work(self) -> None:
        if hasattr(os, "sched_setaffinity"):
            self._cores = os.sched_getaffinity(0)
        while not self._ends:
            if run_posted_shares(self.box, self._rank):
                task, self._task = self._task, None
                if task is not None:
                    task()
                continue
            self._asleep = True
            if self._idle:
                self._wake.get()
            self._asleep = False


crew = Crew()


@atexit.register
def _close() -> None:
    with suppress(KeyboardInterrupt):  # the process ends anyway, and so do daemon threads
        crew.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.after_fork)
