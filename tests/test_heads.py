"""Recurrent weights of blocks on a diagonal: heads that see their own units alone."""

from __future__ import annotations

from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
from problems import Arrays
from tolerances import assert_close

import gpulstm
from gpulstm import arrays, nn
from gpulstm_kernels import reference
from gpulstm_kernels.cpu import layer
from gpulstm_kernels.cpu.packing import layouts

# Units of a head that are whole panels of both walks, of the one forward alone, and of neither.
SHAPES: dict[str, dict[str, Any]] = {
    "panels of both": {"hidden": 256, "heads": 2, "steps": 3, "batch": 9, "inputs": 5, "ragged": True},
    "panels forward": {"hidden": 96, "heads": 3, "steps": 4, "batch": 5, "inputs": 3, "directions": 2},
    "none": {"hidden": 15, "heads": 5, "steps": 4, "batch": 3, "inputs": 3, "ragged": True},
    "one sequence": {"hidden": 128, "heads": 4, "steps": 20, "batch": 1, "inputs": 3},
    "one step": {"hidden": 64, "heads": 2, "steps": 1, "batch": 2, "inputs": 3},
    "resets": {"hidden": 128, "heads": 2, "steps": 5, "batch": 6, "inputs": 3, "directions": 2, "resets": True},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        ("lstm", "float32"),
        ("gru", "float32"),
        pytest.param("lstm", "float64", marks=pytest.mark.slow),
        pytest.param("slstm", "float32", marks=pytest.mark.slow),
        pytest.param("peephole", "float64", marks=pytest.mark.slow),
    ],
)
def test_equals_the_reference_on_any_number_of_threads(cell: str, dtype: str, shape: str) -> None:
    p = problems.layer_problem(cell, dtype, **SHAPES[shape])
    expected, first = layer_checks.solved(p), Arrays()
    for count, split in ((1, "batch"), (2, "batch"), (2, "units"), (3, "units")):
        with arrays.poison(), problems.threads(count, split):
            found = layer_checks.check(layer, p, "kernel", f"{shape}, {count} threads, {split}", expected)
        first = first or found
        for name, value in found.items():
            np.testing.assert_array_equal(value, first[name], name)


def test_a_matrix_with_zeros_beside_its_blocks_computes_the_same() -> None:
    p = problems.layer_problem("gru", "float64", hidden=6, heads=3, directions=2, ragged=True)
    whole = [w | {"weight_hh": layouts.whole(w["weight_hh"])} for w in p.weights]
    expected = layer_checks.computed(reference, p._replace(weights=whole))
    for name, value in layer_checks.computed(reference, p).items():
        right = layouts.blocks_of(expected[name], 3) if "weight_hh" in name else expected[name]
        assert_close(value, right, "kernel", "float64", name)


def test_of_a_layer() -> None:
    net = nn.Recurrent("slstm", 3, 8, 2, heads=4, bidirectional=True, seed=0)
    assert net.params["weight_hh_l1_reverse"].shape == (4, 8, 2)
    assert net.params["bias_hh_l0"].shape == (32,)
    assert repr(net) == "Recurrent('slstm', 3, 8, num_layers=2, bidirectional=True, heads=4)"
    ours = gpulstm.LSTM(3, 8, heads=1, seed=0)
    assert ours.params["weight_hh_l0"].shape == (32, 8)


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        ("lstm", {"heads": 3}, ValueError, "heads: expected a divisor of hidden_size = 8, got 3"),
        ("lstm", {"heads": 0}, ValueError, "heads: expected an integer >= 1, got 0"),
        ("lstm", {"heads": 2.0}, TypeError, "heads: expected an integer >= 1, got 2.0"),
        ("lstm", {"heads": 2, "proj_size": 4}, ValueError, "heads: expected 1 with a projection, got 2"),
        ("mingru", {"heads": 2}, ValueError, "heads: expected 1 with cell 'mingru', which has no recurrent product"),
    ],
)
def test_wrong_heads(cell: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nn.Recurrent(cell, 3, 8, **options)
