"""The float64 reference against central finite differences, and its textbook cells against the cells' own maths."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import cells
from gpulstm_kernels import reference


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize(("cell", "projection"), [("lstm", 0), ("lstm", 3), ("rnn", 0), ("rnn", 2)])
def test_one_layer(cell: str, projection: int, bias: bool, directions: int, ragged: bool) -> None:
    p = problems.layer_problem(cell, projection=projection, bias=bias, directions=directions, ragged=ragged)
    _, tape = problems.outputs(reference, p, training=True)
    found = problems.gradients(reference, p, tape)
    expected = problems.layer_differences(reference, p)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], "differences", "float64", name)


@pytest.mark.parametrize(
    ("kind", "options", "call"),
    [
        ("LSTM", {"num_layers": 2, "dropout": 0.4, "bidirectional": True}, {"ragged": True}),
        ("LSTM", {"num_layers": 3, "dropout": 0.3, "proj_size": 2, "batch_first": True}, {}),
        ("LSTM", {"num_layers": 2, "bias": False, "proj_size": 2, "bidirectional": True}, {"batch": 0}),
        ("LSTM", {}, {"steps": 1, "batch": 1}),
        ("RNN", {"num_layers": 3, "dropout": 0.4, "bidirectional": True}, {"ragged": True}),
        ("RNN", {"num_layers": 2, "dropout": 0.5, "batch_first": True, "bias": False}, {"ragged": True}),
        ("RNN", {"bidirectional": True}, {"batch": 0}),
    ],
)
def test_networks(kind: str, options: dict[str, Any], call: dict[str, Any]) -> None:
    """Stacks, dropout with fixed masks, layouts: the whole way through the layer."""
    layer = getattr(gpulstm, kind)(3, 4, **options, dtype="float64", seed=1)
    with gpulstm.use_backend("reference"):
        n = problems.network(layer, **call)
        found, expected = problems.network_gradients(n, rng=5), problems.network_differences(n, rng=5)
    for name in expected:
        assert_close(found[name], expected[name], "differences", "float64", name)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_textbook_cell_is_the_cell(cell: str) -> None:
    """What the reference prints and what the kernels compile are the same functions."""
    declared = cells.get(cell)
    count = len(declared.gates)
    rng = np.random.default_rng(0)
    batch, hidden = 5, 6
    gates = 3 * rng.standard_normal((batch, count * hidden))
    states = tuple(rng.standard_normal((batch, hidden)) for _ in declared.states)
    textbook = getattr(reference, f"{cell}_forward")(gates, states)
    h, new, saved = declared.module.forward(np.split(gates, count, axis=1), states)
    for ours, theirs in zip((h, *new, *saved), (textbook[0], *textbook[1], *textbook[2]), strict=True):
        assert_close(ours, theirs, "cell", "float64")
    assert len(saved) == declared.saved

    dh = rng.standard_normal((batch, hidden))
    dstates = tuple(rng.standard_normal((batch, hidden)) for _ in declared.states)
    arguments = dh, dstates, h, saved, new, states
    dgates, dprevious = declared.module.backward(*arguments)
    expected, expected_previous = getattr(reference, f"{cell}_backward")(*arguments)
    assert_close(np.concatenate(dgates, axis=1), expected, "cell", "float64")
    for ours, theirs in zip(dprevious, expected_previous, strict=True):
        assert_close(ours, theirs, "cell", "float64")


def test_sigmoid_over_the_whole_range() -> None:
    x = np.array([-np.inf, -1000.0, -1.0, 0.0, 1.0, 1000.0, np.inf])
    expected = [0.0, 0.0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1.0, 1.0]
    assert_close(reference.sigmoid(x), expected, "cell", "float64")
    assert np.isnan(reference.sigmoid(np.array([np.nan]))).all()


def test_nothing_is_kept_for_inference_and_the_tape_is_not_changed() -> None:
    p = problems.layer_problem("lstm", projection=3, directions=2, ragged=True)
    inference, tape = problems.outputs(reference, p, training=False)
    assert all(not steps for steps in tape.steps)
    training, tape = problems.outputs(reference, p, training=True)
    for name in inference:
        np.testing.assert_array_equal(inference[name], training[name])
    first, second = problems.gradients(reference, p, tape), problems.gradients(reference, p, tape)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
