"""gpulstm.torch.Recurrent for cells of the language, against their loops in torch: values, gradients, and theirs."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from cell_problems import DOUBLE, Problem, close, flat, gradients, variants
from tolerances import assert_close
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gpulstm import cells, nn, use_backend
from gpulstm.cells import sigmoid, tanh
from gpulstm.torch import LSTM, Recurrent, equations, known

torch.set_num_threads(1)  # for problems this small its pool only spins against ours


pytestmark = pytest.mark.usefixtures("backend")


# --- values and gradients


@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("ragged", [False, True], ids=["", "ragged"])
@variants
def test_against_loops(cell: str, options: dict[str, Any], ragged: bool, resets: bool) -> None:
    p = Problem(cell, options, ragged=ragged, resets=resets, scalar=ragged)
    found, expected = p.call(), p.truth()
    for a, b in zip(found, expected, strict=True):
        assert_close(a.detach(), b.detach(), "torch", "float64", cell)
    for a, b in zip(gradients(found, p.leaves), gradients(expected, p.leaves), strict=True):
        assert_close(a, b, "torch", "float64", cell)
    with torch.no_grad():
        for a, b in zip(p.call(), found, strict=True):
            assert torch.equal(a, b)


def test_gradients_of_inputs_of_which_one_is_a_constant() -> None:
    @cells.cell(gates="g", inputs="keep gap", differentiable="gap")
    def two_inputs(x: Any, s: Any, i: Any) -> Any:
        return i.keep * s.h + i.gap * tanh(x.g), {}

    layer = Recurrent(two_inputs, 2, 4, bidirectional=True, dtype=DOUBLE)
    x, keep = torch.randn(3, 2, 2, dtype=DOUBLE), torch.rand(3, 2, dtype=DOUBLE, requires_grad=True)
    gap = torch.rand(3, 2, 4, dtype=DOUBLE, requires_grad=True)

    def call(gap: Tensor) -> Tensor:
        return layer(x, inputs={"keep": keep, "gap": gap})[0]

    assert torch.autograd.gradcheck(call, gap)
    assert torch.autograd.gradgradcheck(call, gap)
    of_gap, of_keep = torch.autograd.grad(call(gap).sum(), [gap, keep], create_graph=True)
    assert not of_keep.any()
    assert not torch.autograd.grad(of_gap.sum(), keep)[0].any()
    as_bools = layer(x, inputs={"keep": keep > 0.5, "gap": gap})[0]
    assert torch.equal(as_bools, layer(x, inputs={"keep": (keep > 0.5).to(DOUBLE), "gap": gap})[0])


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        pytest.param("peephole", {"bidirectional": True}, marks=pytest.mark.slow),
        pytest.param("time_gap", {"bidirectional": True}, marks=pytest.mark.slow),
        pytest.param("slstm", {"heads": 2}, marks=pytest.mark.slow),
        ("mingru", {"num_layers": 2}),
        ("gru", {"heads": 2}),
        pytest.param("gru_reset_before", {"bidirectional": True}, marks=pytest.mark.slow),
        pytest.param("layer_norm_gru", {}, marks=pytest.mark.slow),
    ],
)
def test_gradgradcheck(cell: str, options: dict[str, Any]) -> None:
    p = Problem(cell, options, ragged=True, resets=True, scalar=True, sizes=(3, 2, 1, 2))
    names, of_inputs = [name for name, _ in p.module.named_parameters()], list(p.module.config.cell.differentiable)

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        state, rest = rest[: len(p.state)], rest[len(p.state) :]
        given = dict(zip(of_inputs, rest[len(names) :], strict=True)) or None
        own = dict(zip(names, rest, strict=False))
        options = {"lengths": p.lengths, "resets": p.resets, "inputs": given}
        return tuple(flat(functional_call(p.module, own, (x, state if len(state) > 1 else state[0]), options)))

    assert torch.autograd.gradcheck(call, p.leaves)
    assert torch.autograd.gradgradcheck(call, p.leaves)


# --- the ways in


def test_packed_sequences() -> None:
    p = Problem("time_gap", {"bidirectional": True, "num_layers": 2}, resets=True, scalar=True, sizes=(5, 4, 2, 4))
    p.lengths = torch.tensor([3, 5, 1, 5])
    expected = p.call()
    packed = pack_padded_sequence(p.x, p.lengths, enforce_sorted=False)
    y, (h, c) = p.module(packed, tuple(p.state), resets=p.resets, inputs=p.inputs)
    found = [pad_packed_sequence(y)[0], h, c]
    close(found, expected)
    close(gradients(found, p.leaves), gradients(expected, p.leaves))
    with pytest.raises(ValueError, match="lengths: expected None with a PackedSequence"):
        p.module(packed, lengths=p.lengths, inputs=p.inputs)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence(batch_first: bool) -> None:
    p = Problem("time_gap", {"batch_first": batch_first}, resets=True, scalar=True, sizes=(5, 1, 2, 4))
    (y, (h, c)), axis = p.module(p.x, tuple(p.state), resets=p.resets, inputs=p.inputs, lengths=[4]), not batch_first
    assert p.resets is not None
    state = tuple(part[:, 0] for part in p.state)
    inputs = {"gap": p.inputs["gap"].squeeze(int(axis))}
    found = p.module(p.x.squeeze(int(axis)), state, resets=p.resets.squeeze(int(axis)), inputs=inputs, lengths=[4])
    assert torch.equal(found[0], y.squeeze(int(axis)))
    assert torch.equal(found[1][0], h[:, 0])
    assert torch.equal(found[1][1], c[:, 0])
    assert not found[0][4].any()


def test_what_lies_past_a_length_plays_no_part() -> None:
    p = Problem("time_gap", {"num_layers": 2}, resets=True, scalar=True)
    p.lengths = torch.tensor([3, 5, 1])
    expected = p.call()
    of_expected = gradients(expected, p.leaves)
    past = torch.arange(5)[:, None] >= p.lengths
    assert p.resets is not None
    with torch.no_grad():
        p.x[past], p.inputs["gap"][past], p.resets[past] = torch.nan, torch.inf, True
    found = p.call(lengths=p.lengths.tolist())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(found, p.leaves), of_expected, strict=True))


def test_parameters_are_those_of_the_arrays() -> None:
    for cell, options in (("peephole", {"bidirectional": True}), ("gru", {"heads": 2}), ("mingru", {})):
        module, layer = Recurrent(cell, 2, 4, 2, **options), nn.Recurrent(cell, 2, 4, 2, **options, seed=0)
        assert list(module.state_dict()) == list(layer.params)
        layer.load_state_dict({name: value.numpy() for name, value in module.state_dict().items()})
        x = torch.randn(3, 2, 2)
        np.testing.assert_array_equal(layer(x.numpy())[0], module(x)[0].detach())
        bound = max(float(value.detach().abs().max()) for value in module.parameters())
        assert 0.4 < bound <= 0.5  # 1/√H


def test_parameters_are_drawn_as_torch_draws_them() -> None:
    torch.manual_seed(0)
    ours = Recurrent("lstm", 2, 3, 2, bidirectional=True)
    torch.manual_seed(0)
    close(ours.state_dict(), torch.nn.LSTM(2, 3, 2, bidirectional=True).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast(dtype: torch.dtype) -> None:
    half = Recurrent("time_gap", 2, 3, dtype=dtype)
    single = Recurrent("time_gap", 2, 3)
    single.load_state_dict(half.state_dict())
    x, gap = torch.randn(4, 2, 2, dtype=dtype), torch.rand(4, 2, dtype=dtype)
    expected = single(x.float(), inputs={"gap": gap.float()})[0].to(dtype)
    assert torch.equal(half(x, inputs={"gap": gap})[0], expected)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(single(x, inputs={"gap": gap.float()})[0], expected)


def test_meta_modules_give_shapes() -> None:
    layer = Recurrent("slstm", 3, 4, 2, heads=2, bidirectional=True, device="meta")
    y, state = layer(torch.empty(5, 2, 3, device="meta"))
    assert [tuple(part.shape) for part in (y, *state)] == [(5, 2, 8), *[(4, 2, 4)] * 4]


# --- the cell


def test_copies_and_pickles() -> None:
    p = Problem("time_gap", {"num_layers": 2}, scalar=True)
    expected = p.call()
    file = io.BytesIO()
    torch.save(p.module, file)
    file.seek(0)
    for other in (copy.deepcopy(p.module), pickle.loads(pickle.dumps(p.module)), torch.load(file, weights_only=False)):
        assert other.config.cell is cells.time_gap
        p.module = other
        assert all(torch.equal(a, b) for a, b in zip(p.call(), expected, strict=True))
    assert repr(p.module) == "Recurrent('time_gap', 2, 4, num_layers=2)"


def anew(number: float) -> Any:
    @cells.cell(gates="g")
    def defined_anew(x: Any, s: Any) -> Any:
        return number * sigmoid(x.g), {}

    return defined_anew


def test_a_layer_goes_on_with_its_cell_when_that_is_defined_anew() -> None:
    old = Recurrent(anew(2.0), 2, 3, dtype=DOUBLE)
    x = torch.randn(4, 2, 2, dtype=DOUBLE, requires_grad=True)
    y = old(x)[0]
    new = Recurrent(anew(-3.0), 2, 3, dtype=DOUBLE)
    new.load_state_dict(old.state_dict())
    assert new._key() != old._key()
    assert known.cell_of(old._key()) == old.config.cell
    for layer, sign in ((old, 1), (new, -1)):
        assert (layer(x)[0] * sign > 0).all()
        assert torch.autograd.gradgradcheck(lambda x, layer=layer: layer(x)[0], x)
    before = torch.autograd.grad(old(x)[0].sum(), x)
    close(torch.autograd.grad(y.sum(), x), before)


def test_a_cell_by_hand_has_no_second_gradient() -> None:
    by_hand = cells.Cell("torch_by_hand", ("i", "f", "g", "o"), ("c",), 4, "lstm_by_hand")
    ours, lstm = Recurrent(by_hand, 2, 3, dtype=DOUBLE), LSTM(2, 3, dtype=DOUBLE)
    ours.load_state_dict(lstm.state_dict())
    x = torch.randn(4, 2, 2, dtype=DOUBLE, requires_grad=True)
    with use_backend("reference"):
        found, expected = (torch.autograd.grad(m(x)[0].sin().sum(), x, create_graph=True)[0] for m in (ours, lstm))
        close(found, expected)
        with pytest.raises(
            ValueError, match="cell: 'torch_by_hand': expected one written in the language for gradients"
        ):
            found.sum().backward()
    assert pickle.loads(pickle.dumps(ours)).config.cell == by_hand


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_a_nan_of_either_argument_stays(name: str) -> None:
    function, nan = equations._FUNCTIONS[name], torch.tensor([torch.nan, 1.0, torch.nan, -1.0])
    other = torch.tensor([1.0, torch.nan, torch.nan, 2.0])
    expected = getattr(torch, name)(nan, other)
    torch.testing.assert_close(function(nan, other), expected, equal_nan=True)
    torch.testing.assert_close(function(nan, 0.0), getattr(torch, name)(nan, torch.zeros(4)), equal_nan=True)


def test_softplus_is_exact() -> None:
    x = torch.linspace(-50, 60, 1111, dtype=DOUBLE)
    close(equations._FUNCTIONS["softplus"](x), torch.logaddexp(x, torch.zeros_like(x)))
