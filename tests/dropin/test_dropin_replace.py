"""replace(): the same tensors, hooks and optimizers under gpulstm's kernels; and what is left, with the reason."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations

import gpulstm.torch
from gpulstm.torch import GRU, LSTM, RNN, LSTMCell, replace

torch.set_num_threads(1)  # for problems this small its pool only spins against ours

DOUBLE = torch.float64


class Model(torch.nn.Module):
    """Recurrent modules of every kind, one of them under two names, one in a list, one that is only referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LSTM(5, 4, bidirectional=True))
        self.layers = torch.nn.ModuleList([torch.nn.RNN(8, 8, nonlinearity="relu"), torch.nn.GRU(8, 8)])
        self.again = self.layers[0]
        self.cell = torch.nn.LSTMCell(8, 3)
        self.plain_list = [self.cell]
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder[1](self.encoder[0](x))[0]
        for layer in (*self.layers, self.again):
            y = layer(y)[0]
        (cell,) = self.plain_list
        state = cell(y[0])
        return torch.stack([(state := cell(step, state))[0] for step in y])


def trained(model: Any, x: Tensor, steps: int = 3) -> list[Tensor]:
    """The outputs and the parameters in the end of a few steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    outputs = []
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x)
        y = y if isinstance(y, Tensor) else y[0]
        y.square().mean().backward()
        optimizer.step()
        outputs.append(y.detach())
    return [*outputs, *(parameter.detach().clone() for parameter in model.parameters())]


@pytest.mark.slow  # for an RNN in float64
def test_a_model_goes_on_as_it_was() -> None:
    x = torch.randn(6, 2, 3, dtype=DOUBLE)
    results = []
    for swapped in (False, True):
        torch.manual_seed(0)
        model = Model()
        parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if swapped:
            report = replace(model)
            assert report.replaced == {"encoder.1": "LSTM", "layers.0": "RNN", "layers.1": "GRU", "cell": "LSTMCell"}
            assert not report.left
            assert "layers.1: GRU replaced" in str(report)
            assert [type(modules[name]) for name in report.replaced] == [LSTM, RNN, GRU, LSTMCell]
        assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
        assert all(model.get_submodule(name) is module for name, module in modules.items())
        model(x).square().mean().backward()
        optimizer.step()  # made before: it holds the same tensors
        results.append(trained(model, x))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_the_model_may_be_the_module_itself() -> None:
    lstm = torch.nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    before, _ = lstm(x)
    assert replace(lstm).replaced == {"": "LSTM"}
    assert isinstance(lstm, LSTM)
    torch.testing.assert_close(lstm(x)[0], before)
    assert replace(lstm) == gpulstm.torch.Replacement()  # nothing is left to do
    assert str(replace(lstm)) == "no recurrent modules"


def test_mode_gradients_and_hooks_stay() -> None:
    lstm: Any = torch.nn.LSTM(3, 4, num_layers=2, dropout=0.5).eval()
    lstm.weight_hh_l0.requires_grad_(False)
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    gradient, seen = lstm.weight_ih_l0.grad, []
    lstm.register_forward_pre_hook(lambda module, args: seen.append("before"))
    lstm.register_forward_hook(lambda module, args, output: seen.append("after"))
    lstm.weight_ih_l0.register_hook(lambda g: seen.append("gradient"))
    lstm.register_buffer("mine", torch.ones(1))
    replace(lstm)
    assert not lstm.training
    assert lstm.weight_ih_l0.grad is gradient
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    assert seen == ["before", "after", "gradient"]
    assert lstm.weight_hh_l0.grad is None
    assert "mine" in lstm.state_dict()
    assert repr(lstm) == "LSTM(3, 4, num_layers=2, dropout=0.5)"


def test_parametrized_modules_stay_parametrized() -> None:
    results = []
    x = torch.randn(5, 2, 3, dtype=DOUBLE)
    for swapped in (False, True):
        torch.manual_seed(0)
        lstm: Any = torch.nn.LSTM(3, 4, dtype=DOUBLE)
        parametrizations.weight_norm(lstm, "weight_hh_l0")
        names = list(lstm.state_dict())
        if swapped:
            assert replace(lstm).replaced == {"": "LSTM"}
            assert isinstance(lstm, LSTM)
            assert type(lstm).__name__ == "ParametrizedLSTM"
        assert list(lstm.state_dict()) == names
        results.append(trained(lstm, x))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["GRUCell", "RNNCell"])
def test_cells_of_one_step(kind: str) -> None:
    torch.manual_seed(0)
    cell, x = getattr(torch.nn, kind)(3, 4), torch.randn(2, 3)
    before = cell(x)
    assert replace(cell).replaced == {"": kind}
    assert type(cell) is getattr(gpulstm.torch, kind)
    torch.testing.assert_close(cell(x), before)


class Peephole(torch.nn.LSTM):
    """A subclass that computes something else."""


def own_forward() -> torch.nn.Module:
    lstm: Any = torch.nn.LSTM(3, 4)
    lstm.forward = lambda x: x
    return lstm


def quantized() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantization moves to another package
        module: torch.nn.Module = torch.ao.nn.quantized.dynamic.LSTM(3, 4)
    return module


def scripted() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is on its way out
        module: torch.nn.Module = torch.jit.script(torch.nn.LSTM(3, 4))
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.nn.RNNCell(3, 4, nonlinearity="sin"), "nonlinearity='sin': no kernel computes it"),
        (lambda: torch.nn.RNNBase("LSTM", 3, 4), "RNNBase is none of nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell"),
        (lambda: Peephole(3, 4), "Peephole is a subclass of nn.LSTM"),
        (own_forward, "its forward was replaced"),
        (quantized, "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM is none of"),
        (scripted, "it is scripted"),
    ],
)
def test_what_is_left_and_why(make: Any, reason: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), make(), torch.nn.LSTM(3, 4))
    kind = type(model[1])
    report = replace(model)
    assert list(report.left) == ["1"]
    assert reason in report.left["1"]
    assert report.replaced == {"2": "LSTM"}
    assert type(model[1]) is kind


def test_a_compiled_model_is_compiled_again() -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
    model.append(torch.nn.LSTM(3, 4))
    compiled: Any = torch.compile(model, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        before = compiled(x)[0]
        assert replace(compiled).replaced == {"_orig_mod.2": "LSTM"}
        torch.testing.assert_close(compiled(x)[0], before)


def test_no_module_no_replacement() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        replace({})  # type: ignore[arg-type]
