"""Options of recurrent layers that no kernel knows of: dropped weights, inputs of several shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import problems
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import io, nn


def test_gradients_of_inputs_of_different_shapes() -> None:
    """One for each row and one for each unit, where as many rows as units could be taken for either."""

    @gpulstm.cells.cell(gates="a", inputs="row unit", differentiable="row unit")
    def two_shapes(x: Any, s: Any, i: Any) -> Any:
        return gpulstm.cells.tanh(x.a * i.row + i.unit), {}

    net = nn.Recurrent(two_shapes, 2, 3, 2, batch_first=True, dtype="float64", seed=0)
    rng = np.random.default_rng(0)
    n = problems.network(net, steps=4, batch=3)
    inputs = {"row": rng.uniform(size=(3, 4)), "unit": rng.uniform(size=(3, 4, 3))}
    expected = problems.network_differences(n, inputs=inputs, backend="reference")
    for name, value in problems.network_gradients(n, inputs=inputs, backend="reference").items():
        assert value.shape == expected[name].shape
        assert_close(value, expected[name], "differences", "float64", name)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.3, "bidirectional": True}, {"heads": 2}])
def test_dropped_recurrent_weights(options: dict[str, Any]) -> None:
    net = nn.Recurrent("gru", 3, 4, weight_dropout=0.4, **options, dtype="float64", seed=0)
    n = problems.network(net, steps=4, batch=3, ragged=True)
    given: dict[str, Any] = {"rng": 5, "backend": "reference"}
    expected = problems.network_differences(n, **given)
    found = problems.network_gradients(n, **given)
    for name, value in found.items():
        assert_close(value, expected[name], "differences", "float64", name)
    dropped = found["weight_hh_l0"] == 0
    assert 0.2 < dropped.mean() < 0.6
    # The others count as 1 / (1 - p) of themselves, in that call alone.
    plain = nn.Recurrent("gru", 3, 4, **options, dtype="float64", seed=0)
    y, _ = net(n.x, n.state, backend="reference")
    np.testing.assert_array_equal(y, plain(n.x, n.state, backend="reference")[0])
    if not options:
        plain.params["weight_hh_l0"] = np.where(dropped, 0, net.params["weight_hh_l0"] / 0.6)
        (y, _), _ = net.vjp(n.x, n.state, **given)
        np.testing.assert_allclose(y, plain(n.x, n.state, backend="reference")[0], rtol=1e-12)


def test_dropped_recurrent_weights_are_named() -> None:
    assert repr(gpulstm.LSTM(3, 4, weight_dropout=0.5)) == "LSTM(3, 4, weight_dropout=0.5)"
    with pytest.raises(ValueError, match=r"weight_dropout: expected a number in \[0, 1\), got 1"):
        gpulstm.LSTM(3, 4, weight_dropout=1)
    with pytest.raises(ValueError, match="weight_dropout: expected 0 with cell 'mingru', which has no recurrent"):
        nn.Recurrent("mingru", 3, 4, weight_dropout=0.5)


def test_dropped_recurrent_weights_in_a_file(tmp_path: Path) -> None:
    io.save_safetensors(gpulstm.LSTM(3, 4, weight_dropout=0.25, seed=0), tmp_path / "m.safetensors")
    assert io.load_safetensors(tmp_path / "m.safetensors").config.weight_dropout == 0.25
