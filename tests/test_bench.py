"""The benchmark: what it times, whom it believes, and what it measures beside."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulstm
from bench import footprint, peak, pool, provenance, run
from bench.problem import Problem
from bench.registry import (
    BATCH,
    CPU_GRID,
    CPU_PROVIDERS,
    MEMORY_CASES,
    MODES,
    NARROW,
    STEPS,
    TABLES,
    Case,
    Provider,
    Table,
    parse_case,
    select,
    timed_tables,
)
from bench.report import report
from bench.timing import Spread, settle, turn
from bench.verify import TOLERANCE, check

TINY = Case(3, 5, 7)


SETTINGS = run.Settings(threads=1, rounds=2, target=0.002)


PEAKS = {"sgemm": {"numpy": 100.0}, "read": [[2**20, 200.0], [2**24, 50.0]]}


def test_grid_is_the_published_one() -> None:
    sizes = "1,1,128 1,1,512 1,128,256 16,128,256 64,128,256 64,128,512 32,64,1024 1,256,1024 256,32,128"
    assert tuple(map(parse_case, sizes.split())) == CPU_GRID
    assert CPU_PROVIDERS.keys() - NARROW == {"gpulstm", "torch", "onnxruntime", "openvino", "jax"}
    assert [case.steps for case in STEPS.cases] == [1, 4, 16, 64, 256, 1024, 4096, 16384]
    assert [case.batch for case in BATCH.cases] == [1, 4, 16, 64, 256, 1024]
    assert [name for name, p in CPU_PROVIDERS.items() if p.modes == MODES] == ["gpulstm", "torch", "jax"]


def test_tables_that_are_asked_for() -> None:
    whole = timed_tables(TABLES, CPU_GRID, quick=False)
    assert whole == [Table("grid", CPU_GRID), STEPS, BATCH]
    assert timed_tables(["grid"], (TINY,), quick=True) == [Table("grid", (TINY,))]
    assert timed_tables(["narrow"], (TINY,), quick=True) == [Table("grid", (TINY,), modes=("inference",))]
    steps, batch = timed_tables(["scaling", "memory"], CPU_GRID, quick=True)
    assert [case.steps for case in steps.cases] == [1, 16, 256, 4096]
    assert [case.batch for case in batch.cases] == [1, 16, 256]
    assert timed_tables(["memory"], CPU_GRID, quick=False) == []


@pytest.mark.parametrize(
    "text",
    [
        "16,128",
        "16,x,3",
        "0,1,2",
        "",
        "1,2,3,4",
        "1,2,3,gates=4",
        "1,2,3,cell=lsmt",
        "1,2,3,heads=2",
        "1,2,4,cell=mingru,heads=2",
        "1,2,3,heads=0",
        "1,2,3,resets=101",
        "1,2,3,dtype=float16",
        "1,2,3,layers=0",
        "1,2,3,directions=3",
        "1,2,3,projection=3",
        "1,2,3,inputs=x",
        "1,2,3,cell=gru,projection=2",
    ],
)
def test_a_case_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="case: expected"):
        parse_case(text)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (gpulstm.LSTM(4, 4, seed=0), (2, 3, 4)),
        pytest.param(
            gpulstm.LSTM(3, 7, 2, bias=False, bidirectional=True, proj_size=2, dtype="float64", seed=0),
            (5, 1, 3),
            marks=pytest.mark.slow,  # its kernels are compiled
        ),
        (gpulstm.nn.Recurrent("lstm", 4, 4, heads=2, seed=0), (2, 3, 4)),
        pytest.param(
            gpulstm.RNN(3, 5, bidirectional=True, batch_first=True, seed=0), (2, 4, 3), marks=pytest.mark.slow
        ),
    ],
)
def test_what_explain_prints_is_a_case_of_such_a_call(layer: Any, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, layer.params["weight_ih_l0"].dtype)
    *_, command = gpulstm.explain(layer, x).splitlines()
    text = command.removeprefix("measure it: python -m bench run cpu --case ")
    case = parse_case(text)
    assert case.text == text
    order = (1, 0) if layer.config.batch_first else (0, 1)
    assert (case.steps, case.batch) == tuple(shape[axis] for axis in order)
    problem = Problem.of(case)
    assert problem.x.shape == (case.steps, case.batch, shape[2])
    assert problem.x.dtype == x.dtype
    assert {name: value.shape for name, value in problem.params.items()} == layer.config.shapes()
    y, state = layer(problem.x.swapaxes(*order) if layer.config.batch_first else problem.x)
    assert problem.outputs("inference")["y"] == (y.swapaxes(0, 1) if layer.config.batch_first else y).shape
    assert [part.shape for part in problem.state] == [part.shape for part in state if isinstance(state, tuple)] or [
        state.shape
    ]


def test_unknown_providers_are_told_the_known_ones() -> None:
    assert [p.name for p in select("torch, gpulstm", CPU_PROVIDERS)] == ["gpulstm", "torch"]
    for names in ("torch,tensorflow", ","):
        with pytest.raises(ValueError, match=r"known are gpulstm, torch, onnxruntime, openvino, jax"):
            select(names, CPU_PROVIDERS)


def test_work_of_a_case() -> None:
    case = Case(16, 128, 256)
    assert case.flops("inference") == 16 * 128 * (2 * 1024 * 256 * 2)
    assert case.flops("training") == 3 * case.flops("inference")
    assert case.read_bytes("inference") == 129 * 1024 * 256 * 4
    assert Case(1, 1, 512).resident_bytes == 2 * 2048 * 512 * 4


def arrays_of(problem: Problem) -> list[np.ndarray]:
    return [problem.x, problem.dy, *problem.state, *problem.dstate, *problem.params.values()]


def test_a_problem_is_the_same_in_every_process() -> None:
    one, two = Problem.of(TINY), Problem.of(TINY)
    for this, same, wide in zip(*(arrays_of(problem) for problem in (one, two, one.astype("float64"))), strict=True):
        np.testing.assert_array_equal(this, same)
        assert this.dtype == np.float32
        assert wide.dtype == np.float64
    assert one.outputs("training")["dweight_ih_l0"] == (28, 7)


@pytest.fixture
def truth() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = Problem.of(TINY).outputs("training")
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_verify_accepts_rounding_and_nothing_more(truth: dict[str, np.ndarray]) -> None:
    problem = Problem.of(TINY)
    good = {name: value.astype("float32") for name, value in truth.items()}
    verdict = check(problem, "training", good, truth)
    assert verdict.reason is None
    assert verdict.error is not None
    assert 0 < verdict.error < 1e-6

    def reason(name: str, value: np.ndarray) -> str:
        return str(check(problem, "training", good | {name: value}, truth).reason)

    for name, value in good.items():
        wrong = value.copy()
        wrong.flat[-1] += 2 * TOLERANCE["float32"] * np.abs(truth[name]).max()
        assert reason(name, wrong).startswith(f"{name}: relative error")
        wrong.flat[-1] = np.nan
        assert "NaN" in reason(name, wrong)
        wrong.flat[-1] = np.inf
        assert "infinite" in reason(name, wrong)
        assert "expected float32" in reason(name, value[..., :-1])
        assert "float64" in reason(name, value.astype("float64"))
    assert "expected" in str(check(problem, "training", {"y": good["y"]}, truth).reason)
    assert "expected" in str(check(problem, "inference", good, truth).reason)


PLANTS = {
    "liar": """
def inference(problem):
    call, outputs = gpulstm.inference(problem)
    return call, lambda result: outputs(result) | {"y": outputs(result)["y"] * np.float32(1.0001)}
def training(problem):
    call, outputs = gpulstm.training(problem)
    return call, lambda result: outputs(result) | {"dc0": np.zeros_like(problem.state[1])}
""",
    "raises": """
def inference(problem):
    raise RuntimeError("no such kernel")
training = inference
""",
    "dies": """
import os, sys
def inference(problem):
    print("out of patience", file=sys.stderr, flush=True)
    os._exit(3)
training = inference
""",
    "pickles": """
def inference(problem):
    return lambda: None, lambda result: {"y": np.array([{}])}
training = inference
""",
    "faints": """
def inference(problem):
    call, outputs = gpulstm.inference(problem)
    calls = iter([call])
    return lambda: next(calls)(), outputs
training = inference
""",
    "chatty": """
def inference(problem):
    print("hello from the provider")
    return gpulstm.inference(problem)
training = gpulstm.training
""",
}


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[Provider]:
    """Providers made of the snippets above, importable by the workers."""
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in names:
        head = "import numpy as np\nfrom bench.providers import gpulstm\nfrom bench.providers.gpulstm import setup\n"
        (folder / f"planted_{name}.py").write_text(head + PLANTS[name])
    return [Provider(name, f"planted_{name}", ("numpy",)) for name in names]


@pytest.fixture(autouse=True)
def _known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "measure", lambda threads: PEAKS)


def measured(providers: list[Provider], path: Path, say: Any = lambda line: None, case: Case = TINY) -> dict[str, Any]:
    record = run.new_record("cpu", SETTINGS, providers)
    run.run_cpu(record, path, [Table("grid", (case,))], providers, SETTINGS, say)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_wrong_or_broken_provider_gets_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Provider("absent", "bench.providers.absent", ("no_such_package",))
    unbuilt = Provider("unbuilt", "bench.providers.absent", ("numpy",))
    planted = plant(tmp_path, monkeypatch, *PLANTS)
    record = measured([*planted, absent, unbuilt], tmp_path / "record.json")

    reasons = {name: [cell["rejected"] for cell in record["cells"] if cell["provider"] == name] for name in PLANTS}
    assert reasons["chatty"] == [None, None]
    assert reasons["liar"][0].startswith("y: relative error")
    assert reasons["liar"][1].startswith("dc0: relative error")
    assert reasons["raises"][0] == "RuntimeError: no such kernel"
    assert reasons["dies"][0] == "process ended with status 3: out of patience"
    assert "result cannot be read" in reasons["pickles"][0]
    assert reasons["faints"][0].startswith("StopIteration")
    assert all(cell["seconds"] is None for cell in record["cells"] if cell["provider"] != "chatty")
    assert record["providers"]["absent"]["missing"] == "not installed: no_such_package"
    assert "No module named" in record["providers"]["unbuilt"]["missing"]

    text = report(record)
    assert "- absent: not installed: no_such_package" in text
    assert "- liar, training (3,5,7), no figure: dc0: relative error" in text
    assert "liar |" not in text


@pytest.mark.slow
def test_narrow_weights_are_held_to_their_own_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_rounded.py").write_text("""
from dataclasses import replace
import numpy as np
from bench.providers import gpulstm
from bench.providers.gpulstm import setup
def inference(problem, most):
    step = {name: np.abs(value).max() / np.float32(most) for name, value in problem.params.items()}
    params = {name: np.rint(value / step[name]) * step[name] for name, value in problem.params.items()}
    return gpulstm.inference(replace(problem, params=params))
""")
    for name, most in (("eight", 127), ("four", 7)):
        (tmp_path / f"planted_{name}.py").write_text(
            "from functools import partial\nimport planted_rounded\nfrom planted_rounded import setup\n"
            f"inference = partial(planted_rounded.inference, most={most})\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    known = NARROW["gpulstm_int8"]
    eight, four = (replace(known, name=name, module=f"planted_{name}") for name in ("eight", "four"))
    exact = replace(eight, name="exact", tolerance=None)
    record = measured([eight, four, exact], tmp_path / "record.json")
    reasons = {cell["provider"]: cell["rejected"] for cell in record["cells"]}
    assert reasons["eight"] is None
    assert str(reasons["four"]).endswith("over 2e-02")
    assert str(reasons["exact"]).endswith("over 2e-05")


def test_a_cut_run_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("inference"):
            raise KeyboardInterrupt

    path = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        measured([CPU_PROVIDERS["gpulstm"]], path, interrupt)
    record = run.load(path)
    assert record["finished"] is None
    assert [cell["seconds"]["median"] > 0 for cell in record["cells"]] == [True]
    assert "This run was cut" in report(record)


def test_a_worker_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_hang.py").write_text("import time\ndef setup(threads):\n    time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pool, "PATIENCE", 0.5)
    worker = pool.Worker(Provider("hang", "planted_hang", ()), 1, tmp_path)
    with pytest.raises(pool.ProviderError, match="ended with status -9"):
        worker.receive()
    worker.close()


def test_a_turn_lasts_about_its_target() -> None:
    calls: list[float] = []

    def call() -> None:
        time.sleep(0.001)
        calls.append(time.perf_counter())

    result = turn(call, target=0.02)
    assert 1 <= result.calls <= 20
    assert result.calls < len(calls)  # it warmed up
    assert result.seconds >= result.calls * 0.001
    calls.clear()
    assert turn(call, target=0.0001).calls == 1
    assert len(calls) == 2
    assert turn(call, target=0.0001, expected=0.001).calls == 1
    assert len(calls) == 3  # long calls are not warmed up again
    assert settle() < 1


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_the_least_that_training_holds() -> None:
    case = MEMORY_CASES[0]
    assert case == Case(16, 128, 256)
    assert footprint.tape(case) == 6 * 16 * 128 * 256 * 4
    assert footprint.least(case) == footprint.tape(case) + (16 * 128 * 256 + 2 * 1024 * 256 + 2 * 1024) * 4


@pytest.mark.parametrize("resets", [True, False])
def test_an_allocation_of_a_known_size_is_seen(resets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system does not begin the peak anew."""
    (tmp_path / "planted_large.py").write_text(
        "import __main__, numpy as np\n"
        f"def setup(threads): {'pass' if resets else '__main__._RESET /= str(threads)'}\n"  # no such file
        "def training(problem):\n"
        "    inputs = np.ones(10 * 2**20, np.uint8)\n"  # resident before: not counted
        "    size = 64 * 2**20 * (problem.case.batch == 3)\n"  # nothing in what warms up
        "    return lambda: np.ones(size, np.uint8).sum() + inputs.sum(), None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = footprint.measure(Provider("large", "planted_large", ()), TINY, 1)
    assert found["bytes"] / 2**20 == pytest.approx(64, abs=4)


def test_the_peak_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = footprint._peak()
    monkeypatch.setattr(footprint, "_STATUS", tmp_path / "absent")
    assert here * 0.9 <= footprint._peak() <= here * 100  # the process that started this one may have been larger


def test_a_process_without_a_figure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = footprint.measure(Provider("absent", "no_such_module", ()), TINY, 1)
    assert found["bytes"] is None
    assert "no_such_module" in found["reason"]
    (tmp_path / "planted_hang.py").write_text("import time\ndef setup(threads):\n    time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pool, "PATIENCE", 0.5)
    found = footprint.measure(Provider("hang", "planted_hang", ()), TINY, 1)
    assert (found["bytes"], found["reason"]) == (None, "no answer in 0.5 s")


def test_the_machine_is_described() -> None:
    described = provenance.describe()
    assert described["cores"] >= 1
    assert described["cpu"]
    xeon = {"cpu": "Intel(R) Xeon(R) CPU @ 2.10GHz", "cores": 2, "features": ["avx2", "avx512f"]}
    assert provenance.vectors(xeon) == "AVX-512"
    assert provenance.slug(xeon) == "intel-xeon-avx512-2-cores"
    assert provenance.slug({"cpu": "M4", "cores": 10, "features": []}) == "m4-10-cores"
    assert provenance.OtherLoad().share() in (None, pytest.approx(0, abs=64))


def test_peaks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "GEMM_SIZES", (64,))
    monkeypatch.setattr(peak, "READ_SIZES", (2**18,))
    assert peak.sgemm("numpy", 1) > 0.1
    ((size, rate),) = peak.read(2)
    assert size == 2**18
    assert rate > 0.1
