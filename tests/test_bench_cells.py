"""``python -m bench run cells``: what it times, the problems of any cell, and who computes them rightly."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_bench import SETTINGS, TINY, _known_peaks  # noqa: F401 - _known_peaks works by being here
from test_bench_report import cell, table

import gpulstm
from bench import networks, provenance, run
from bench.command import main
from bench.problem import Problem
from bench.providers import gpulstm as own
from bench.providers import gpulstm_calls
from bench.registry import BASELINE, CELL_PROVIDERS, CELL_TABLES, CPU_GRID, MODES, Case, Table, cell_tables, parse_case
from bench.report import CELL_TITLES, report, rows
from bench.verify import check

TABLES = {table.name: table for table in CELL_TABLES}


def tiny(case: Case) -> Case:
    return replace(case, batch=3, steps=5, hidden=8, resets=30 if case.resets else 0)


@cache
def truth(case: Case) -> dict[str, np.ndarray]:
    with gpulstm.use_backend("reference"):
        call, outputs = own.training(Problem.of(case).astype("float64"))
        return outputs(call())


def test_tables_are_the_published_ones() -> None:
    sizes = [(16, 128, 256), (1, 128, 256), (64, 128, 512)]
    products = TABLES["products"].cases
    assert [(case.batch, case.steps, case.hidden) for case in products] == 8 * sizes
    assert {case.cell for case in products[3:]} == {
        "peephole", "zoneout", "recurrent_dropout", "cifg", "time_gap", "rnn_relu", "indrnn",
    }  # fmt: skip
    assert [case.text for case in TABLES["gru"].cases] == [f"{case.text},cell=gru" for case in CPU_GRID]
    assert [case.text for case in TABLES["resets"].cases] == ["128,128,256,resets=3"]
    assert [case.heads for case in TABLES["slstm"].cases] == 3 * [1] + 3 * [4]
    assert TABLES.keys() | {"cases"} == CELL_TITLES.keys()
    for found in CELL_TABLES:
        assert set(found.providers or ()) <= CELL_PROVIDERS.keys()
        for case in found.cases:
            assert parse_case(case.text) == case


def test_tables_that_are_asked_for() -> None:
    assert cell_tables(list(TABLES), (), quick=False) == list(CELL_TABLES)
    quick = cell_tables(list(TABLES), (), quick=True)
    assert [len(found.cases) for found in quick] == [8, 1, 2, 1, 2, 2, 2]
    assert {(case.batch, case.steps, case.hidden) for case in quick[0].cases} == {(16, 128, 256)}
    assert cell_tables(["gru"], (TINY,), quick=False) == [replace(TABLES["gru"], cases=(TINY,))]
    assert cell_tables([], (TINY,), quick=True) == [Table("cases", (TINY,))]


def test_parameters_are_those_of_the_cell() -> None:
    gru = Case(3, 5, 7, cell="gru", layers=2, directions=2)
    theirs = torch.nn.GRU(7, 7, 2, bidirectional=True)
    assert gru.parameters == {name: tuple(value.shape) for name, value in theirs.named_parameters()}
    assert Case(3, 5, 8, cell="slstm", heads=4, bias=0).parameters == {
        "weight_ih_l0": (32, 8),
        "weight_hh_l0": (4, 8, 2),
    }
    assert Case(3, 5, 7, cell="mingru").parameters == {"weight_ih_l0": (14, 7), "bias_ih_l0": (14,)}


def test_work_of_other_cells() -> None:
    lstm = Case(16, 128, 256)
    for cell_name, share in (("gru", 3 / 4), ("peephole", 1), ("rnn_relu", 1 / 4), ("mingru", 1 / 4)):
        assert replace(lstm, cell=cell_name).flops("training") == lstm.flops("training") * share
    assert replace(lstm, heads=4).resident_bytes == lstm.resident_bytes / 4
    assert replace(lstm, cell="mingru").resident_bytes == 0
    weights = replace(lstm, cell="multiplicative_lstm")  # x of five gates; h of one, and it of four
    assert weights.resident_bytes == 5 * 256 * 256 * 4
    assert weights.flops("inference") == 16 * 128 * 2 * 10 * 256 * 256


def test_baselines() -> None:
    for text, expected in {
        "3,5,8,cell=peephole": "3,5,8",
        "3,5,8": "3,5,8",
        "3,5,8,resets=3": "3,5,8",
        "3,5,8,cell=slstm": "3,5,8",
        "3,5,8,cell=slstm,heads=4": "3,5,8,cell=slstm",
    }.items():
        assert parse_case(text).baseline.text == expected


def test_problems_hold_what_a_cell_is_given() -> None:
    problem = Problem.of(Case(300, 5, 8, cell="time_gap", resets=30))
    assert {name: value.shape for name, value in problem.inputs.items()} == {"gap": (5, 300, 1)}
    assert problem.resets is not None
    assert problem.resets.shape == (5, 300)
    assert problem.resets.mean() == pytest.approx(0.3, abs=0.05)
    assert problem.outputs("training")["dinputs.gap"] == (5, 300, 1)
    masks = Problem.of(Case(3, 5, 8, cell="zoneout"))
    assert {name: value.shape for name, value in masks.inputs.items()} == dict.fromkeys(["keep_h", "keep_c"], (5, 3, 8))
    assert masks.astype("float64").inputs["keep_h"].dtype == np.float64
    gains = Problem.of(Case(3, 5, 8, cell="layer_norm_lstm_by_gate")).params
    assert abs(gains["gain_i_l0"] - 1).max() < 8**-0.5
    assert abs(gains["shift_i_l0"]).max() < 8**-0.5
    assert (Problem.of(Case(3, 5, 8, cell="slstm")).state[2] >= 1).all()  # h, c, n, m
    assert (Problem.of(Case(3, 5, 8, cell="mingru_positive")).state[0] > 0).all()


# OpenVINO reads the model of ONNX Runtime; flashrnn and minGRU-pytorch are tried where somebody has them.
PEERS = ("torch_loop", "torch_scan", "torch", "onnxruntime", "jax", "flashrnn", "mingru_pytorch")
ENTRIES = [
    (name, case)
    for found in CELL_TABLES
    for case in dict.fromkeys(map(tiny, found.cases))
    for name in found.providers or ()
    if name in PEERS and not provenance.missing(CELL_PROVIDERS[name])
]


@pytest.mark.parametrize(("name", "case"), ENTRIES, ids=[f"{name}-{case.text}" for name, case in ENTRIES])
def test_peers_compute_the_case(name: str, case: Case) -> None:
    provider = CELL_PROVIDERS[name]
    module, problem = importlib.import_module(provider.module), Problem.of(case)
    for mode in provider.modes:
        call, outputs = getattr(module, mode)(problem)
        for _ in range(2):
            verdict = check(problem, mode, outputs(call()), truth(case), provider.tolerance)
            assert verdict.reason is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torch", "3,5,8,cell=peephole"),
        ("torch", "3,5,8,resets=30"),
        ("torch_loop", "3,5,8,layers=2"),
        ("torch_scan", "3,5,8"),
        ("jax", "3,5,8,cell=rnn"),
    ],
)
def test_what_a_peer_has_not_is_named(name: str, text: str) -> None:
    module = importlib.import_module(CELL_PROVIDERS[name].module)
    for mode in MODES:
        with pytest.raises(ValueError, match=r"\(3,5,8"):
            getattr(module, mode)(Problem.of(parse_case(text)))


def test_gpulstm_is_timed_in_plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpulstm.nn.Recurrent, "stream", None)
    case = Case(3, 1, 8, cell="gru")
    with gpulstm.use_backend("reference"):
        call, outputs = gpulstm_calls.inference(Problem.of(case).astype("float64"))
        assert outputs(call())["y"].tolist() == truth(case)["y"].tolist()


def test_a_call_that_the_walks_refuse_is_not_timed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulstm_kernels.cpu import layer

    monkeypatch.setattr(layer, "why_not", lambda shape: "it is planted")
    gpulstm_calls.setup(1)
    try:
        call, _ = gpulstm_calls.inference(Problem.of(Case(3, 5, 8, cell="gru")))
        with pytest.raises(gpulstm.dispatch.BackendUnavailable, match="it is planted"):
            call()
    finally:
        gpulstm.set_backend(None)


def test_positive_cells_are_their_equations() -> None:
    assert networks.positive(1.5) == 2.0
    assert networks.positive(0.0) == 0.5
    assert networks.positive(-2.0) == pytest.approx(1 / (1 + np.exp(2)), rel=1e-15)


@pytest.fixture
def record() -> dict[str, Any]:
    peephole, cifg = Case(16, 128, 256, cell="peephole"), Case(16, 128, 256, cell="cifg")
    providers = [replace(CELL_PROVIDERS[name], requires=("numpy",)) for name in ("gpulstm", BASELINE, "torch_loop")]
    products = {"table": "products"}
    return run.new_record("cells", SETTINGS, providers) | {
        "finished": "then",
        "cells": [
            cell(peephole, "gpulstm", 10.0) | products,
            cell(peephole, BASELINE, 8.0) | products,
            cell(peephole, "torch_loop", 40.0) | products,
            cell(cifg, "gpulstm", 8.0, "training") | products,
            cell(cifg, BASELINE, 10.0, "training") | products,
            cell(cifg, "torch_loop", None, "training") | products,
            cell(Case(3, 5, 8, cell="gru"), "gpulstm", 1.0) | {"table": "gru"},
        ],
    }


def test_tables_with_and_without_a_baseline(record: dict[str, Any], tmp_path: Path) -> None:
    (row,) = rows(record, "inference", "products")
    assert row.best_peer == "torch_loop"  # our own is no peer
    text = report(record)
    found = table(text, f"{CELL_TITLES['products']}: inference")
    assert found["B,T,H"] == ["gpulstm", "baseline", "torch_loop", "best peer", "of baseline", "products"]
    assert found["(16,128,256,cell=peephole)"] == [
        "10.0 ±10%", "8.00 ±10% 0.80×", "40.0 ±10% 4.00×", "4.00× torch_loop", "1.25×", "1.00×",
    ]  # fmt: skip
    found = table(text, f"{CELL_TITLES['products']}: training")
    assert found["(16,128,256,cell=cifg)"] == ["8.00 ±10%", "10.0 ±10% 1.25×", "-", "0.80×", "0.75×"]
    assert table(text, "GRU: inference")["B,T,H"] == ["gpulstm", "best peer"]
    assert "torch_loop, training (16,128,256,cell=cifg), no figure: planted" in text
    path = tmp_path / "record.json"
    run.save(record, path)
    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 0  # a peer alone is rejected
    assert text in result.output


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    arguments = ["run", "cells", "--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    arguments += ["--case", "3,5,8,cell=gru", "--providers", "gpulstm,baseline,torch_loop,torch"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("cells-*.json")
    record = json.loads(path.read_text())
    assert [(entry["provider"], entry["rejected"]) for entry in record["cells"]] == 2 * [
        ("gpulstm", None), ("baseline", None), ("torch_loop", None), ("torch", None),
    ]  # fmt: skip
    assert {tuple(entry["case"].values()) for entry in record["cells"]} == {
        tuple(vars(Case(3, 5, 8, cell="gru")).values())
    }
    shown = table(result.output, f"{CELL_TITLES['cases']}: training")["(3,5,8,cell=gru)"]
    assert shown[-1] == "0.75×"
