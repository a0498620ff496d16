"""The GPU benchmark without a GPU: order, budget, resumption, whom it believes, and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bench import provenance
from bench.gpu import command, grid, run
from bench.gpu.json_record import measured_table, new_record, sources, unfinished
from bench.gpu.plot import plot
from bench.gpu.report import report, rows
from bench.pool import ROOT, ProviderError
from bench.registry import MODES, Case
from gpulstm_kernels.cuda import measured

TINY = Case(3, 6, 8)
DEVICE = {
    "name": "Fake 1",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory": 1,
    "driver": 1,
    "runtime": 1,
    "cupy": "1",
}
STEP, GRID, TORCH = (grid.CONTENDERS[name] for name in ("gpulstm step", "gpulstm grid", "torch"))


# --- a run


def test_the_grid_is_whole_and_begins_spread_out() -> None:
    cases = grid.cases()
    assert len(set(cases)) == len(cases) == 5 * 8 * 4
    assert {case.steps for case in cases} == {512}
    first = cases[:30]
    assert len({case.batch for case in first}) >= 4
    assert len({case.hidden for case in first}) >= 4
    assert len({case.dtype for case in first}) >= 2
    tasks = list(grid.tasks(cases, [STEP, TORCH]))
    assert [(mode, contender.name) for _, mode, contender in tasks[:4]] == [
        ("inference", "gpulstm step"),
        ("inference", "torch"),
        ("training", "gpulstm step"),
        ("training", "torch"),
    ]
    assert len(tasks) == len(cases) * 4


class FakeClient:
    """Answers as a process on a GPU would; ``trouble`` are exceptions by (dtype, mode, contender)."""

    def __init__(self, trouble: dict[tuple[str, str, str], Exception] | None = None) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.trouble = trouble or {}
        self.now = 0.0

    def ask(self, do: str, patience: float, **given: Any) -> dict[str, Any]:
        assert patience > 0
        self.now += 1
        if do == "describe":
            return DEVICE
        if do == "probes":
            return {"names": ["launch overhead", "cluster of 16"]}
        if do == "probe":
            if given["name"] == "cluster of 16":
                raise ProviderError("CUDADriverError: no such cluster")
            return {"launch": 2.0}
        task = (given["case"]["dtype"], given["mode"], given["contender"])
        self.asked.append(task)
        if task in self.trouble:
            raise self.trouble[task]
        if task[2] == "gpulstm grid" and task[0] == "float32":
            return {"misfit": "it does not fit"}
        once = {"inference": 1e-3, "training": 3e-3}[task[1]] * (2 if task[2] == "torch" else 1)
        return {"deviation": 1e-6, "samples": [once, once, 1.2 * once]}

    def close(self) -> None:
        pass


def small() -> list[grid.Task]:
    cases = [Case(16, 512, 128, dtype) for dtype in ("float16", "float32")]
    return list(grid.tasks(cases, [STEP, GRID, TORCH]))


@pytest.fixture
def record() -> dict[str, Any]:
    return begun()


def begun() -> dict[str, Any]:
    made = new_record(DEVICE, [STEP, GRID, TORCH])
    for entry in made["providers"].values():
        entry["missing"] = None  # as on a machine that has all of them
    return made


def filled(record: dict[str, Any], path: Path, client: FakeClient, budget: float = 100.0, **options: Any) -> None:
    run.run_gpu(record, path, small(), client, budget, lambda line: None, clock=lambda: client.now, **options)  # type: ignore[arg-type]


def test_everything_is_measured_once(record: dict[str, Any], tmp_path: Path) -> None:
    path, client = tmp_path / "gpu-1.json", FakeClient()
    filled(record, path, client, tests=lambda seconds: {"passed": True, "seconds": 1.0, "output": "3 passed"})
    assert record == json.loads(path.read_text())
    assert record["finished"]
    assert [(c["case"]["dtype"], c["mode"], c["provider"]) for c in record["cells"]] == client.asked
    assert len(client.asked) == len(small())
    assert record["probes"] == {
        "launch overhead": {"launch": 2.0},
        "cluster of 16": {"failed": "CUDADriverError: no such cluster"},
    }
    first = record["cells"][0]
    assert first["error"] == 1e-6
    assert first["seconds"] == {"median": 1e-3, "q1": 1e-3, "q3": pytest.approx(1.1e-3), "samples": 3}
    misfits = [cell for cell in record["cells"] if cell["misfit"]]
    assert [(cell["case"]["dtype"], cell["provider"], cell["seconds"]) for cell in misfits] == [
        ("float32", "gpulstm grid", None)
    ] * 2


def test_the_budget_ends_a_run_and_the_next_goes_on(record: dict[str, Any], tmp_path: Path) -> None:
    path, first, second = tmp_path / "gpu-1.json", FakeClient(), FakeClient()
    filled(record, path, first, budget=7.5, tests=None)
    assert record["finished"] is None
    assert 0 < len(first.asked) < len(small())
    assert "This run was cut" in report(record)
    found = unfinished(tmp_path, begun())
    assert found is not None
    assert found[0] == path
    filled(found[1], path, second, tests=None)
    assert second.now == 1 + len(second.asked)  # the probes are not repeated
    assert first.asked + second.asked == [(case.dtype, mode, c.name) for case, mode, c in small()]
    assert unfinished(tmp_path, begun()) is None


def test_another_gpu_or_other_sources_begin_anew(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "gpu-0.walks.json").write_text("{}")
    (tmp_path / "gpu-1.json").write_text(json.dumps(record))
    assert unfinished(tmp_path, begun()) is not None
    assert unfinished(tmp_path, begun() | {"sources": "other"}) is None
    assert unfinished(tmp_path, begun() | {"device": DEVICE | {"name": "Fake 2"}}) is None
    tree = tmp_path / "tree"
    (tree / "kernels").mkdir(parents=True)
    before = sources(tree)
    (tree / "kernels" / "step.cu").write_text("//")
    assert sources(tree) != before


def test_a_contender_that_fails_is_a_row(record: dict[str, Any], tmp_path: Path) -> None:
    client = FakeClient({("float16", "training", "torch"): ProviderError("RuntimeError: no cuDNN")})
    filled(record, tmp_path / "gpu-1.json", client, tests=None)
    assert record["finished"]
    (failed,) = (cell for cell in record["cells"] if cell["rejected"])
    assert (failed["provider"], failed["rejected"]) == ("torch", "RuntimeError: no cuDNN")
    assert "- torch, float16 training B=16 H=128, no figure: RuntimeError: no cuDNN" in report(record)


def test_without_a_process_the_run_stops_and_nothing_is_made_up(record: dict[str, Any], tmp_path: Path) -> None:
    client = FakeClient({("float16", "training", "torch"): run.NoProcess("the GPU fell off the bus")})
    with pytest.raises(run.NoProcess):
        filled(record, tmp_path / "gpu-1.json", client, tests=None)
    kept = json.loads((tmp_path / "gpu-1.json").read_text())
    assert kept["finished"] is None
    assert len(kept["cells"]) == 5
    assert not any(cell["rejected"] for cell in kept["cells"])


def test_who_is_missing_is_not_asked(record: dict[str, Any], tmp_path: Path) -> None:
    record["providers"]["torch"]["missing"] = "not installed: torch"
    client = FakeClient()
    filled(record, tmp_path / "gpu-1.json", client, tests=None)
    assert record["finished"]
    assert not [task for task in client.asked if task[2] == "torch"]
    assert "- torch: not installed: torch" in report(record)


def test_tests_that_were_cut_are_run_again(record: dict[str, Any], tmp_path: Path) -> None:
    given: list[float] = []

    def cut(seconds: float) -> dict[str, Any]:
        given.append(seconds)
        return {"passed": None if len(given) == 1 else False, "seconds": seconds, "output": "1 failed"}

    for _ in range(3):
        filled(record, tmp_path / "gpu-1.json", FakeClient(), budget=100.0, tests=cut)
    assert given == [pytest.approx(30)] * 2
    assert "tests on this device: FAILED: 1 failed" in report(record)
    assert run.outcome({"passed": None, "seconds": 3.0, "output": ""}) == "not finished after 3 s: no output"


@pytest.mark.parametrize(
    ("test", "passed", "said"),
    [
        ("pass", True, "passed: 1 passed"),
        ("assert 0", False, "FAILED: 1 failed"),
        ("import time; time.sleep(60)", None, ""),
    ],
)
def test_the_tests_are_run_for_a_while(
    test: str, passed: bool | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu: needs one"]\n')
    (tmp_path / "tests" / "cuda").mkdir(parents=True)
    (tmp_path / "tests" / "cuda" / "test_one.py").write_text(
        f"import pytest\n@pytest.mark.gpu\ndef test_one():\n    {test}\ndef test_other():\n    assert 0\n"
    )
    monkeypatch.setattr(run, "ROOT", tmp_path)
    found = run.device_tests(60.0 if passed is not None else 1.0)
    assert found["passed"] is passed
    assert found["seconds"] < 30
    assert run.outcome(found).startswith(said or "not finished after 1 s")


def test_a_contender_that_hangs_is_left_alone(record: dict[str, Any], tmp_path: Path) -> None:
    hang = ProviderError("process ended with status -9")
    tasks = {(dtype, mode, "torch"): hang for dtype in ("float16", "float32") for mode in MODES}
    client = FakeClient(tasks)
    filled(record, tmp_path / "gpu-1.json", client, tests=None)
    assert record["finished"]
    assert len([task for task in client.asked if task[2] == "torch"]) == 3
    assert record["providers"]["torch"]["missing"] == "given up after 3 times: process ended with status -9"


class FakeProcess:
    """A process that answers with ``answers``; an exception among them is raised, and ends it if it says so."""

    def __init__(self, *answers: Any) -> None:
        self.answers: Iterator[Any] = iter([{}, *answers])
        self.ended = self.closed = False

    def send(self, do: str, **arguments: Any) -> None:
        pass

    def receive(self, patience: float | None = None) -> dict[str, Any]:
        answer: dict[str, Any] | Exception = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("message", "replaced"),
    [
        ("process ended with status -9", True),
        ("CUDARuntimeError: cudaErrorIllegalAddress: an illegal memory access was encountered", True),
        ("ValueError: x: expected shape", False),
    ],
)
def test_a_process_is_replaced_when_it_is_lost(message: str, replaced: bool) -> None:
    first, second = FakeProcess(ProviderError(message), {"from": 1}), FakeProcess({"from": 2})
    waiting = iter([first, second])
    client = run.WorkerClient(lambda: next(waiting))  # type: ignore[arg-type, return-value]
    with pytest.raises(ProviderError, match=r"process ended|illegal|expected shape"):
        client.ask("measure", 1.0)
    assert first.closed == replaced
    assert client.ask("measure", 1.0) == {"from": 2 if replaced else 1}


# --- what is written


@pytest.fixture
def complete(record: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    filled(record, tmp_path / "gpu-1.json", FakeClient(), tests=None)
    return record


def test_the_table_compares_the_best_with_the_best(complete: dict[str, Any]) -> None:
    (row,) = rows(complete, "float16", "training")
    assert row.best(own=True) == "gpulstm step"
    assert row.best(own=False) == "torch"
    assert row.ratio == pytest.approx(2)
    text = report(complete)
    assert "float16, training: microseconds a step" in text
    (line,) = (
        line
        for line in text.split("float32, inference")[1].split("\n\n")[1].splitlines()
        if line.startswith("| 16, 128")
    )
    assert [part.strip() for part in line.split("|")[1:-1]] == ["16, 128", "1.95 ±5%", "3.91 ±5%", "2.00×"]
    assert "launch 2" in text
    assert "no such cluster" in text


def test_selection_can_read_what_was_measured(complete: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "walks.json"
    path.write_text(json.dumps(measured_table(complete)))
    entries = measured.entries(DEVICE["name"], str(path))  # type: ignore[arg-type]
    assert {(entry.dtype, entry.walk, entry.backward) for entry in entries} == {
        (dtype, walk, backward)
        for dtype, walk in (("float16", "step"), ("float16", "grid"), ("float32", "step"))
        for backward in (False, True)
    }
    assert entries[0] == measured.Entry("float16", "lstm", 1, 128, 16, False, "step", pytest.approx(1e-3 / 512 * 1e6))
    assert [entry.us for entry in entries if entry.backward] == [pytest.approx(2e-3 / 512 * 1e6)] * 3


def test_the_plot_is_drawn_or_says_why_not(complete: dict[str, Any], record: dict[str, Any], tmp_path: Path) -> None:
    note = plot(complete, tmp_path / "plot.png")
    assert (note is None) == (tmp_path / "plot.png").exists()
    assert note is None or note.startswith("no plot: ")
    assert str(plot(begun(), tmp_path / "none.png")).startswith("no plot: ")


def test_the_command_goes_on_where_it_was_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def start(client: FakeClient) -> Any:
        return lambda: (client, nullcontext())

    arguments = ["--no-tests", "--out", str(tmp_path), "--providers", "torch", "--dtypes", "float16"]
    assert command.main([*arguments, "--budget", "0"], start(FakeClient())) == 1
    assert command.main(arguments, start(client := FakeClient())) == 0
    assert len(client.asked) == 5 * 8 * 2
    (path,) = (path for path in tmp_path.glob("gpu-*.json") if "walks" not in path.name)
    assert path.with_suffix(".walks.json").exists()
    assert "going on with" in capsys.readouterr().err
    assert path.with_suffix(".md").read_text() == report(json.loads(path.read_text()))
    again = ["--no-tests", "--resume", str(path), "--dtypes", "float16", "--providers"]
    assert command.main([*again, "torch"], start(client := FakeClient())) == 0
    assert not client.asked
    command.main([*again, "torch,haste"], start(client := FakeClient()))  # not in the record yet
    assert "haste" in json.loads(path.read_text())["providers"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sources": "other"}))
    with pytest.raises(SystemExit):
        command.main([*again, "torch"], start(FakeClient()))
    assert "another GPU or other sources" in capsys.readouterr().err


PLANTED = """
import numpy as np
from bench.gpu.worker import Session
from bench.worker import serve
class Planted(Session):
    def describe(self):
        return DEVICE
    def probe(self, name):
        raise RuntimeError(name)
if __name__ == "__main__":
    serve(lambda: Planted(np, lambda call, calls: (call(), 1e-3 * calls)[1], lambda: None))
"""


@pytest.mark.slow
def test_a_whole_run_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_gpu.py").write_text(PLANTED.replace("DEVICE", repr(DEVICE)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(run, "MODULE", "planted_gpu")
    monkeypatch.setattr(command, "cases", lambda dtypes: [Case(2, 3, 4, dtype) for dtype in dtypes])
    arguments = ["--no-tests", "--out", str(tmp_path), "--providers", "torch", "--dtypes", "float32,tf32"]
    assert command.main(arguments) == 0
    (path,) = (path for path in tmp_path.glob("gpu-*.json") if "walks" not in path.name)
    record = json.loads(path.read_text())
    assert record["probes"]["grid barrier"] == {"failed": "RuntimeError: grid barrier"}
    assert [(cell["case"]["dtype"], cell["mode"]) for cell in record["cells"]] == [
        (dtype, mode) for dtype in ("float32", "tf32") for mode in MODES
    ]
    assert all(cell["seconds"]["median"] == pytest.approx(1e-3) for cell in record["cells"])


@pytest.mark.slow
def test_a_wrong_walk_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "missing", lambda contender: None)
    arguments = ["--no-tests", "--out", str(tmp_path), "--dtypes", "float16", "--providers", "gpulstm step,torch"]
    for name, status in (("gpulstm step", 1), ("torch", 0)):
        client = FakeClient({("float16", "inference", name): ProviderError("y: relative error")})
        assert command.main(["--fresh", *arguments], lambda client=client: (client, nullcontext())) == status  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--providers", "caffe"], "known are"), (["--dtypes", "int8"], "known are bfloat16")]
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_it_runs_from_a_checkout_and_says_what_it_lacks(tmp_path: Path) -> None:
    """Uninstalled, without click, matplotlib or a GPU."""
    (tmp_path / "click.py").write_text("raise ImportError('no click here')")
    (tmp_path / "cupy.py").write_text("raise ImportError('no cupy here')")
    result = subprocess.run(
        [sys.executable, "-m", "bench", "run", "gpu", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 1
    assert result.stderr == "no GPU can be measured here: ImportError: no cupy here\n"
