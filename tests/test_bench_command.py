"""The benchmark's command, with providers that are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_bench import PEAKS, SETTINGS, TINY, _known_peaks, measured  # noqa: F401 - _known_peaks works by being here
from test_bench_report import table

from bench import provenance, run
from bench.command import main
from bench.registry import (
    CPU_PROVIDERS,
    NARROW,
    TORCH_PROVIDERS,
    Case,
    Table,
    parse_case,
    select,
)
from bench.report import report
from bench.verify import TOLERANCE


@pytest.mark.slow
def test_a_layer_of_all_features_is_timed_beside_torch(tmp_path: Path) -> None:
    case = parse_case("3,5,8,dtype=float64,inputs=6,layers=2,directions=2,projection=4,bias=0")
    known = [CPU_PROVIDERS[name] for name in ("gpulstm", "torch", "jax")]
    record = measured(known, tmp_path / "record.json", case=case)
    rejected = {(cell["provider"], cell["mode"]): cell["rejected"] for cell in record["cells"]}
    for mode in ("inference", "training"):
        assert rejected["gpulstm", mode] is None
        assert rejected["torch", mode] is None
        assert "one plain LSTM or GRU layer" in rejected["jax", mode]


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


@pytest.mark.slow
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
        (["run", "cells", "--tables", "grid"], "known are products, gru, layer_norm"),
        (["run", "cells", "--case", "1,2,3,cell=lsmt"], "unknown cell 'lsmt'"),
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
