"""What gpulstm.torch.Recurrent, and the operator for any cell, refuse, and how."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cell_problems import Problem
from torch import Tensor

from gpulstm.torch import Recurrent, operator

X, GAP = torch.randn(5, 2, 3), torch.rand(5, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "inputs: expected a dict with gap, which cell 'time_gap' declares, got none"),
        ({"inputs": {}}, ValueError, r"inputs: expected a dict with gap.*missing \['gap'\], left over \[\]"),
        ({"inputs": {"gap": GAP, "x": X}}, ValueError, r"missing \[\], left over \['x'\]"),
        ({"inputs": GAP}, TypeError, "inputs: expected a dict of tensors, got Tensor"),
        (
            {"inputs": {"gap": GAP.T}},
            ValueError,
            r"inputs\['gap'\]: expected shape \(5, 2\) or \(5, 2, 1\) or",
        ),
        ({"inputs": {"gap": GAP.double()}}, TypeError, r"inputs\['gap'\]: expected dtype torch.float32"),
        ({"inputs": {"gap": GAP.numpy()}}, TypeError, r"inputs\['gap'\]: expected a tensor, got ndarray"),
        ({"resets": GAP}, TypeError, "resets: expected a tensor of bools, got torch.float32"),
        ({"resets": [[True]]}, TypeError, "resets: expected a tensor of bools, got list"),
        (
            {"resets": GAP.T > 0},
            ValueError,
            r"resets: expected shape \(5, 2\), a bool a step and .* got \(2, 5\)",
        ),
        ({"lengths": torch.tensor([1, 6])}, ValueError, "lengths: expected 0 <= length <= 5"),
        ({"lengths": torch.tensor([1])}, ValueError, r"lengths: expected shape \(2,\), one a sequence, got \(1,\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths: expected integers, got torch.float32"),
        ({"state": torch.zeros(1, 2, 4)}, TypeError, r"state: expected 2 tensors, \(h, c\), got Tensor"),
        ({"x": X[..., :2]}, ValueError, r"x: expected shape \(T, B, 3\) or \(T, 3\)"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"inputs": {"gap": GAP}} if options.keys() & {"resets", "lengths", "state", "x"} else {}
    with pytest.raises(error, match=message):
        Recurrent("time_gap", 3, 4)(**({"x": X} | given | options))


def test_inputs_of_a_cell_without_any() -> None:
    with pytest.raises(ValueError, match="inputs: expected None, since cell 'gru' declares none"):
        Recurrent("gru", 3, 4)(X, inputs={"gap": GAP})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_hh_l0", torch.zeros(2, 8, 3), r"weight_hh: expected float32 of shape \(2, 8, 2\), got"),
        ("weight_ih_l0", torch.zeros(16, 4), r"weight_ih: expected float32 of shape \(16, 3\)"),
        ("p_i_l0", torch.zeros(3), r"p_i: expected float32 of shape \(4,\)"),
    ],
)
def test_a_weight_that_does_not_fit(name: str, value: Tensor, message: str) -> None:
    layer = Recurrent("peephole", 3, 4, heads=2)
    setattr(layer, name, torch.nn.Parameter(value))
    with pytest.raises(ValueError, match=message):
        layer(X)


def test_the_operator_checks_what_kernels_go_by() -> None:
    p = Problem("time_gap", {}, scalar=True)
    given = p.x, p.state, list(p.module.parameters()), None, "time_gap", "reference", False
    good, resets = p.inputs["gap"][None, ..., None], torch.zeros(5, 3, dtype=torch.bool)
    operator.forward(*given, good, resets)
    for inputs, begins, message in (
        (None, None, "inputs: expected torch.float64 of shape .* got None"),
        (good[:, :4], None, r"inputs: expected torch.float64 of shape \(1, 5, 3, 1\) or \(1, 5, 3, 4\), got"),
        (good.float(), None, "inputs: expected torch.float64 .* got torch.float32"),
        (good, resets[:4], r"resets: expected torch.bool of shape \(5, 3\), got torch.bool of shape \(4, 3\)"),
        (good, resets.to(torch.uint8), "resets: expected torch.bool .* got torch.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            operator.forward(*given, inputs, begins)
    with pytest.raises(ValueError, match="cell: unknown cell 'nothing'"):
        operator.forward(*given[:4], "nothing", "reference", False)
