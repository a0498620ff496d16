"""The GPU benchmark's own code that runs on a device: gpulstm's contenders, and the probes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import dtype_of

from bench.gpu import probes
from bench.gpu.grid import CONTENDERS
from bench.gpu.problem import Problem, check, truth
from bench.gpu.providers import gpulstm as provider
from bench.registry import MODES, Case
from gpulstm_kernels.cuda.device import precision


@pytest.fixture(autouse=True)
def _no_walk_stays(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("GPULSTM_WALK", "step")  # the provider sets it; what it was comes back
    yield
    precision.allow_tf32(False)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("walk", ["step", "block", "grid"])
def test_each_walk_is_right_by_the_benchmarks_own_check(runtime: Any, walk: str, dtype: str) -> None:
    if dtype == "bfloat16":
        dtype_of(dtype)  # or skip
    case, contender = Case(3, 4, 16, dtype), CONTENDERS[f"gpulstm {walk}"]
    problem = Problem.of(np, case)
    expected = truth(np, problem)
    params = {name: runtime.to_device(value) for name, value in problem.params.items()}
    there = replace(problem, x=runtime.to_device(problem.x), dy=runtime.to_device(problem.dy), params=params)
    for mode in MODES:
        assert provider.misfit(case, mode, contender) is None
        call, outputs = getattr(provider, mode)(there, contender)
        for _ in range(3):  # at once, captured, replayed
            found = {name: runtime.to_host(value) for name, value in outputs(call()).items()}
            verdict = check(np, case, mode, found, expected)
            assert verdict.reason is None, (walk, dtype, mode, verdict)


def test_a_walk_that_does_not_fit_says_why(runtime: Any) -> None:
    case = Case(1, 1, 512, "float16")
    assert "registers" in str(provider.misfit(case, "inference", CONTENDERS["gpulstm block"]))


def test_probes_of_launches_graphs_and_the_grid_barrier(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def elapsed(call: Any, calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        runtime.synchronize()
        return time.perf_counter() - started

    monkeypatch.setattr(probes, "_MANY", 5)
    monkeypatch.setattr(probes, "_TURNS", 2)
    assert probes.launches(elapsed).keys() == {"launch"}
    assert probes.graph(elapsed).keys() == {"node", "graph"}
    assert all(figure > 0 for figure in probes.grid_barrier(elapsed, 2).values())
