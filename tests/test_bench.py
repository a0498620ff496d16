"""The benchmark: what it times, whom it believes, and what it writes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import gpulstm
from bench import footprint, peak, pool, provenance, run
from bench.command import main
from bench.plot import plot
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
    TORCH_PROVIDERS,
    Case,
    Provider,
    Table,
    parse_case,
    select,
    timed_tables,
)
from bench.report import milliseconds, report, rows
from bench.timing import Spread, settle, turn
from bench.verify import TOLERANCE, check

TINY = Case(3, 5, 7)
SETTINGS = run.Settings(threads=1, rounds=2, target=0.002)
PEAKS = {"sgemm": {"numpy": 100.0}, "read": [[2**20, 200.0], [2**24, 50.0]]}


# --- what is timed


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
        "1,2,3,cell=gru",
        "1,2,3,dtype=float16",
        "1,2,3,layers=0",
        "1,2,3,directions=3",
        "1,2,3,projection=3",
        "1,2,3,inputs=x",
        "1,2,3,cell=rnn,projection=2",
    ],
)
def test_a_case_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="case: expected"):
        parse_case(text)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (gpulstm.LSTM(4, 4, seed=0), (2, 3, 4)),
        (gpulstm.LSTM(3, 7, 2, bias=False, bidirectional=True, proj_size=2, dtype="float64", seed=0), (5, 1, 3)),
        (gpulstm.RNN(3, 5, bidirectional=True, batch_first=True, seed=0), (2, 4, 3)),
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


def test_a_layer_of_all_features_is_timed_beside_torch(tmp_path: Path) -> None:
    case = parse_case("3,5,8,dtype=float64,inputs=6,layers=2,directions=2,projection=4,bias=0")
    known = [CPU_PROVIDERS[name] for name in ("gpulstm", "torch", "jax")]
    record = measured(known, tmp_path / "record.json", case=case)
    rejected = {(cell["provider"], cell["mode"]): cell["rejected"] for cell in record["cells"]}
    for mode in ("inference", "training"):
        assert rejected["gpulstm", mode] is None
        assert rejected["torch", mode] is None
        assert "one plain LSTM layer" in rejected["jax", mode]


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


# --- who is believed


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


# --- timing and arithmetic


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


def cell(case: Case, provider: str, milliseconds: float | None, mode: str = "inference") -> dict[str, Any]:
    seconds = milliseconds and milliseconds / 1e3
    return {
        "case": vars(case),
        "mode": mode,
        "provider": provider,
        "error": 1e-7,
        "rejected": None if seconds else "planted",
        "turns": [],
        "seconds": seconds and {"median": seconds, "q1": seconds * 0.9, "q3": seconds * 1.1},
    }


@pytest.fixture
def record() -> dict[str, Any]:
    one, two = Case(1, 1, 512), Case(16, 128, 256)
    providers = [replace(p, requires=("numpy",)) for p in select("gpulstm,torch,jax", CPU_PROVIDERS)]
    return run.new_record("cpu", SETTINGS, providers) | {
        "finished": "then",
        "peaks": PEAKS,
        "cells": [
            cell(one, "gpulstm", 0.2),
            cell(one, "torch", 0.4),
            cell(one, "jax", 0.1),
            cell(two, "gpulstm", 40.0),
            cell(two, "torch", 180.0),
            cell(two, "jax", None),
        ],
    }


def test_ratios_best_peer_and_geometric_means(record: dict[str, Any]) -> None:
    small, large = rows(record, "inference")
    assert small.ratio("torch") == pytest.approx(2)
    assert small.ratio("jax") == pytest.approx(0.5)
    assert (small.best_peer, large.best_peer) == ("jax", "torch")
    assert large.ratio("jax") is None  # rejected: no figure
    text = report(record)
    lines = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if line[0:1] == "|"}
    tidy = {name: [part.strip() for part in parts] for name, parts in lines.items()}
    # the working set of (1,1,512) is 8 MiB, read at 50 GB/s: 0.168 of 0.2 ms; (16,128,256) computes
    assert tidy["(1,1,512)"] == [
        "0.200 ±10%", "0.400 ±10% 2.00×", "0.100 ±10% 0.50×", "0.50× jax", "21.0", "84% read",
    ]  # fmt: skip
    assert tidy["(16,128,256)"][2:] == ["-", "4.50× torch", "53.7", "54% sgemm"]
    assert tidy["geometric mean"][:4] == ["", "3.00×", "0.50×", "1.50×"]
    assert "training" not in text


def table(text: str, title: str) -> dict[str, list[str]]:
    """The cells of the table below ``title``, by the first of each line."""
    lines = text[text.index(title) :].split("\n\n")[1].splitlines()
    return {(parts := [part.strip() for part in line.split("|")[1:-1]])[0]: parts[1:] for line in lines}


def test_narrow_weights_have_a_table_of_their_own(record: dict[str, Any]) -> None:
    record["providers"] |= {"gpulstm_bf16": record["providers"]["gpulstm"]}
    record["cells"] += [cell(Case(1, 1, 512), "gpulstm_bf16", 0.05), cell(Case(16, 128, 256), "gpulstm_bf16", 20.0)]
    assert [row.best_peer for row in rows(record, "inference")] == ["jax", "torch"]
    text = report(record)
    assert "bf16" not in table(text, "inference, milliseconds")["B,T,H"]
    assert table(text, "inference with weights in fewer bits")["(1,1,512)"] == ["0.0500", "2.00×", "4.00×"]
    assert table(text, "inference with weights in fewer bits")["(16,128,256)"] == ["20.0", "9.00×", "2.00×"]
    assert table(text, "inference with weights in fewer bits")["geometric mean"] == ["", "4.24×", "2.83×"]


def test_cost_of_a_step(record: dict[str, Any]) -> None:
    record["cells"] += [
        cell(Case(1, 64, 128), "gpulstm", 0.128) | {"table": "steps"},
        cell(Case(1, 64, 128), "torch", 0.64, "training") | {"table": "steps"},
        cell(Case(64, 16, 128), "torch", 2.048) | {"table": "batch"},
    ]
    assert len(rows(record, "inference")) == 2
    text = report(record)
    assert table(text, "cost of more steps")["(1,64,128)"] == ["0.128", "2000", "-", "-", "-", "-", "0.640", "10000"]
    assert table(text, "cost of more sequences")["(64,16,128)"] == ["2.05", "2000", "-", "-"]
    assert "cost of more steps T (inference of one step by gpulstm: in its stream)" in text
    assert "stream" not in report(record | {"kind": "torch"})


def test_memory_of_training(record: dict[str, Any]) -> None:
    case = vars(Case(16, 128, 256))
    record["memory"] = [
        {"case": case, "provider": "gpulstm", "bytes": 20 * 2**20},
        {"case": case, "provider": "torch", "bytes": 30 * 2**20},
        {"case": case, "provider": "jax", "bytes": None, "reason": "no such file"},
    ]
    text = report(record)
    assert table(text, "peak memory of training")["(16,128,256)"] == ["12", "16", "20", "30 1.50×", "-"]
    assert "jax, memory of (16,128,256): no such file" in text


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


@pytest.mark.slow
def test_further_tables_are_timed_by_their_providers(tmp_path: Path) -> None:
    providers = select("gpulstm,gpulstm_int8,torch", CPU_PROVIDERS)
    record = run.new_record("cpu", SETTINGS, providers)
    tables = [Table("grid", (TINY,)), Table("steps", (Case(1, 1, 8), Case(1, 4, 8)), ("gpulstm", "torch"))]
    run.run_cpu(record, tmp_path / "record.json", tables, providers, SETTINGS, lambda line: None, (TINY,))
    assert [(c["table"], c["provider"]) for c in record["cells"] if c["mode"] == "inference"] == [
        ("grid", "gpulstm"), ("grid", "torch"), ("grid", "gpulstm_int8"),
        ("steps", "gpulstm"), ("steps", "torch"), ("steps", "gpulstm"), ("steps", "torch"),
    ]  # fmt: skip
    assert not any(cell["rejected"] for cell in record["cells"])
    assert [entry["provider"] for entry in record["memory"]] == ["gpulstm", "torch"]


def test_records_of_before_the_further_tables_print_as_they_did(record: dict[str, Any]) -> None:
    text = report(record)
    del record["memory"]
    assert report(record) == text
    paths = list((pool.ROOT / "bench" / "results").glob("*/*.json"))
    assert paths
    for path in paths:
        found = run.load(path)
        lines = report(found).splitlines()
        for cell in (cell for cell in found["cells"] if not cell["rejected"]):
            shown = [line for line in lines if line.startswith(f"| {Case(**cell['case']).label} ")]
            assert any(f" {milliseconds(cell['seconds']['median'])} " in line for line in shown)


def test_a_wrong_gpulstm_fails_the_command(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    run.save(record, path)
    assert CliRunner().invoke(main, ["report", str(path)]).exit_code == 0  # a peer alone is rejected
    record["cells"].append(cell(Case(1, 1, 512), "gpulstm_bf16", None))
    run.save(record, path)
    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 1
    assert "- gpulstm_bf16, inference (1,1,512), no figure: planted" in result.output


def test_without_gpulstm_the_peers_are_still_shown(record: dict[str, Any]) -> None:
    record["cells"] = [cell for cell in record["cells"] if cell["provider"] != "gpulstm"]
    small, _ = rows(record, "inference")
    assert small.shown == "jax"
    assert "| jax |" in " ".join(report(record).split())


def test_a_disturbed_run_says_so(record: dict[str, Any]) -> None:
    assert "DISTURBED" not in report(record)
    record["bystanders"] = 0.7
    assert "other processes kept 0.70 cores busy" in report(record)


def test_plot_without_figures_says_why(record: dict[str, Any], tmp_path: Path) -> None:
    record["cells"] = []
    assert str(plot(record, tmp_path / "plot.png")).startswith("no plot: ")
    assert not list(tmp_path.iterdir())


def test_the_machine_is_described() -> None:
    described = provenance.describe()
    assert described["cores"] >= 1
    assert described["cpu"]
    xeon = {"cpu": "Intel(R) Xeon(R) CPU @ 2.10GHz", "cores": 2, "features": ["avx2", "avx512f"]}
    assert provenance.vectors(xeon) == "AVX-512"
    assert provenance.slug(xeon) == "intel-xeon-avx512-2-cores"
    assert provenance.slug({"cpu": "M4", "cores": 10, "features": []}) == "m4-10-cores"
    assert provenance.Bystanders().share() in (None, pytest.approx(0, abs=64))


def test_peaks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "GEMM_SIZES", (64,))
    monkeypatch.setattr(peak, "READ_SIZES", (2**18,))
    assert peak.sgemm("numpy", 1) > 0.1
    ((size, rate),) = peak.read(2)
    assert size == 2**18
    assert rate > 0.1


# --- the command


@pytest.mark.slow
def test_end_to_end_with_whatever_is_installed(tmp_path: Path) -> None:
    installed = [name for name, provider in CPU_PROVIDERS.items() if not provenance.missing(provider)]
    assert {"gpulstm", "torch"} <= set(installed)
    arguments = ["run", "cpu", "--quick", "--case", "3,5,7", "--rounds", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--providers", ",".join(installed)])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("cpu-*.json")
    record = json.loads(path.read_text())
    assert record.keys() == {
        "schema", "kind", "started", "finished", "command", "commit", "machine", "settings", "peaks",
        "bystanders", "providers", "cells", "memory",
    }  # fmt: skip
    assert record["finished"]
    assert set(record["providers"]) == set(installed)
    assert len(record["cells"]) == sum(len(CPU_PROVIDERS[name].modes) for name in installed)
    for entry in record["cells"]:
        assert entry["case"] == vars(TINY)
        assert entry["rejected"] is None
        assert (entry["error"] > TOLERANCE["float32"]) == (entry["provider"] in NARROW)
        assert len(entry["turns"]) == 2
        assert all(turn.keys() == {"calls", "seconds", "settle"} for turn in entry["turns"])
        assert 0 < entry["seconds"]["q1"] <= entry["seconds"]["median"] <= entry["seconds"]["q3"]
    assert path.with_suffix(".md").read_text() in result.output
    assert path.with_suffix(".png").exists() or "no plot: " in result.output

    again = CliRunner().invoke(main, ["report", str(path)])
    assert again.exit_code == 0
    assert report(record) in again.output


def test_tables_of_other_cases(tmp_path: Path) -> None:
    arguments = ["run", "cpu", "--quick", "--case", "3,5,7", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--providers", "gpulstm,gpulstm_int8", "--tables", "memory,narrow"])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("cpu-*.json")
    record = json.loads(path.read_text())
    assert [(c["provider"], c["mode"]) for c in record["cells"]] == [
        ("gpulstm", "inference"), ("gpulstm_int8", "inference"),
    ]  # fmt: skip
    assert [(m["provider"], m["case"]) for m in record["memory"]] == [("gpulstm", vars(TINY))]
    figures = {c["provider"]: c["seconds"]["median"] for c in record["cells"]}
    shown = table(result.output, "inference with weights in fewer bits")["(3,5,7)"]
    assert shown[1:] == ["-", f"{figures['gpulstm'] / figures['gpulstm_int8']:.2f}×"]


@pytest.mark.slow
def test_the_drop_in_is_timed_beside_torchs_module(tmp_path: Path) -> None:
    arguments = [
        "run",
        "torch",
        "--case",
        "3,5,7",
        "--rounds",
        "1",
        "--quick",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("torch-*.json")
    record = json.loads(path.read_text())
    assert (record["kind"], len(record["cells"])) == ("torch", 6)
    assert list(record["providers"]) == list(TORCH_PROVIDERS) == ["gpulstm", "torch", "arrays"]
    for entry in record["cells"]:
        assert entry["rejected"] is None
        assert entry["seconds"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "cpu", "--providers", "caffe"], "known are gpulstm"),
        (["run", "cpu", "--case", "1,2"], "expected three integers"),
        (["run", "cpu", "--tables", "grid,plot"], "known are grid, narrow, scaling, memory"),
        (["run", "cpu", "--tables", "grid", "--providers", "gpulstm_int8"], "unknown ['gpulstm_int8']"),
        (["run", "cpu", "--dtype", "int8"], "float32"),
        (["run", "cpu", "--threads", "0"], "threads"),
        (["report", __file__], "JSON record"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert message in result.output
