"""The CUDA backend against the float64 reference: random sizes, on the emulator with random devices and turns too."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np
import problems
import pytest
from test_layer import CELLS, KINDS, check, dtype_of

from gpulstm_kernels.cuda.device import precision
from gpulstm_kernels.cuda.device.runtime import Device
from gpulstm_kernels.cuda.walks.grid import host as grid_host

CASES = 13  # of each of 26 combinations: more than 300 in all
COMBINATIONS = [
    (walk, kind, cell)
    for walk in ("step", "block", "grid")
    for kind in KINDS
    for cell in CELLS
    if walk == "step" or kind != "float64"
]
# sizes of which a lane of the persistent walks holds the most, and at which warps have several shares
LARGE = {"float32": 80, "tf32": 96, "float16": 128, "bfloat16": 128}
OVER_WARPS = 136


def hidden_size(walk: str, kind: str, cell: str, case: int, rng: np.random.Generator) -> int:
    """Few numbers of chunks, since each is another kernel to compile."""
    if walk != "step" and cell == "lstm" and case == 0:
        return LARGE[kind] if walk == "block" else OVER_WARPS
    low, high = ((1, 16), (33, 64))[rng.integers(2)]
    return int(rng.integers(low, high + 1))


def random_device(device: Device, p: problems.Problem, walk: str, rng: np.random.Generator) -> Device:
    """One with fewer multiprocessors, as few as the grid walk can do with: each block then walks several tiles."""
    devices = [dataclasses.replace(device, multiprocessors=count) for count in range(1, device.multiprocessors + 1)]
    if walk == "grid":
        shape = p.shape(training=True)
        fitting = [d for d in devices if isinstance(grid_host.plan(d, shape, False), grid_host.GridPlan)]
        devices = [d for d in fitting if isinstance(grid_host.plan(d, shape, True), grid_host.GridPlan)]
    return devices[int(rng.integers(min(len(devices), 40)))]


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize(("walk", "kind", "cell"), [pytest.param(*names, id="-".join(names)) for names in COMBINATIONS])
def test_random_cases(
    runtime: Any, walk: str, kind: str, cell: str, case: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng([zlib.crc32(f"{walk} {kind} {cell}".encode()), case])
    monkeypatch.setenv("GPULSTM_WALK", walk)
    monkeypatch.setattr(precision, "_allowed", kind == "tf32")
    hidden, directions = hidden_size(walk, kind, cell, case, rng), int(rng.integers(1, 3))
    sizes: dict[str, Any] = {
        "steps": int(rng.integers(1, 7)),
        "batch": int(rng.integers(1, 41)),
        "inputs": int(rng.integers(1, 20)),
        "projection": int(rng.integers(1, hidden + 1)) if walk == "step" and rng.integers(2) else 0,
        "bias": bool(rng.integers(2)),
        "ragged": bool(rng.integers(2)),
    }
    p = problems.layer_problem(cell, dtype_of(kind), hidden=hidden, directions=directions, seed=case, **sizes)
    there, label = runtime, f"hidden={hidden} directions={directions} {sizes}"
    if type(runtime).__name__ == "EmulatedRuntime":
        device = random_device(runtime.device(), p, walk, rng)
        there = type(runtime)(device, seed=case + 1)
        label += f" multiprocessors={device.multiprocessors}"
    check(there, p, kind, label)
