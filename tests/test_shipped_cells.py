"""Every cell that gpulstm has, against its equations in torch: outputs, states, all gradients; and torch's own GRU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import layer_problem
from tolerances import assert_close

import gpulstm
from bench import torch_loops
from gpulstm import cells, nn
from gpulstm_kernels import reference


def test_every_cell_has_its_equations() -> None:
    shipped = {name for name in cells.__all__ if isinstance(getattr(cells, name), cells.TracedCell)}
    assert shipped == set(torch_loops.CELLS)


@pytest.mark.parametrize("name", torch_loops.CELLS)
def test_check(name: str) -> None:
    assert f"cell {name!r}: gradients of " in cells.check(cells.get(name))


@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("scalar", [False, True], ids=["units", "rows"])
@pytest.mark.parametrize("name", torch_loops.CELLS)
def test_equations(name: str, scalar: bool, resets: bool) -> None:
    p = layer_problem(name, steps=5, batch=3, inputs=2, hidden=4, scalar_inputs=scalar, resets=resets)
    y, final, tape = reference.layer_forward(p.shape(training=True), *p.arguments)
    dx, dstate, (grads,) = reference.layer_backward(tape, p.dy, p.dstate)

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array.copy()).requires_grad_()

    x, state = tensor(p.x), tuple(tensor(part[0]) for part in p.state)
    weights = {key: tensor(value) for key, value in p.weights[0].items()}
    inputs = {} if p.inputs is None else {key: tensor(v) for key, v in zip(p.cell.inputs, p.inputs, strict=True)}
    begins = None if p.resets is None else torch.from_numpy(p.resets)
    expected, last = torch_loops.loop(torch_loops.CELLS[name], x, state, weights, inputs, begins)
    assert_close(y, expected.detach().numpy(), "torch", "float64")
    for part, other in zip(final, last, strict=True):
        assert_close(part[0], other.detach().numpy(), "torch", "float64")
    upstream = [torch.from_numpy(p.dy), *(torch.from_numpy(part[0]) for part in p.dstate)]
    sum((a * b).sum() for a, b in zip((expected, *last), upstream, strict=True)).backward()
    assert_close(dx, x.grad.numpy(), "torch", "float64")
    for part, other in zip(dstate, state, strict=True):
        assert_close(part[0], np.zeros_like(part[0]) if other.grad is None else other.grad.numpy(), "torch", "float64")
    for key, value in weights.items():
        assert_close(grads[key], value.grad.numpy(), "torch", "float64")
    assert set(grads) == set(weights) | {f"inputs.{key}" for key in p.cell.differentiable}
    for key in p.cell.differentiable:
        assert_close(grads[f"inputs.{key}"], inputs[key].grad.numpy(), "torch", "float64")


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
def test_gru_is_torchs(options: dict[str, Any]) -> None:
    theirs = torch.nn.GRU(3, 5, **options, dtype=torch.float64)
    ours = gpulstm.GRU(3, 5, **options, dtype="float64")
    ours.load_state_dict({name: value.detach().numpy() for name, value in theirs.named_parameters()})
    rng = np.random.default_rng(0)
    layers = ours.config.num_layers * ours.config.directions
    x, h0 = rng.standard_normal((4, 4, 3)), rng.standard_normal((layers, 4, 5))
    (y, h), vjp = ours.vjp(x, h0, backend="reference")
    a, b = torch.from_numpy(x).requires_grad_(), torch.from_numpy(h0).requires_grad_()
    expected, last = theirs(a, b)
    assert_close(y, expected.detach().numpy(), "torch", "float64")
    assert_close(h, last.detach().numpy(), "torch", "float64")
    dy, dh = rng.standard_normal(y.shape), rng.standard_normal(h.shape)
    ((expected * torch.from_numpy(dy)).sum() + (last * torch.from_numpy(dh)).sum()).backward()
    dx, dh0, grads = vjp(dy, dh)
    assert_close(dx, a.grad.numpy(), "torch", "float64")
    assert_close(dh0, b.grad.numpy(), "torch", "float64")
    for name, value in theirs.named_parameters():
        assert_close(grads[name], value.grad.numpy(), "torch", "float64")


def test_parameters_are_in_torchs_order() -> None:
    assert nn.Recurrent("gru", 3, 5).config.shapes() == {
        name: tuple(value.shape) for name, value in torch.nn.GRU(3, 5).named_parameters()
    }
    assert nn.Recurrent("peephole", 3, 5, bidirectional=True).config.shapes() == {
        f"{name}{end}": shape
        for end in ("_l0", "_l0_reverse")
        for name, shape in {
            "weight_ih": (20, 3),
            "weight_hh": (20, 5),
            "bias_ih": (20,),
            "bias_hh": (20,),
            "p_i": (5,),
            "p_f": (5,),
            "p_o": (5,),
        }.items()
    }
    assert nn.Recurrent("indrnn", 3, 5).config.shapes() == {"weight_ih_l0": (5, 3), "bias_ih_l0": (5,), "u_l0": (5,)}
    assert list(nn.Recurrent("mingru", 3, 5, 2, bias=False).params) == ["weight_ih_l0", "weight_ih_l1"]
