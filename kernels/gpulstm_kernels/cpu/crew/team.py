"""How the shares of a kernel reach the threads that run them, all in machine code, and the barriers they wait at.

A kernel that threads share is a function ``f(..., rank, size, barrier)`` that returns nothing: each thread's share of
the work. The calling thread writes down for every other one where the machine code and its arguments lie, and takes
rank 0 itself. No other thread takes Python's lock or looks at the arguments again.

A thread polls its box, words of memory on cache lines of their own:

========= ============ ==================================================================================
POSTED    by the crew  number of the last call, announced before it begins: no thread sleeps until it has
GO        by rank 0    number of the call that the words behind it are about
TAKEN     by either    number of the last call that was taken: by the thread, or by rank 0 if the thread is late
DONE      by thread    number of the last share that it ran
========= ============ ==================================================================================

A team is an array: how many threads, which one Python's handlers of signals run in, the address of each one's box, and
space for the words of a call. Those begin with its barriers, and kernels are given their address as ``barrier``: each
barrier has a count, whether the call is aborted, and where the words begin. A thread that waits or works for long asks
from time to time whether the call is aborted; the one that Python called lets Python run handlers of signals before. A
handler that raises aborts the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.extending import intrinsic

from .. import tuning
from ..codegen.compilation import entry, inline, kernel
from ..codegen.features import CACHE_LINE
from ..codegen.numba_internals import call_machine_code, cgutils, entry_point, machine_code
from ..codegen.record import Record, address_of, share_of, type_of
from ..codegen.vector import INT64
from .atomics import SPINS, clock, exchange, fetch_add, pause, publish, read, sleep
from .handlers import milliseconds, raise_pending, run_handlers, stay_apart, thread_ident

POSTED, GO, TAKEN, DONE = range(0, 4 * CACHE_LINE, CACHE_LINE)  # bytes from the beginning of a box
_SHARE, _ARGUMENTS, _SIZE, _BARRIER, _FOR_PYTHON = range(GO + 16, GO + 56, 8)
_ABORTED, _WORDS, _WAITED = 8, 16, CACHE_LINE  # bytes from a barrier's count; the last one on a line of its own
_LEADS = 24  # bytes from a call's words: the rank whose share is run by the thread that Python called
BARRIER = 2 * CACHE_LINE  # bytes of one
DIRECTIONS = 2  # of a layer: each may have a team of its own, with a barrier
BARRIERS = DIRECTIONS + 1  # in a team: the last one is for all
# Bytes from a call's words, on a line of that thread: work left until it looks at the clock, when it had handlers run,
# the thread that these run in, and whether one raised.
_LEFT, _LOOKED, _MAIN, _RAISED = range(BARRIERS * BARRIER, BARRIERS * BARRIER + 32, 8)
_SIZE_OF_WORDS = BARRIERS * BARRIER + CACHE_LINE
_SIGNALS_WORK, _SIGNALS_INTERVAL = tuning.current.signals_work, tuning.current.signals_interval
_OVERSUBSCRIBED_PART = tuning.current.oversubscribed_part
FAILED, OVERSUBSCRIBED, _INTERRUPTED = 1, 2, 4  # what a call returns, added up


def new_box() -> np.ndarray:
    return np.zeros(4 * CACHE_LINE // 8, np.int64)


def new_team(boxes: list[np.ndarray]) -> np.ndarray:
    """For the calling thread and one at each of ``boxes``."""
    head = [1 + len(boxes), threading.main_thread().ident, *(box.ctypes.data for box in boxes)]
    return np.array(head + [0] * (CACHE_LINE // 8 + _SIZE_OF_WORDS // 8), np.int64)


@inline
def share(count, rank, size):
    """The first and the last (exclusive) of ``count`` things that fall to ``rank``."""
    return count * rank // size, count * (rank + 1) // size


@inline
def _abort(words):
    """Release all threads that wait at a barrier: their shares end early."""
    for d in range(BARRIERS):
        publish(words + d * BARRIER + _ABORTED, 1)


@inline
def _run_handlers_if_due(words):
    """Let Python run handlers of signals, if this is their thread and it is time; abort the call if one raises."""
    stay_apart()
    if thread_ident() == read(words + _MAIN) and read(words + _RAISED) == 0:
        now = milliseconds()
        if read(words + _LOOKED) == 0:
            publish(words + _LOOKED, now)
        elif now - read(words + _LOOKED) >= _SIGNALS_INTERVAL:
            if run_handlers():
                publish(words + _RAISED, 1)
                _abort(words)
            publish(words + _LOOKED, milliseconds())


@inline
def is_aborted(barrier, rank, work):
    """Whether the call is aborted, so that a share must end early; ``work``: multiply-adds since the last such call."""
    if read(barrier + _LEADS) == rank:
        left = read(barrier + _LEFT) - work
        publish(barrier + _LEFT, left)
        if left < 0:
            publish(barrier + _LEFT, _SIGNALS_WORK)
            _run_handlers_if_due(barrier)
    return read(barrier + _ABORTED) != 0


@inline
def wait_for(counter, n, words):
    """Wait until the number at ``counter`` is ``n`` or more, or the one behind it is not 0.

    ``words``: of the call for which the thread waits, or None. Returns the clock's ticks since it took long, or 0.
    """
    spins, began = 0, 0
    while read(counter) < n and read(counter + 8) == 0:
        spins += 1
        pause()
        if spins > SPINS:
            began = began or clock()
            sleep()
            if words is not None:
                _run_handlers_if_due(words)
    return clock() - began if began else 0


@inline
def barrier_wait(barrier, times, size):
    """Wait until all ``size`` threads have come ``times`` times; what they wrote before is then visible to all."""
    if size > 1:
        fetch_add(barrier, 1)
        waited = wait_for(barrier, times * size, read(barrier + _WORDS))
        if waited:
            fetch_add(barrier + _WAITED, waited)


@inline
def of_all(barrier):
    """The barrier that all threads of a call share, whatever its directions."""
    return barrier + DIRECTIONS * BARRIER


@intrinsic
def _call(typing: Any, function: Any, arguments: Any, rank: Any, size: Any, barrier: Any) -> Any:
    """Run a share by code of :func:`.record.share_of`; 0, or 1 if an error ended it."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        typ = ir.FunctionType(INT64, [INT64] * 4)
        return builder.call(builder.inttoptr(args[0], typ.as_pointer()), args[1:])

    return types.int64(*[types.int64] * 5), codegen


@inline
def _run_share(function, arguments, rank, size, barrier):
    failed = _call(function, arguments, rank, size, barrier)
    if failed:
        _abort(barrier)
    return failed


@inline
def _take(box, number):
    """Whether call ``number`` is this thread's to run, of the two that may."""
    taken = read(box + TAKEN)
    return taken < number and exchange(box + TAKEN, taken, number)


@intrinsic
def _words_on_stack(typing: Any) -> Any:
    """Byte address of space for the words of a call on the caller's stack."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.ArrayType(INT64, _SIZE_OF_WORDS // 8))
        place.align = CACHE_LINE
        return builder.ptrtoint(place, INT64)

    return types.int64(), codegen


@kernel
def _lead(team, function, arguments):
    """Run every share of a record, one on each thread of ``team``. FAILED, OVERSUBSCRIBED or 0; or _INTERRUPTED."""
    size, began = team[0], clock()
    if size == 1:  # several callers may run alone at a time, and there is no barrier to wait at
        words = _words_on_stack()
        for at in (_ABORTED, _LEADS, _LEFT, _LOOKED, _RAISED):
            publish(words + at, 0)
    else:
        words = (team.ctypes.data + team.size * 8 - _SIZE_OF_WORDS) // CACHE_LINE * CACHE_LINE
        for at in range(words, words + _SIZE_OF_WORDS, 8):
            publish(at, 0)
        for at in range(words, words + BARRIERS * BARRIER, BARRIER):
            publish(at + _WORDS, words)
    publish(words + _MAIN, team[1])
    for rank in range(1, size):
        box = team[1 + rank]
        publish(box + _SHARE, function)
        publish(box + _ARGUMENTS, arguments)
        publish(box + _SIZE, size)
        publish(box + _BARRIER, words)
        publish(box + GO, read(box + POSTED))
    failed = _run_share(function, arguments, 0, size, words)
    for rank in range(1, size):
        box = team[1 + rank]
        number = read(box + POSTED)
        if _take(box, number):
            publish(words + _LEADS, rank)
            failed |= _run_share(function, arguments, rank, size, words)
        else:
            wait_for(box + DONE, number, words)
    if read(words + _RAISED):
        return _INTERRUPTED
    if size == 1:
        return FAILED * failed
    waited = 0
    for at in range(words, words + BARRIERS * BARRIER, BARRIER):
        failed |= read(at + _ABORTED)
        waited = max(waited, read(at + _WAITED))
    return FAILED * failed + OVERSUBSCRIBED * (waited > _OVERSUBSCRIBED_PART * (clock() - began))


@intrinsic
def _call_lead(typing: Any, lead: Any, team: Any, function: Any, arguments: Any) -> Any:
    """Run :func:`_lead`, whose machine code is at ``lead``: it is compiled once, its callers for all arguments."""
    inside = [team, types.int64, types.int64]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_machine_code(context, builder, args[0], types.int64, inside, args[1:])[1]

    return types.int64(types.int64, *inside), codegen


@entry
def _start(team, lead, record):
    """Run what ``record`` says on ``team``, by the code of :func:`_lead`."""
    result = _call_lead(lead, team, share_of(record), address_of(record))
    raise_pending(result & _INTERRUPTED)
    return result


_prepared: dict[tuple[Any, Any], tuple[Callable[..., int], int, int]] = {}


def run_shares(team: np.ndarray, function: Any, key: Any, arguments: tuple[Any, ...]) -> int:
    """Run ``function(*arguments, rank, size, barrier)`` on every thread of ``team``. FAILED, OVERSUBSCRIBED or 0.

    What a signal's handler raises meanwhile ends the call and is raised: no thread is in it any more.

    Numba looks at the type of every argument at every call, which takes longer than a small kernel: here they follow
    from ``key``.
    """
    start, lead, code = _prepared.get((function, key)) or _prepare(function, key, arguments)
    return start(team, lead, (code, *arguments))


def _prepare(function: Any, key: Any, arguments: tuple[Any, ...]) -> tuple[Callable[..., int], int, int]:
    """Compile a kernel for arguments of the types of these: what starts it, and the addresses that takes."""
    team, number = new_team([]), types.int64
    lead = machine_code(_lead, (typeof(team), number, number))
    code = machine_code(function, (*map(type_of, arguments), number, number, number))
    _prepared[function, key] = entry_point(_start, team, lead, Record((code, *arguments))), lead, code
    return _prepared[function, key]


@entry
def run_posted_shares(box, rank):
    """Run the shares that are posted to a thread's ``box``.

    Returns True where a task of Python's was posted, False where nothing came for some two hundred microseconds.
    """
    at, polls = box.ctypes.data, 0
    while polls < SPINS:
        number = read(at + POSTED)
        if number == read(at + TAKEN):
            polls += 1
            pause()
            continue
        polls = 0
        if read(at + GO) < number:  # announced: in a moment, or when the kernel is compiled
            wait_for(at + GO, number, None)
        elif _take(at, number):
            if read(at + _FOR_PYTHON) >= number:
                return True
            _run_share(read(at + _SHARE), read(at + _ARGUMENTS), rank, read(at + _SIZE), read(at + _BARRIER))
            publish(at + DONE, number)
    return False


@entry
def post_python_task(box):
    """What was last announced at ``box`` is a task of Python's, or nothing: no share of a kernel."""
    at = box.ctypes.data
    publish(at + _FOR_PYTHON, read(at + POSTED))
    publish(at + GO, read(at + POSTED))
