"""Heads on the emulator, by each walk: outputs, states and every gradient against the reference."""

from __future__ import annotations

from typing import Any

import device_cells
import layer_checks
import numpy as np
import problems
import pytest
from problems import Problem

from gpulstm import cells
from gpulstm_kernels.cpu.packing import layouts
from gpulstm_kernels.cuda import layer, select
from gpulstm_kernels.cuda.device import precision
from gpulstm_kernels.cuda.walks import block_host, grid_host

from .runtime import H200, EmulatedRuntime

pytestmark = pytest.mark.emulator

PERSISTENT = {"block": block_host, "grid": grid_host}
WALKS = ("step", *PERSISTENT)
EVERYTHING: dict[str, Any] = {"steps": 5, "batch": 3, "directions": 2, "ragged": True, "resets": True}
# Units of a head: odd, of vector accesses, one, more than a block's warp owns, and of several chunks.
SIZES: dict[str, dict[str, Any]] = {
    "odd": {"hidden": 15, "heads": 5, **EVERYTHING},
    "vectors": {"hidden": 16, "heads": 2, "batch": 9, "scalar_inputs": True, "bias": False},
    "one unit each": {"hidden": 6, "heads": 6, **EVERYTHING},
    "several warps": {"hidden": 78, "heads": 3, **EVERYTHING},
    "no bias": {"hidden": 34, "heads": 2, **EVERYTHING, "batch": 17, "bias": False},
    "one step": {"hidden": 12, "heads": 3, "steps": 1, "batch": 1, "directions": 2},
}
CELLS = ["lstm", "gru", "slstm", "time_gap", device_cells.all_parts]


def problem(cell: Any, dtype: str, size: str) -> Problem:
    """A sequence without a step is among those of different lengths; the sLSTM's n starts above 0."""
    p = problems.layer_problem(cell, dtype, inputs=3, **SIZES[size])
    if p.lengths is not None:
        p.lengths[int(np.argmin(p.lengths))] = 0
        p.resets[...] &= np.arange(len(p.x))[:, None] < p.lengths
    if p.cell.name == "slstm":
        h, c, n, m = p.state
        p = p._replace(state=(h, c, np.abs(n) + n.dtype.type(0.5), m))
    return p


def check(p: Problem, label: str, what: str = "cuda") -> None:
    runtime = EmulatedRuntime(seed=1)  # threads in any order: heads must not write what is another's
    assert layer.why_not(p.shape()) is None
    layer_checks.check(layer_checks.OnDevice(layer, runtime, runtime=runtime), p, what, label)


def named(value: Any) -> Any:
    """How a test is called that takes ``value``."""
    return getattr(value, "name", value if isinstance(value, str) else None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cell", CELLS, ids=named)
def test_equals_the_reference(walk: str, cell: Any, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    check(problem(cell, "float32", size), size)


@pytest.mark.parametrize("size", ["odd", "vectors", "several warps"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("walk", "dtype"),
    [("step", "float64"), *((walk, dtype) for walk in WALKS for dtype in ("float16", "bfloat16"))],
)
def test_other_types(walk: str, dtype: str, cell: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    check(problem(cell, dtype, size), size)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_products_in_tf32(walk: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    monkeypatch.setattr(precision, "_allowed", True)
    check(problem(cell, "float32", "several warps"), "tf32", "cuda tf32")


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_equal_a_matrix_with_zeros_beside_its_blocks(walk: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same walk, which then sums the same numbers, and zeros."""
    monkeypatch.setenv("GPULSTM_WALK", walk)
    runtime = EmulatedRuntime()
    backend = layer_checks.OnDevice(layer, runtime, runtime=runtime)
    p = problem(cell, "float32", "odd")
    whole = p._replace(weights=[w | {"weight_hh": layouts.whole(w["weight_hh"])} for w in p.weights])
    expected = layer_checks.computed(backend, whole)
    for name, value in layer_checks.computed(backend, p).items():
        right = layouts.blocks_of(expected[name], 5) if "weight_hh" in name else expected[name]
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("walk", WALKS)
def test_calls_that_are_replayed_are_the_first_one(walk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    runtime = EmulatedRuntime()
    backend = layer_checks.OnDevice(layer, runtime, runtime=runtime)
    p = problem("gru", "float32", "vectors")
    first = layer_checks.computed(backend, p)
    for _ in range(3):
        for name, value in layer_checks.computed(backend, p).items():
            np.testing.assert_array_equal(value, first[name], name)


def test_a_step_has_one_product_whatever_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")
    counts = []
    for heads in (1, 4):
        runtime, products = EmulatedRuntime(), []
        gemm = runtime.gemm
        runtime.gemm = lambda *args, gemm=gemm, products=products, **options: (  # type: ignore[method-assign]
            products.append(args[2].shape),
            gemm(*args, **options),
        )
        p = problems.layer_problem("lstm", "float32", steps=7, hidden=8, heads=heads, directions=2)
        problems.outputs(layer_checks.OnDevice(layer, runtime, runtime=runtime), p)
        counts.append((len(products), runtime.launches))
    assert counts[0] == counts[1]


def test_a_walk_asks_whether_a_head_fits() -> None:
    whole, apart = (problems.layer_shape("lstm", "float16", steps=512, batch=16, hidden=1024, heads=n) for n in (1, 8))
    for backward in (False, True):
        reason = block_host.why_not(H200, whole, backward)
        assert reason is not None
        assert "hold weight_hh up to hidden_size 128 in float16" in reason
        plan = block_host.plan(H200, apart, backward)
        of_one = block_host.plan(H200, apart._replace(hidden=128, outputs=128, heads=1), backward)
        assert not isinstance(plan, str)
        assert not isinstance(of_one, str)
        assert (plan.threads, plan.shared) == (of_one.threads, of_one.shared)
        assert plan.grid == (2, 1, 8)
        assert select.choose(H200, apart, backward, WALKS).walk == "block"
    four = apart._replace(heads=4)
    assert "up to 128 units of a head in float16" in str(block_host.why_not(H200, four, False))
    assert select.choose(H200, four, False, WALKS).walk == "grid"
    assert "264 blocks must be resident" in str(
        grid_host.why_not(H200, four._replace(hidden=2112, outputs=2112), False)
    )


def test_what_was_measured_was_of_one_head(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"dtype": "float32", "cell": "lstm", "directions": 1, "hidden": 64, "batch": 16, "backward": false, '
    text = f'{{"device": "{H200.name}", "entries": [{text}"walk": "step", "us": 0.1}}]}}'
    (tmp_path / "table.json").write_text(text)
    monkeypatch.setenv("GPULSTM_MEASURED", str(tmp_path / "table.json"))
    shape = problems.layer_shape("lstm", steps=100, batch=16, hidden=64)
    assert "measured on" in select.choose(H200, shape, False, WALKS).reason
    assert "estimated" in select.choose(H200, shape._replace(heads=2), False, WALKS).reason


def test_the_backend_says_how_it_walks() -> None:
    shape = problems.layer_shape("slstm", steps=100, batch=16, hidden=256, heads=4)
    told = layer.describe(shape, EmulatedRuntime())
    assert "inference: block walk of 4 heads, estimated" in told
    assert "block walk of 4 heads" not in layer.describe(shape._replace(heads=1), EmulatedRuntime())


@pytest.mark.parametrize("walk", sorted(PERSISTENT))
def test_persistent_walks_refuse_heads_of_cells_with_stages(walk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step walk takes them, whose tests are those of stages."""
    shape = problems.layer_shape(cells.get("gru_reset_before"), hidden=8, heads=2)
    runtime = EmulatedRuntime()
    reason = {
        "block": "its blocks of cells with stages multiply h by a whole matrix, not by one a head",
        "grid": "it has no stages within a step, which the cell's products and means cut",
    }[walk]
    for backward in (False, True):
        assert PERSISTENT[walk].why_not(H200, shape._replace(training=backward), backward) == reason
        with pytest.raises(ValueError, match=f"walk: '{walk}' cannot walk this: {reason}"):
            select.choose(runtime.device(), shape, backward, runtime.walks, walk)
    assert layer.why_not(shape) is None
    told = layer.describe(shape, runtime)
    assert told.count("step walk of 2 heads") == 2
    assert f"{walk}: {reason}" in told
