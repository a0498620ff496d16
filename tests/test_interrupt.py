"""Signals during a long call: handlers run at once, what they raise ends the call, and nothing is left half done."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import problems
import pytest
from numba import njit

import gpulstm
from gpulstm import arrays
from gpulstm_kernels.cpu import layer
from gpulstm_kernels.cpu.crew.atomics import pause
from gpulstm_kernels.cpu.crew.team import barrier_wait, is_aborted, of_all
from gpulstm_kernels.cpu.crew.thread_pool import Crew, crew
from gpulstm_kernels.cpu.packing.cache import _Cache, cached, source_of

LIMIT = 3  # seconds; each call would take several times as long


@contextmanager
def interrupted(after: float = 0.3, handler: Any = None) -> Iterator[None]:
    """As Ctrl-C so many seconds later, with another handler than Python's if one is given."""
    before = signal.getsignal(signal.SIGINT)
    if handler is not None:
        signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(after, _thread.interrupt_main)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def ends_early(call: Callable[[], Any], error: type[BaseException] = KeyboardInterrupt, handler: Any = None) -> None:
    """That the handler's ``error`` ends a long ``call``."""
    began = time.perf_counter()
    with pytest.raises(error), interrupted(handler=handler):
        call()
    assert time.perf_counter() - began < LIMIT


def forward(steps: int, batch: int, hidden: int = 512, train: bool = False, **options: Any) -> Callable[[], Any]:
    """A call of a layer, whose kernels are compiled; memory that it does not come to is none."""
    lstm = gpulstm.LSTM(8, hidden, seed=0, **options)
    x = np.zeros((steps, batch, 8), np.float32)
    call = lstm.vjp if train else lstm
    call(x[:20])
    return lambda: call(x)


def backward(steps: int, batch: int, hidden: int = 256, projection: int = 0) -> Callable[[], Any]:
    """The same of a layer's gradient, from a tape of zeros, which need no memory until they are read."""
    if steps > 20:
        backward(20, batch, hidden, projection)()
    p = problems.layer_problem("lstm", "float32", steps=1, batch=batch, inputs=8, hidden=hidden, projection=projection)
    outputs = projection or hidden
    shape = p.shape(training=True)._replace(steps=steps)
    layout = layer.tape_layout(shape)
    tape = [np.zeros(sizes, dtype) for sizes, dtype in layout]
    x, dy = (np.zeros((steps, batch, n), np.float32) for n in (8, outputs))
    made = layer.tape_of(shape, x, p.weights, None, tape)
    return lambda: layer.layer_backward(made, dy, p.dstate)


CALLS = {
    "inference": lambda: forward(100_000, 16),
    "few rows": lambda: forward(200_000, 1),
    "training": lambda: forward(30_000, 16, train=True),
    "both directions": lambda: forward(100_000, 16, bidirectional=True),
    "a projection": lambda: forward(100_000, 16, proj_size=100),
    "backward": lambda: backward(30_000, 16),
    "backward of a projection": lambda: backward(30_000, 16, projection=50),
}


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        pytest.param(
            kind, split, marks=() if split == "batch" or kind in ("inference", "backward") else pytest.mark.slow
        )
        for kind in CALLS
        for split in ("one thread", "batch", "units")
    ],
)
def test_ctrl_c_ends_a_call(kind: str, split: str) -> None:
    threads = (1, "batch") if split == "one thread" else (2, split)
    call = CALLS[kind]()
    small = problems.network(gpulstm.LSTM(5, 40, seed=0), steps=9, batch=5)
    expected = problems.network_gradients(small)
    with problems.threads(*threads):
        ends_early(call)
        assert not crew._owned
        for found, same in zip(problems.network_gradients(small).values(), expected.values(), strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("transposed", [False, True])
def test_ctrl_c_ends_a_product(transposed: bool) -> None:
    m, k, n = (2000, 400_000, 1000) if transposed else (20_000, 20_000, 2000)
    a, b = np.zeros((k, m) if transposed else (m, k), np.float32), np.zeros((k, n), np.float32)
    arrays.gemm(a[:20], b[:20] if transposed else b[:, :8].copy(), transpose_a=transposed)  # which compiles it
    ends_early(lambda: arrays.gemm(a, b, transpose_a=transposed))


def test_what_another_handler_raises_ends_a_call() -> None:
    def handler(number: int, frame: Any) -> None:
        raise ZeroDivisionError

    ends_early(CALLS["inference"](), ZeroDivisionError, handler)


@pytest.mark.parametrize("split", ["batch", "units"])
def test_a_handler_that_raises_nothing_changes_nothing(split: str) -> None:
    """It may compute itself, and change the number of threads, which waits until the call is over."""
    seen = []
    small = problems.network(gpulstm.LSTM(5, 40, seed=0), steps=9, batch=5)
    expected_inside = problems.network_gradients(small)
    lstm = gpulstm.LSTM(8, 512, seed=0)
    x = np.random.default_rng(0).standard_normal((800, 16, 8)).astype("f4")

    def handler(number: int, frame: Any) -> None:
        gpulstm.set_num_threads(1)
        crew.resize(2)
        for found, same in zip(problems.network_gradients(small).values(), expected_inside.values(), strict=True):
            np.testing.assert_array_equal(found, same)
        seen.append(number)

    with problems.threads(2, split):
        expected, _ = lstm(x)
        with interrupted(0.12, handler):
            found, _ = lstm(x)
        np.testing.assert_array_equal(found, expected)
        assert seen == [signal.SIGINT]


def _sleep(seconds: float) -> None:
    """In short sleeps: unlike a signal from outside, ``interrupt_main`` waits until one is over."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(0.01)


def test_a_call_of_another_thread_is_none_of_ctrl_cs() -> None:
    lstm = gpulstm.LSTM(8, 512, seed=0)
    x = np.zeros((600, 16, 8), np.float32)
    expected, _ = lstm(x)
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(lstm(x)[0]))
    thread.start()
    with pytest.raises(KeyboardInterrupt), interrupted(0.1):
        _sleep(LIMIT)
    thread.join()
    np.testing.assert_array_equal(found[0], expected)


@njit(nogil=True)
def _uneven(slow, turns, rank, size, barrier):
    """One thread works for long, in turns of some hundred microseconds, the others wait for it."""
    if rank == slow:
        for _ in range(turns):
            if is_aborted(barrier, rank, 1 << 20):
                return
            for _ in range(5000):
                pause()
    barrier_wait(of_all(barrier), 1, size)


@pytest.mark.parametrize("slow", [0, 1])
def test_handlers_run_while_either_thread_waits_for_the_other(slow: int) -> None:
    own = Crew()
    own.resize(2)
    own.run(_uneven, None, (slow, 1), 2)
    ends_early(lambda: own.run(_uneven, None, (slow, 1_000_000), 2))
    own.close()


@njit(nogil=True)
def _count(ran, rank, size, barrier):
    barrier_wait(barrier, 1, size)
    ran[rank] += 1


def interrupted_everywhere(call: Callable[[], Any], check: Callable[[], None]) -> int:
    """Raise at each moment of ``call`` at which Python looks for signals, ``check`` after each; how many there are."""
    moment, finished = 0, False
    while not finished:
        moment += 1
        left = moment

        def look(frame: Any, event: str, argument: Any) -> None:
            nonlocal left
            if event in ("call", "c_return"):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt

        sys.setprofile(look)
        try:
            call()
            finished = True
        except (KeyboardInterrupt, RuntimeError):  # the latter from a lock of the threading module's
            pass
        finally:
            sys.setprofile(None)
        check()
    return moment


@pytest.mark.parametrize("use", ["run", "first run", "asleep", "start task", "end tasks"])
def test_a_handler_that_raises_between_two_instructions_leaves_the_crew_whole(use: str) -> None:
    """With threads that are there, sleep or begin then."""
    own = Crew()
    own.resize(2)
    ran = np.zeros(2, np.int64)

    def call() -> None:
        if use == "start task":
            own.start_task(1, lambda counter, posted: None)
        elif use == "end tasks":
            own._end_tasks()
        else:
            own.run(_count, None, (ran,), 2, 1)

    def check() -> None:
        assert not own._owned
        before = ran.copy()
        own.run(_count, None, (ran,), 2)
        assert (ran - before).tolist() == [1, 1]
        if use == "first run":
            own.close()
        elif use == "asleep":
            while not own._pool[0][0]._asleep:
                time.sleep(1e-4)

    assert interrupted_everywhere(call, check) > (40 if use == "first run" else 10)
    own.close()


def test_a_handler_that_raises_between_two_instructions_leaves_the_cache_free() -> None:
    cache, owner = _Cache(), np.ones(3)

    def call() -> None:
        cache._gone.append(((), weakref.ref(owner)))
        cache._sweep()

    def check() -> None:
        assert not cache._lock._is_owned()

    assert interrupted_everywhere(call, check) > 5
    assert not cache._gone


def test_what_could_not_be_packed_is_not_kept() -> None:
    weight = np.ones((64, 64), np.float32)

    def stopped() -> tuple[np.ndarray]:
        raise KeyboardInterrupt

    def made() -> tuple[np.ndarray]:
        return (weight.copy(),)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cached(source_of((weight,)), "here", stopped)
    first = cached(source_of((weight,)), "here", made)
    assert cached(source_of((weight,)), "here", stopped) is first


def test_ctrl_c_while_the_process_ends_prints_nothing() -> None:
    script = """
        import signal
        from gpulstm_kernels.cpu.crew.thread_pool import _Worker, crew

        crew.resize(2)
        crew._start_workers(1)
        _Worker.join = lambda self: signal.raise_signal(signal.SIGINT)
        print("the end")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "the end\n", "")
