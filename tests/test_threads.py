"""The crew of threads: concurrent callers, forks, resizing, errors inside a share, and installs without a cache."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import problems
import pytest
from numba import njit

import gpulstm
from gpulstm_kernels.cpu.crew import cores, team
from gpulstm_kernels.cpu.crew.atomics import fetch_add
from gpulstm_kernels.cpu.crew.cores import available_cores
from gpulstm_kernels.cpu.crew.team import barrier_wait
from gpulstm_kernels.cpu.crew.thread_pool import Crew, crew

ROOT = Path(__file__).parent.parent


def python(script: str, cwd: Path, **environment: str | None) -> str:
    """What ``script`` prints in a fresh interpreter whose environment is changed so (None: not set)."""
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "kernels", ROOT / "tests"))
    whole = {**os.environ, "PYTHONPATH": paths, **environment}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=cwd,
        env={name: value for name, value in whole.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def size() -> Iterator[int]:
    """The number of threads, put back after the test."""
    before = crew.size
    yield before
    crew.resize(before)


@njit(nogil=True)
def _note(sizes, raiser, waited, rank, size, barrier):
    """Write down the size of the team; rank ``raiser`` fails, others wait, as if for ``waited`` ticks."""
    sizes[rank] = size
    if rank == raiser:
        raise ZeroDivisionError
    if raiser >= 0:
        barrier_wait(barrier, 1, size)
    if rank == 0:
        fetch_add(barrier + team._WAITED, waited)


def note(crew: Crew, at_most: int, work: int = 0, raiser: int = -1, waited: int = 0) -> list[int]:
    """The size of the team, as each thread that ran a share saw it."""
    sizes = np.zeros(9, np.int64)
    try:
        crew.run(_note, None, (sizes, raiser, waited), at_most, work)
    finally:
        noted = sizes[sizes > 0].tolist()
    return noted


# --- how many -----------------------------------------------------------------------------------------------------


def test_set_and_get(size: int) -> None:
    for count in (1, 2):
        gpulstm.set_num_threads(count)
        assert gpulstm.get_num_threads() == min(count, available_cores())


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged, that nothing else has said before."""
    cores._say.cache_clear()
    caplog.set_level(logging.INFO, "gpulstm")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("count", [1000, 10**400, 10**5000], ids=["1000", "400 digits", "5000 digits"])
def test_more_threads_than_cores_are_not_started(count: int, size: int, logged: Callable[[], list[str]]) -> None:
    for _ in range(3):
        gpulstm.set_num_threads(count)
    assert gpulstm.get_num_threads() == available_cores()
    shown = "1000" if count == 1000 else "over a billion"
    used = f"{available_cores()} used: the process may use no more cores"
    assert logged() == [f"count: {shown} threads asked for, {used}"]


@pytest.mark.parametrize("text", ["1000", "9" * 5000, "0" * 5000 + "1000"], ids=["1000", "5000 digits", "many zeros"])
def test_the_environment_asks_for_more_threads_than_cores(
    text: str, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("GPULSTM_NUM_THREADS", text)
    assert [Crew().size for _ in range(3)] == [available_cores()] * 3
    (said,) = logged()
    assert said.startswith("GPULSTM_NUM_THREADS: ")
    assert said.endswith(f" threads asked for, {available_cores()} used: the process may use no more cores")


CGROUPS = {
    "no quota": ("0::/a/b\n", "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw", {"a/cpu.max": "max 100000"}, None),
    "version 2": ("0::/a/b\n", "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw", {"a/b/cpu.max": "350000 100000"}, 3),
    "a parent's": (
        "0::/a/b\n",
        "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw",
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "900000 100000", "cpu.max": "max 100000"},
        2,
    ),
    "a container": ("0::/\n", "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw", {"cpu.max": "150000 100000"}, 1),
    "less than a core": ("0::/\n", "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw", {"cpu.max": "50000 100000"}, 1),
    "version 1": (
        "4:memory:/c\n3:cpu,cpuacct:/a\n0::/\n",
        "30 23 0:27 / /elsewhere rw - cgroup cgroup rw,memory\n31 23 0:28 / {at} rw shared:5 - cgroup cgroup rw,cpu",
        {"a/cpu.cfs_quota_us": "400000", "a/cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
        4,
    ),
    "version 1 in a container": (
        "3:cpu,cpuacct:/docker/abc\n",
        "31 23 0:28 /docker/abc {at} rw - cgroup cgroup rw,cpu",
        {"cpu.cfs_quota_us": "600000", "cpu.cfs_period_us": "200000"},
        3,
    ),
    "outside of what is mounted": (
        "0::/../..\n",
        "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw",
        {"cpu.max": "500000 100000"},
        5,
    ),
    "nonsense": ("0::/\n", "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw", {"cpu.max": "ten of 0"}, None),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_a_control_groups_quota(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, mounts, files, expected = CGROUPS[case]
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(cores.os, "process_cpu_count", lambda: 64, raising=False)
    place = tmp_path / "a place"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text(mounts.format(at=str(place).replace(" ", r"\040")) + "\n")
    assert available_cores(tmp_path) == (expected or 64)


def test_the_cores_that_a_process_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {3, 5, 9}, raising=False)
    monkeypatch.setattr(cores.os, "process_cpu_count", lambda: 64, raising=False)
    assert available_cores(tmp_path / "no such system") == 3


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True])
def test_a_bad_count_is_refused(count: Any, size: int) -> None:
    with pytest.raises(ValueError, match=f"count: expected a whole number above 0, got {count!r}"):
        gpulstm.set_num_threads(count)
    assert gpulstm.get_num_threads() == size


@pytest.mark.parametrize("text", ["0", "000", "-1", "two", "1.5", "²", " ", "10**400"])
def test_a_bad_environment_variable_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_NUM_THREADS", text)
    with pytest.raises(ValueError, match=re.escape(f"expected a whole number above 0, got {text!r}")):
        Crew()


def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("1", "2", "02"):
        monkeypatch.setenv("GPULSTM_NUM_THREADS", text)
        assert Crew().size == min(int(text), available_cores())
    monkeypatch.setenv("GPULSTM_NUM_THREADS", "")
    assert Crew().size == available_cores() >= 1


def test_a_bad_environment_variable_reaches_the_caller(tmp_path: Path) -> None:
    script = """
        import gpulstm, numpy as np
        for _ in range(2):
            try:
                gpulstm.RNN(2, 3)(np.zeros((1, 1, 2), np.float32))
            except ValueError as error:
                print(error)
    """
    message = "GPULSTM_NUM_THREADS: expected a whole number above 0, got 'many'\n"
    assert python(script, tmp_path, GPULSTM_NUM_THREADS="many", GPULSTM_BACKEND=None) == 2 * message


# --- many callers -------------------------------------------------------------------------------------------------


def _everything(n: problems.Network) -> list[np.ndarray]:
    (y, state), pullback = n.layer.vjp(n.x, n.state, n.lengths)
    dx, dstate, grads = pullback(n.dy, n.dstate)
    inference, _ = n.layer(n.x, n.state, n.lengths)
    return [y, *problems.parts(state), dx, *problems.parts(dstate), *grads.values(), inference]


def _networks() -> list[problems.Network]:
    layers = [
        gpulstm.LSTM(7, 40, 2, bidirectional=True, seed=0),
        gpulstm.LSTM(7, 150, proj_size=9, seed=0),
        gpulstm.RNN(7, 80, seed=0),
    ]
    return [problems.network(layer, steps=9, batch=5, ragged=True) for layer in layers]


@pytest.mark.parametrize("split", ["batch", "units"])
def test_calls_from_many_threads_give_the_same_bits(split: str) -> None:
    """A call that finds the crew busy runs alone: the same sums in the same order."""
    networks = _networks()
    expected = [_everything(n) for n in networks]
    with problems.threads(3, split), ThreadPoolExecutor(6) as pool:
        calls = [(k, pool.submit(_everything, networks[k])) for k in range(3) for _ in range(12)]
        for k, call in calls:
            for a, b in zip(call.result(), expected[k], strict=True):
                np.testing.assert_array_equal(a, b)


def test_resizing_while_others_compute() -> None:
    networks = _networks()
    expected = [_everything(n) for n in networks]
    done = threading.Event()

    def resize() -> None:
        while not done.is_set():
            for count in (1, 4, 2, 3):
                crew.resize(count)

    with problems.threads(2, "batch"), ThreadPoolExecutor(3) as pool:
        resizing = pool.submit(resize)
        try:
            calls = [(k, pool.submit(_everything, networks[k])) for k in range(3) for _ in range(8)]
            for k, call in calls:
                for a, b in zip(call.result(), expected[k], strict=True):
                    np.testing.assert_array_equal(a, b)
        finally:
            done.set()
        resizing.result()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such thing on this system")
def test_a_thread_leaves_its_callers_core_to_the_caller() -> None:
    own = Crew()
    own.resize(2)
    for _ in range(3):
        note(own, 2)
        time.sleep(0.01)  # the first call may come before the thread has begun
    cores = len(os.sched_getaffinity(own._pool[0][0]._thread.native_id))
    own.close()
    assert cores == max(1, len(os.sched_getaffinity(0)) - 1)


# --- tasks of threads ---------------------------------------------------------------------------------------------


def _poll(events: list[str], counter: np.ndarray, posted: int) -> None:
    events.append("came")
    while counter[0] <= posted:
        time.sleep(1e-4)
    events.append("left")


def test_a_task_ends_for_a_call() -> None:
    own = Crew()
    own.resize(2)
    events: list[str] = []
    own.start_task(1, functools.partial(_poll, events))
    while not events:
        time.sleep(1e-3)
    own.start_task(2, functools.partial(_poll, events))  # there is no such thread
    for _ in range(2):
        assert note(own, 2, raiser=9) == [2, 2]  # by then the thread has left its task
    own.start_task(1, functools.partial(_poll, events))
    own.close()
    assert events in (["came", "left"], ["came", "left"] * 2)  # closed before it came, or after


def test_a_busy_or_oversubscribed_crew_starts_no_task() -> None:
    own = Crew()
    own.resize(2)
    started: list[Any] = []
    with own._lock:
        own.start_task(1, lambda *posted: started.append(posted))
    own.note_oversubscription(True)
    own.note_oversubscription(True)
    own.start_task(1, lambda *posted: started.append(posted))
    own.close()
    assert not started


def test_a_crew_that_becomes_oversubscribed_ends_their_tasks() -> None:
    own = Crew()
    own.resize(2)
    events: list[str] = []
    own.start_task(1, functools.partial(_poll, events))
    while not events:
        time.sleep(1e-3)
    own.note_oversubscription(True)
    assert events == ["came"]
    own.note_oversubscription(True)
    own.close()
    assert events == ["came", "left"]


# --- errors and forks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raiser", [0, 1, 2])
def test_an_error_in_a_share_is_raised_and_the_crew_goes_on(raiser: int, size: int) -> None:
    """Waiters at the barrier of the failed share are released."""
    crew.resize(3)
    with pytest.raises(RuntimeError, match="_note: a share of the kernel ended with an error"):
        note(crew, 3, raiser=raiser)
    assert note(crew, 3, raiser=9) == [3, 3, 3]


def test_an_error_in_a_call_without_threads(size: int) -> None:
    with pytest.raises(RuntimeError, match="_note: a share of the kernel ended with an error"):
        note(crew, 1, raiser=0)


def test_no_more_shares_than_asked_for(size: int) -> None:
    crew.resize(3)
    assert [note(crew, at_most) for at_most in (1, 2, 3, 9)] == [[1], [2] * 2, [3] * 3, [3] * 3]


if hasattr(os, "fork"):  # Windows has no such thing

    def test_a_forked_child_computes(tmp_path: Path) -> None:
        """The crew's threads do not survive a fork; parent and child go on with crews of their own."""
        script = """
            import os, warnings
            import numpy as np
            import gpulstm, problems

            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads
            rnn, x = gpulstm.RNN(3, 40, seed=0), np.ones((6, 8, 3), np.float32)
            with problems.threads(3):
                expected, _ = rnn(x)
                child = os.fork()
                same = np.array_equal(rnn(x)[0], expected)
                if child == 0:
                    os._exit(0 if same else 1)
                _, status = os.waitpid(child, 0)
            print(same, os.waitstatus_to_exitcode(status))
        """
        assert python(script, tmp_path) == "True 0\n"

    def test_a_stream_goes_on_in_a_forked_child(tmp_path: Path) -> None:
        script = """
            import os, warnings
            import numpy as np
            import gpulstm, problems
            from gpulstm_kernels.cpu import tuning

            warnings.simplefilter("ignore", DeprecationWarning)
            layer = gpulstm.LSTM(40, 70, seed=0)
            x = np.random.default_rng(0).standard_normal((60, 1, 40)).astype("f4")
            expected = [y.copy() for y in map(layer.stream(), x)]
            with problems.threads(2), tuning.replaced(stream_per_thread=1):  # so that a thread takes part
                stream = layer.stream()
                same = all([np.array_equal(stream(x[t]), expected[t]) for t in range(30)])
                child = os.fork()
                same = same and all([np.array_equal(stream(x[t]), expected[t]) for t in range(30, 60)])
                if child == 0:
                    os._exit(0 if same else 1)
                _, status = os.waitpid(child, 0)
            print(same, os.waitstatus_to_exitcode(status))
        """
        assert python(script, tmp_path) == "True 0\n"


# --- installs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_install_that_nothing_can_be_written_to(tmp_path: Path) -> None:
    """No folder can hold compiled kernels: they are compiled for the process alone.

    Tests may run as root, whom no permission stops; so files stand where the folders would have to be.
    """
    for name in ("gpulstm", "gpulstm_kernels"):
        source = ROOT / name if name == "gpulstm" else ROOT / "kernels" / name
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for package in [*tmp_path.rglob("__init__.py")]:
        (package.parent / "__pycache__").write_text("")
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    script = """
        import numpy as np
        import gpulstm
        from gpulstm_kernels.cpu.walks import sequence_forward

        rnn, x = gpulstm.RNN(3, 5, seed=0), np.ones((2, 1, 3), np.float32)
        error = np.abs(rnn(x)[0] - rnn(x, backend="reference")[0]).max()
        print(error < 1e-5, type(sequence_forward.forward._cache).__name__, gpulstm.__file__)
    """
    places = dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME", "IPYTHONDIR"), str(nowhere / "no"))
    printed = python(script, tmp_path, **places, PYTHONPATH=str(tmp_path), NUMBA_CACHE_DIR=None, GPULSTM_BACKEND=None)
    assert printed == f"True NullCache {tmp_path / 'gpulstm' / '__init__.py'}\n"


@pytest.mark.slow
def test_a_process_that_compiles_nothing_spares_itself_the_compiler(tmp_path: Path) -> None:
    """What compiled once is read from the cache, without what Numba would import to compile, and computes the same."""
    script = """
        import sys
        import numpy as np
        import gpulstm

        rnn, x = gpulstm.RNN(3, 5, seed=0), np.ones((2, 1, 3), np.float32)
        error = np.abs(rnn(x)[0] - rnn(x, backend="reference")[0]).max()
        print(error < 1e-5, "numba.np.linalg" in sys.modules)
    """
    cache = {"NUMBA_CACHE_DIR": str(tmp_path), "GPULSTM_BACKEND": None}
    assert python(script, ROOT, **cache) == "True True\n"
    assert python(script, ROOT, **cache) == "True False\n"


def test_an_oversubscribed_crew_works_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    crew = Crew()
    crew.size = 2
    try:
        assert note(crew, 2, 1, waited=1 << 62) == [2, 2]
        assert note(crew, 2, 1) == [2, 2]  # once is bad luck
        assert note(crew, 2, 1, waited=1 << 62) == [2, 2]
        for pause in (0.1, 0.2, 0.4):  # doubled each time
            assert note(crew, 2, 1, waited=1 << 62) == [2, 2]
            now += pause - 0.01
            assert note(crew, 2, 1) == [1]
            assert note(crew, 2, 0) == [2, 2]  # shares without a barrier are not slowed down
            now += 0.02
        assert note(crew, 2, 1) == [2, 2]
        assert note(crew, 2, 1, waited=1 << 62) == [2, 2]
        assert note(crew, 2, 1) == [2, 2]
    finally:
        crew.close()


@pytest.mark.parametrize("faster", [False, True])
def test_an_oversubscribed_crew_stays_together_if_alone_is_no_faster(
    faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tick = 100.0, 0.001

    def clock() -> float:
        nonlocal now
        now += tick
        return now

    monkeypatch.setattr(time, "monotonic", clock)
    crew = Crew()
    crew.size = 2
    try:
        for _ in range(2):
            assert note(crew, 2, 1, waited=1 << 62) == [2, 2]
        tick = 0.0001 if faster else 0.01  # as long as a call takes
        assert note(crew, 2, 1) == [1]
        for _ in range(5):
            assert note(crew, 2, 1, waited=1 << 62) == ([1] if faster else [2, 2])
    finally:
        crew.close()


def test_a_share_that_nobody_began_is_taken_back() -> None:
    """A thread that does not come to its share does not hold the call up."""
    own = Crew()
    own.resize(2)
    note(own, 2)
    (worker,), _ = own._pool
    worker.end()  # it will never come
    worker.join()
    assert note(own, 2) == [2, 2]
