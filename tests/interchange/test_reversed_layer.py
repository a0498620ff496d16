"""nn.Reversed against torch: the second direction of a bidirectional layer, alone; and its gradients by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
import torch
from tolerances import assert_close

import gpulstm
from gpulstm import nn


@pytest.mark.parametrize("kind", ["LSTM", "RNN"], ids=["LSTM", "RNN-float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_is_the_second_direction_of_torch(kind: str, batch_first: bool, ragged: bool) -> None:
    ours = getattr(gpulstm, kind)(4, 5, batch_first=batch_first, dtype="float64", seed=0)
    theirs = getattr(torch.nn, kind)(4, 5, batch_first=batch_first, bidirectional=True, dtype=torch.float64)
    weights = {f"{name}_reverse": torch.from_numpy(value) for name, value in ours.params.items()}
    theirs.load_state_dict(theirs.state_dict() | weights)
    n = problems.network(ours, steps=6, batch=3, ragged=ragged)
    x = torch.tensor(n.x, requires_grad=True)
    begin = [torch.from_numpy(np.concatenate([np.zeros_like(part), part])) for part in problems.parts(n.state)]
    given: Any = x
    if n.lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(n.lengths), batch_first=batch_first, enforce_sorted=False
        )
    y, final = theirs(given, tuple(begin) if len(begin) > 1 else begin[0])
    if n.lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=batch_first)
    expected = [y[..., 5:], *(part[1:] for part in problems.parts(final))]
    upstream = [n.dy, *problems.parts(n.dstate)]
    sum((a * torch.from_numpy(b)).sum() for a, b in zip(expected, upstream, strict=True)).backward()  # type: ignore[union-attr]

    model = nn.Reversed(ours)
    (y, state), pullback = model.vjp(n.x, n.state, n.lengths)
    for a, b in zip([y, *problems.parts(state)], expected, strict=True):
        assert_close(a, b.detach(), "torch", "float64")
    np.testing.assert_array_equal(model(n.x, n.state, n.lengths)[0], y)
    dx, _, grads = pullback(n.dy, n.dstate)
    assert x.grad is not None
    assert_close(dx, x.grad, "torch", "float64")
    for name, value in grads.items():
        assert_close(value, theirs.get_parameter(f"{name}_reverse").grad, "torch", "float64", name)


@pytest.mark.parametrize("batch", [0, 2])
def test_gradients_by_differences(batch: int) -> None:
    layer = gpulstm.LSTM(3, 4, 2, dtype="float64", seed=0)
    n = problems.network(layer, steps=4, batch=batch, ragged=bool(batch))._replace(layer=nn.Reversed(layer))
    expected = problems.network_differences(n)
    for name, value in problems.network_gradients(n).items():
        assert_close(value, expected[name], "differences", "float64", name)


def test_in_a_model_and_without_upstream() -> None:
    model = nn.Sequential(nn.Reversed(gpulstm.LSTM(3, 4, seed=0)), nn.Linear(4, 2, seed=1))
    assert next(iter(model.params)) == "0.weight_ih_l0"
    x = np.ones((5, 2, 3), np.float32)
    _, pullback = model.vjp(x, lengths=[5, 2])
    dx, _, _ = pullback(np.ones((5, 2, 2), np.float32))
    assert not dx[2:, 1].any()
    assert repr(model.layers[0]) == "Reversed(LSTM(3, 4))"
    _, pullback = model.layers[0].vjp(x)
    dx, _, grads = pullback()
    assert not dx.any()
    assert not grads["weight_ih_l0"].any()
    assert model.layers[0].to("cpu").device == "cpu"


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"layer: expected a recurrent layer such as gpulstm.LSTM, got Linear"):
        nn.Reversed(nn.Linear(2, 2))  # type: ignore[arg-type]
    model = nn.Reversed(gpulstm.LSTM(3, 4))
    x = np.ones((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match="expected 0 <= length <= 5"):
        model(x, lengths=[6, 1])
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 3\) or \(T, 3\), got \(5, 2, 2\)"):
        model(x[..., :2])
    _, pullback = model.vjp(x)
    with pytest.raises(ValueError, match=r"dy: expected shape \(5, 2, 4\)"):
        pullback(x)
