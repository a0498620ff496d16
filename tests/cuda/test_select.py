"""Which walk is chosen, on devices that nobody has at hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import problems
import pytest

from gpulstm import cells
from gpulstm_kernels.backend import LayerShape
from gpulstm_kernels.cuda import measured, select
from gpulstm_kernels.cuda.device.runtime import Device
from gpulstm_kernels.cuda.walks.block import host as block_host
from gpulstm_kernels.cuda.walks.grid import host as grid_host

ml_dtypes = pytest.importorskip("ml_dtypes")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WALKS = ("step", "block", "grid")
KIBIBYTE = 1024

H200 = Device("NVIDIA H200", 90, 132, 227 * KIBIBYTE, 228 * KIBIBYTE, 65536, 2048)
B200 = Device("NVIDIA B200", 100, 148, 227 * KIBIBYTE, 228 * KIBIBYTE, 65536, 2048)
ADA = Device("NVIDIA GeForce RTX 4090", 89, 128, 99 * KIBIBYTE, 100 * KIBIBYTE, 65536, 1536)
T4 = Device("Tesla T4", 75, 40, 64 * KIBIBYTE, 64 * KIBIBYTE, 65536, 1024)
TINY = Device("tiny", 86, 2, 99 * KIBIBYTE, 100 * KIBIBYTE, 65536, 1536)
CRAMPED = replace(H200, name="cramped", shared_per_block=1 * KIBIBYTE)
DEVICES = [H200, B200, ADA, T4, TINY, CRAMPED]

SMALL = problems.layer_shape(steps=100, batch=16, inputs=64, hidden=64)


@pytest.fixture(autouse=True)
def _nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPULSTM_WALK", raising=False)
    monkeypatch.delenv("GPULSTM_MEASURED", raising=False)


def sized(hidden: int, batch: int, **changes: Any) -> LayerShape:
    return SMALL._replace(hidden=hidden, outputs=hidden, batch=batch, **changes)


def walk(device: Device, problem: LayerShape, backward: bool = False, **options: Any) -> str:
    return select.choose(device, problem, backward, WALKS, **options).walk


def shapes() -> Iterator[LayerShape]:
    for dtype, tf32 in (("float32", False), ("float32", True), ("float16", False), (BFLOAT16, False)):
        for hidden in (1, 8, 33, 80, 128, 129, 256, 520, 1024, 2048, 4096):
            for batch in (1, 8, 9, 64, 1000, 5000):
                for directions in (1, 2):
                    for name in ("lstm", "rnn"):
                        kind = {"dtype": np.dtype(dtype), "tf32": tf32, "cell": cells.get(name)}
                        yield sized(hidden, batch, directions=directions, **kind)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_what_is_chosen_fits_the_device(device: Device) -> None:
    for problem in shapes():
        for backward in (False, True):
            chosen = walk(device, problem, backward)
            if chosen == "step":
                continue
            plan = {"block": block_host, "grid": grid_host}[chosen].plan(device, problem, backward)
            assert not isinstance(plan, str)
            assert plan.threads <= 1024
            assert plan.shared <= device.shared_per_block
            own = KIBIBYTE if device.capability >= 80 else 0  # what CUDA itself takes of each block
            assert plan.shared + own <= device.shared_per_multiprocessor


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_a_cooperative_launch_is_never_larger_than_what_is_resident(device: Device) -> None:
    """One block a multiprocessor is certain; the kernels are compiled for that many registers."""
    planned = 0
    for problem in shapes():
        for backward in (False, True):
            plan = grid_host.plan(device, problem, backward)
            if not isinstance(plan, str):
                assert math.prod(plan.grid) <= device.multiprocessors
                planned += 1
    assert planned > 0 or device in (TINY, CRAMPED)


def test_the_regions_of_the_walks() -> None:
    half = {"dtype": BFLOAT16}
    assert walk(H200, sized(64, 16, **half)) == "block"
    assert walk(H200, sized(512, 16, **half)) == "grid"
    assert walk(H200, sized(1024, 16, **half)) == "grid"
    assert walk(H200, sized(1024, 4096, **half)) == "step"
    assert walk(H200, sized(4096, 16, **half)) == "step"
    assert walk(TINY, sized(512, 16, **half)) == "step"
    assert walk(H200, sized(512, 64)) == "grid"
    assert walk(H200, sized(512, 64), backward=True) == "step"


def test_what_only_the_step_walk_does() -> None:
    assert walk(H200, sized(64, 16, projected=True)) == "step"
    assert walk(H200, sized(64, 16, dtype=np.dtype("float64"))) == "step"
    assert walk(T4, sized(64, 16, dtype=np.dtype("float16"))) == "block"
    for kind in ({"dtype": BFLOAT16}, {"tf32": True}):
        chosen = select.choose(T4, sized(64, 16, **kind), False, WALKS)
        assert chosen.walk == "step"
        assert "from compute capability 8.0 on, this is 7.5" in chosen.reason


def test_only_what_the_runtime_has() -> None:
    assert select.choose(H200, sized(512, 16), False, ("step", "block")).walk == "step"
    assert select.choose(H200, SMALL, False, ("step",)) == ("step", "which takes any size and type")


def test_one_step_is_not_worth_a_persistent_walk() -> None:
    assert walk(H200, sized(256, 16, steps=1)) == "step"
    assert walk(H200, sized(256, 16, steps=100)) == "grid"


def test_more_blocks_than_fit_at_once_wait() -> None:
    few, many = (select.choose(H200, sized(64, batch), False, ("step", "block")).reason for batch in (1024, 40_000))
    assert "block 2.8" not in few
    assert float(many.split(":")[1].split(" us")[0]) > 8 * float(few.split(":")[1].split(" us")[0])


# --- asked for ----------------------------------------------------------------------------------------------------


def test_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.choose(H200, SMALL, False, WALKS, override="grid") == ("grid", "asked for by walk=")
    monkeypatch.setenv("GPULSTM_WALK", "step")
    assert select.choose(H200, SMALL, False, WALKS) == ("step", "asked for by GPULSTM_WALK")
    assert walk(H200, SMALL, override="grid") == "grid"
    monkeypatch.setenv("GPULSTM_WALK", "")
    assert walk(H200, SMALL) == "block"


def test_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="walk: unknown walk 'gird'; known walks: step, block, grid"):
        walk(H200, SMALL, override="gird")
    with pytest.raises(ValueError, match="walk: 'block' cannot walk this: it has no projection"):
        walk(H200, SMALL._replace(projected=True), override="block")
    monkeypatch.setenv("GPULSTM_WALK", "grid")
    with pytest.raises(ValueError, match=r"walk: 'grid' cannot walk this: .* multiprocessors"):
        walk(TINY, SMALL)
    with pytest.raises(ValueError, match="unknown walk 'grid'; known walks: step, block"):
        select.choose(H200, SMALL, False, ("step", "block"))


# --- measured -----------------------------------------------------------------------------------------------------


def entry(hidden: int, batch: int, walk: str, us: float, **changes: Any) -> dict[str, Any]:
    sizes = {"directions": 1, "hidden": hidden, "batch": batch, "backward": False, "walk": walk, "us": us}
    return {"dtype": "float32", "cell": "lstm"} | sizes | changes


def table(folder: Path, *entries: dict[str, Any], device: str = H200.name, name: str = "own.json") -> str:
    path = folder / name
    path.write_text(json.dumps({"device": device, "entries": entries}))
    return str(path)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets ``GPULSTM_MEASURED`` name a table of some entries."""
    made = iter(range(100))

    def write(*entries: dict[str, Any], device: str = H200.name) -> None:
        path = table(tmp_path, *entries, device=device, name=f"{next(made)}.json")
        monkeypatch.setenv("GPULSTM_MEASURED", path)

    return write


def test_the_measured_decides(measure: Any) -> None:
    measure(
        *(entry(64, 16, "step", 2), entry(64, 16, "block", 3), entry(64, 16, "grid", 4)),
        *(entry(64, 16, "step", 9, backward=True), entry(64, 16, "grid", 7, backward=True)),
    )
    reason = "measured on NVIDIA H200 at hidden_size 64, batch 16: 2 us a step; block 3; grid 4"
    assert select.choose(H200, SMALL, False, WALKS) == ("step", reason)
    assert walk(H200, SMALL, backward=True) == "grid"
    assert walk(ADA, SMALL) == "block"
    assert walk(H200, SMALL, override="block") == "block"


def test_the_nearest_size_by_ratio(measure: Any) -> None:
    measure(entry(40, 16, "step", 1), entry(64, 8, "grid", 1), entry(100, 16, "block", 1))
    assert walk(H200, sized(45, 16)) == "step"
    assert walk(H200, sized(64, 10)) == "grid"
    assert walk(H200, sized(80, 16)) == "block"
    assert walk(H200, sized(64, 16)) == "block"
    assert walk(H200, sized(64, 500)) == "block"  # the model: too far from all of them
    assert "estimated" in select.choose(H200, sized(64, 500), False, WALKS).reason


def test_only_walks_that_fit_are_compared(measure: Any) -> None:
    measure(entry(128, 16, "block", 1, dtype="bfloat16"), entry(128, 16, "grid", 2, dtype="bfloat16"))
    assert walk(H200, sized(128, 16, dtype=BFLOAT16)) == "block"
    assert walk(H200, sized(136, 16, dtype=BFLOAT16)) == "grid"


@pytest.mark.parametrize(
    "other", [{"dtype": "tf32"}, {"dtype": "float16"}, {"cell": "rnn"}, {"directions": 2}, {"backward": True}]
)
def test_measurements_of_something_else(measure: Any, other: dict[str, Any]) -> None:
    measure(entry(64, 16, "step", 1, **other))
    assert "estimated" in select.choose(H200, SMALL, False, WALKS).reason


def test_tables_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measure: Any) -> None:
    assert measured.file_name("NVIDIA GeForce RTX 4090 (D)") == "nvidia-geforce-rtx-4090-d.json"
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "measured.py"))
    (tmp_path / "measured").mkdir()
    table(tmp_path / "measured", entry(64, 16, "grid", 1), name="nvidia-h200.json")
    assert [found.walk for found in measured.entries(H200.name, None)] == ["grid"]
    measure(entry(64, 16, "step", 1), device=ADA.name)
    own = select.os.environ["GPULSTM_MEASURED"]
    assert [found.walk for found in measured.entries(H200.name, own)] == ["grid"]  # one's own is of another device
    assert [found.walk for found in measured.entries(ADA.name, own)] == ["step"]
    assert measured.entries(T4.name, own) == ()


def test_the_tables_in_the_package_can_be_read() -> None:
    for path in Path(measured.__file__).parent.glob("measured/*.json"):
        device = json.loads(path.read_text())["device"]
        assert measured.file_name(device) == path.name
        assert measured.entries(device, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"us": -1}, "us: expected float, got -1"),
        ({"us": "1"}, "us: expected float, got '1'"),
        ({"hidden": 64.0}, "hidden: expected int, got 64.0"),
        ({"backward": 0}, "backward: expected bool, got 0"),
        ({"batch": 0}, "batch: expected int, got 0"),
    ],
)
def test_tables_with_mistakes(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = table(tmp_path, entry(64, 16, "step", 1), entry(64, 16, "step", 1) | change)
    with pytest.raises(ValueError, match=f"own.json: not a table of measured walks: .*{expected}"):
        measured.entries(H200.name, path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"device": 1, "entries": []}', '{"device": "x", "entries": [{}]}', "[" * 100_000]
)
def test_files_that_are_no_tables(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a table of measured walks"):
        measured.entries(H200.name, str(path))
    with pytest.raises(FileNotFoundError):
        measured.entries(H200.name, str(tmp_path / "none.json"))
