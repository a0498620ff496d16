"""``gpulstm.torch.flashrnn`` against FlashRNN's equations in a loop of torch's, in float64."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import TOLERANCES, error

import gpulstm
from gpulstm.torch import flashrnn

FUNCTIONS = {"lstm": (4, 4, 4, 2), "slstm": (4, 4, 4, 4), "gru": (3, 3, 4, 1), "elman": (1, 1, 1, 1)}
"""How many gates of Wx, R and b, and states."""
# What states are given: none, zeros, any; n zero everywhere while the others are not, or in some places.
BEGINNINGS = ["none", "zero", "any", "n zero", "n mixed"]
Tensors = dict[str, torch.Tensor]


def _step(function: str, raw: Any, state: list[Any]) -> list[Any]:
    """The states after a step; ``raw``: of each gate, (B, H, D)."""
    if function == "elman":
        return [raw[0].tanh()]
    if function == "lstm":
        i, f, z, o = raw
        c = f.sigmoid() * state[1] + i.sigmoid() * z.tanh()
        return [o.sigmoid() * c.tanh(), c]
    if function == "gru":
        g, r, z, n = raw
        return [z.sigmoid() * state[0] + (1 - z.sigmoid()) * (n + r.sigmoid() * g).tanh()]
    i, f, z, o = raw
    _, c, n, m = state
    kept = torch.nn.functional.logsigmoid(f) + m
    largest = i if bool((n == 0).all()) else torch.maximum(i, kept)
    i, f = (i - largest).exp(), (kept - largest).exp()
    c, n = f * c + i * z.tanh(), torch.maximum(f * n + i, torch.ones_like(n))
    return [o.sigmoid() * c / n, c, n, largest]


def by_hand(function: str, Wx: Any, R: Any, b: Any, states: Any = None) -> tuple[Any, Any]:
    """FlashRNN's function as its equations say; a gate that Wx or R has not adds nothing there."""
    batch, steps, _, heads, units = Wx.shape
    if states is None:
        states = Wx.new_zeros((FUNCTIONS[function][3], batch, 1, heads, units))
    state, every = list(states[:, :, 0]), []
    for t in range(steps):
        of_h = torch.einsum("bhp,ghdp->gbhd", state[0], R)
        of_x = Wx[:, t].transpose(0, 1)
        if function == "gru":
            raw = [of_h[0], of_h[1] + of_x[0], of_h[2] + of_x[1], of_x[2]]
        else:
            raw = list(of_h + of_x)
        state = _step(function, [value + bias for value, bias in zip(raw, b, strict=True)], state)
        every.append(torch.stack(state))
    return torch.stack(every, dim=2), torch.stack(state)[:, :, None]


def problem(function: str, heads: int, begins: str, dtype: Any = torch.float64, steps: int = 5) -> Tensors:
    generator = torch.Generator().manual_seed(heads)
    of_x, of_h, biases, count = FUNCTIONS[function]
    batch, units = 3, 4

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = {"Wx": drawn(batch, steps, of_x, heads, units), "R": drawn(of_h, heads, units, units) / 2}
    values["b"] = drawn(biases, heads, units)
    if begins != "none":
        states = drawn(count, batch, 1, heads, units) * (begins != "zero")
        if function == "slstm" and begins == "n zero":
            states[2] = 0
        if function == "slstm" and begins == "n mixed":
            states[2] = states[2].clamp(min=0)
        values["states"] = states
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def computed(call: Any, function: str, given: Tensors) -> dict[str, np.ndarray]:
    """The states of every step and the last ones, and the gradients of all that is given."""
    every, last = call(function, given["Wx"], given["R"], given["b"], given.get("states"))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=torch.float64)).sum() for part in (every, last)
    )
    gradients = torch.autograd.grad(loss, list(given.values()))
    found = {"every": every, "last": last} | {f"d{name}": d for name, d in zip(given, gradients, strict=True)}
    return {name: value.detach().double().numpy() for name, value in found.items()}


def ours(function: str, Wx: Any, R: Any, b: Any, states: Any) -> Any:
    return flashrnn(Wx, R, b, states, function)


def check(function: str, heads: int, begins: str, dtype: Any, call: Any = ours) -> None:
    given = problem(function, heads, begins, dtype)
    expected = computed(by_hand, function, {name: v.detach().double().requires_grad_() for name, v in given.items()})
    most = 1e-12 if dtype is torch.float64 else TOLERANCES["kernel", "float32"]
    for name, value in computed(call, function, given).items():
        assert error(value, expected[name]) <= most, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("begins", BEGINNINGS)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_equals_the_equations(function: str, heads: int, begins: str, dtype: Any) -> None:
    with gpulstm.use_backend("reference"):
        check(function, heads, begins, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_kernels_equal_the_equations(function: str) -> None:
    for heads, begins in itertools.product((1, 3), BEGINNINGS):
        check(function, heads, begins, torch.float32)


@pytest.fixture
def given(in_numpy: None) -> Tensors:
    return problem("slstm", 2, "any")


def test_layouts(given: Tensors) -> None:
    Wx, R, b, states = given.values()
    every, last = flashrnn(Wx, R, b, states, "slstm")
    assert every.shape == (4, 3, 5, 2, 4)
    assert last.shape == (4, 3, 1, 2, 4)
    options = {"input_shape": "TBGHD", "recurrent_shape": "HPGD", "bias_shape": "HGD", "output_shape": "STBHD"}
    turned = Wx.transpose(0, 1), R.permute(1, 3, 0, 2), b.transpose(0, 1), states.transpose(1, 2)
    config = SimpleNamespace(function="slstm", gradient_recurrent_cut=False, initial_val=0.0, **options)
    for found in (flashrnn(*turned, "slstm", **options), flashrnn(*turned, config=config)):
        torch.testing.assert_close(found[0], every.transpose(1, 2))
        torch.testing.assert_close(found[1], last.transpose(1, 2))
    alone, also_last = flashrnn(Wx, R, b, states, "slstm", backend="cuda_fused", dtype="bfloat16", every_state=False)
    torch.testing.assert_close(alone, every[:1])
    torch.testing.assert_close(also_last, last)


def test_heads_where_a_backend_has_none(given: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one matrix with zeros beside the blocks."""
    Wx, R, b, states = given.values()
    expected = flashrnn(Wx, R, b, states, "slstm")
    monkeypatch.setattr("gpulstm.torch.flash.computes_heads", lambda *arguments: False)
    found = flashrnn(Wx, R, b, states, "slstm")
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(pair[0].sum(), (R, Wx)) for pair in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("function", ["lstm", "slstm"])
@pytest.mark.usefixtures("in_numpy")
def test_gradients_of_gradients(function: str) -> None:
    given = problem(function, 1, "none", steps=2)
    Wx, R, b = (value.detach()[..., :1].requires_grad_() for value in given.values())
    assert torch.autograd.gradgradcheck(
        lambda *leaves: flashrnn(*leaves, None, function), (Wx[:1], R[..., :1, :], b), fast_mode=True
    )


@pytest.mark.usefixtures("in_numpy")
def test_half_types_are_computed_in_float32() -> None:
    given = problem("lstm", 2, "any", torch.bfloat16)
    every, last = flashrnn(*given.values(), "lstm")
    assert (every.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)
    expected, _ = flashrnn(*(value.double() for value in given.values()), "lstm")
    assert error(every.detach().double(), expected.detach()) < 4e-3


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"Wx": None}, {}, "Wx: expected a tensor, got NoneType"),
        (
            {"Wx": torch.zeros(3, 5, 3, 2, 4, dtype=torch.float64)},
            {},
            r"Wx: expected shape \(B, T, 4, H, D\), none of T, H and D 0, got \(3, 5, 3, 2, 4\)",
        ),
        (
            {"R": torch.zeros(4, 2, 4, 3, dtype=torch.float64)},
            {},
            r"R: expected shape \(4, 2, 4, 4\), got \(4, 2, 4, 3\)",
        ),
        ({"b": torch.zeros(4, 2, 4)}, {}, "b: expected dtype torch.float64, that of the input, got torch.float32"),
        ({"states": torch.zeros(2, 3, 1, 2, 4, dtype=torch.float64)}, {}, r"states: expected shape \(4, 3, 1, 2, 4\)"),
        ({}, {"function": "mlstm"}, "function: expected one of lstm, gru, elman, slstm, got 'mlstm'"),
        ({}, {"backend": "tpu"}, "backend: expected one of vanilla, .*, reference, got 'tpu'"),
        ({}, {"dtype": "int8"}, "dtype: expected one of bfloat16, .*, got 'int8'"),
        ({}, {"recurrent_shape": "DGHP"}, "recurrent_shape: expected one of GHDP, HGDP, HPGD, HPDG, got 'DGHP'"),
        ({}, {"config": 3}, "config: expected None or a FlashRNNConfig, got 3"),
        ({}, {"every_state": 1}, "every_state: expected True or False, got 1"),
    ],
)
def test_what_is_refused(given: Tensors, change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        flashrnn(**(given | change), **({"function": "slstm"} | options))


def test_a_config_that_asks_for_more_is_refused(given: Tensors) -> None:
    layouts = {"input_shape": "BTGHD", "recurrent_shape": "GHDP", "bias_shape": "GHD", "output_shape": "SBTHD"}
    config = SimpleNamespace(function="slstm", gradient_recurrent_clipval=1.0, **layouts)
    with pytest.raises(ValueError, match=r"config: gradient_recurrent_clipval: expected None, got 1\.0"):
        flashrnn(**given, config=config)
