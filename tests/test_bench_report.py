"""What the benchmark says of a record: ratios, tables, and what disturbed it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_bench import PEAKS, SETTINGS

from bench import pool, run
from bench.command import main
from bench.plot import plot
from bench.registry import (
    CPU_PROVIDERS,
    Case,
    select,
)
from bench.report import milliseconds, report, rows


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
