"""gpulstm.LSTM and gpulstm.RNN against torch.nn.LSTM and torch.nn.RNN: parameters both ways, values, gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import problems
import pytest
import torch
from tolerances import assert_close

import gpulstm
from gpulstm import arrays

torch.set_num_threads(1)  # for problems this small its pool only spins against ours

pytestmark = pytest.mark.filterwarnings(
    # torch says so once a process where a build has no oneDNN path for proj_size; the result is the same
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)


class Configuration(NamedTuple):
    """Which network is called how."""

    kind: str
    sizes: tuple[int, int, int, int]  # T, B (0: one sequence), I, H
    options: dict[str, Any]
    dtype: str
    ragged: bool
    given_state: bool


def configuration(seed: int) -> Configuration:
    """The random configuration number ``seed``."""
    rng = np.random.default_rng(seed)

    def below(high: int) -> int:
        return int(rng.integers(high))

    kind = ("LSTM", "RNN")[seed % 2]
    hidden = 2 + below(68)
    batch = 0 if below(6) == 0 else 1 + below(8)
    options: dict[str, Any] = {
        "num_layers": 1 + below(3),
        "bias": bool(below(3)),
        "batch_first": bool(below(2)),
        "bidirectional": bool(below(2)),
    }
    if kind == "LSTM" and below(3) == 0:
        options["proj_size"] = 1 + below(hidden - 1)
    sizes = 1 + below(9), batch, 1 + below(40), hidden
    dtype = ("float32", "float64")[below(2)]
    return Configuration(kind, sizes, options, dtype, bool(batch and below(2)), bool(below(2)))


def both(c: Configuration, seed: int) -> tuple[problems.Network, torch.nn.Module]:
    """The two networks with the same parameters, and a problem for them."""
    steps, batch, inputs, hidden = c.sizes
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, c.kind)(inputs, hidden, **c.options, dtype=getattr(torch, c.dtype))
    ours = getattr(gpulstm, c.kind)(inputs, hidden, **c.options, dtype=c.dtype, seed=seed)
    assert {name: tuple(p.shape) for name, p in theirs.named_parameters()} == ours.config.shapes()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    if seed % 4 < 2:  # ours into theirs, or theirs into ours
        theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    else:
        ours.load_state_dict(theirs.state_dict())
    return problems.network(ours, steps=steps, batch=batch, ragged=c.ragged, seed=seed), theirs


def torch_results(n: problems.Network, module: Any, given_state: bool) -> tuple[list[Any], list[Any], problems.Arrays]:
    """Output and states; gradients of x and of a given state; gradients of the parameters."""
    x = torch.tensor(n.x, requires_grad=True)
    leaves = [torch.tensor(part, requires_grad=True) for part in problems.parts(n.state)] if given_state else []
    state: Any = None
    if given_state:
        state = tuple(leaves) if len(leaves) > 1 else leaves[0]
    config, given = n.layer.config, x
    if n.lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(n.lengths), batch_first=config.batch_first, enforce_sorted=False
        )
    y, final = module(given, state)
    if n.lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=config.batch_first)
    outputs, upstream = [y, *problems.parts(final)], [n.dy, *problems.parts(n.dstate)]
    loss = sum((a * torch.from_numpy(b)).sum() for a, b in zip(outputs, upstream, strict=True))
    loss.backward()
    grads = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    return [value.detach().numpy() for value in outputs], [leaf.grad.numpy() for leaf in (x, *leaves)], grads


def check(c: Configuration, seed: int, backend: str) -> None:
    n, module = both(c, seed)
    outputs, of_inputs, of_parameters = torch_results(n, module, c.given_state)
    state = n.state if c.given_state else None
    with arrays.poison():
        (y, final), pullback = n.layer.vjp(n.x, state, n.lengths, backend=backend)
        dx, dstate, grads = pullback(n.dy, n.dstate)
        inference = n.layer(n.x, state, n.lengths, backend=backend)
    found = [y, *problems.parts(final)]
    for expected, trained, inferred in zip(outputs, found, [inference[0], *problems.parts(inference[1])], strict=True):
        assert_close(trained, expected, "torch", c.dtype, f"output, {c}")
        np.testing.assert_array_equal(trained, inferred)
    given = [dx, *problems.parts(dstate)] if c.given_state else [dx]
    for value, expected in zip(given, of_inputs, strict=True):
        assert_close(value, expected, "torch", c.dtype, f"gradient of x or state, {c}")
    assert list(grads) == list(of_parameters)
    for name, expected in of_parameters.items():
        assert_close(grads[name], expected, "torch", c.dtype, f"gradient of {name}, {c}")


def name(seed: int) -> str:
    """Of a random configuration."""
    c = configuration(seed)
    return f"{seed}-{c.kind}{'-projected' * ('proj_size' in c.options)}-{c.dtype}"


@pytest.mark.parametrize("seed", range(240), ids=name)
def test_random_configuration(seed: int) -> None:
    check(configuration(seed), seed, "numba_cpu")


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_random_configuration_on_the_reference(seed: int) -> None:
    check(configuration(seed), seed, "reference")


@pytest.mark.parametrize("backend", [pytest.param("numba_cpu", marks=pytest.mark.slow), "reference"])
def test_an_rnn_of_rectifiers(backend: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu"}
    check(Configuration("RNN", (6, 4, 5, 19), options, "float32", True, True), 1, backend)


def test_configurations_cover_every_feature() -> None:
    all_ = [configuration(seed) for seed in range(240)]
    for kind in ("LSTM", "RNN"):
        own = [c for c in all_ if c.kind == kind]
        assert len(own) == 120
        for name, values in {
            "num_layers": {1, 2, 3},
            "bias": {True, False},
            "batch_first": {True, False},
            "bidirectional": {True, False},
        }.items():
            assert {c.options[name] for c in own} == values
        assert {(c.dtype, c.ragged) for c in own} == {(d, r) for d in ("float32", "float64") for r in (True, False)}
        assert {(c.sizes[1] == 0, c.given_state) for c in own} == {(u, s) for u in (0, 1) for s in (0, 1)}
        assert {1} <= {c.sizes[0] for c in own}
        assert {1} <= {c.sizes[1] for c in own}
    assert sum("proj_size" in c.options for c in all_) > 20


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), [("LSTM", {"proj_size": 4}), ("LSTM", {}), ("RNN", {})])
def test_dropout_between_layers(kind: str, options: dict[str, int], dtype: str) -> None:
    """torch draws other masks; so its layers are chained here by hand, with the masks that ``rng`` gives."""
    p, layers, seed = 0.4, 3, 11
    ours = getattr(gpulstm, kind)(5, 9, layers, dropout=p, bidirectional=True, **options, dtype=dtype, seed=1)
    n = problems.network(ours, steps=6, batch=4, ragged=False)
    features = 2 * ours.config.output_size

    generator = np.random.default_rng(seed)
    value = x = torch.tensor(n.x, requires_grad=True)
    parameters, finals = {}, []
    for k in range(layers):
        inputs = 5 if k == 0 else features
        one = getattr(torch.nn, kind)(inputs, 9, bidirectional=True, **options, dtype=getattr(torch, dtype))
        own = {name: v for name, v in ours.params.items() if f"_l{k}" in name}
        one.load_state_dict({name.replace(f"_l{k}", "_l0"): torch.from_numpy(v) for name, v in own.items()})
        parameters |= {name: one.get_parameter(name.replace(f"_l{k}", "_l0")) for name in own}
        start = tuple(torch.from_numpy(part[2 * k : 2 * k + 2]) for part in problems.parts(n.state))
        value, final = one(value, start if len(start) > 1 else start[0])
        finals.append(problems.parts(final))
        if k + 1 < layers:
            mask = generator.random((6, 4, features), dtype=np.float32) >= p
            assert 0.1 < mask.mean() < 0.9
            value = value * torch.from_numpy(mask) / (1 - p)
    theirs = [torch.cat(states) for states in zip(*finals, strict=True)]
    loss = (value * torch.from_numpy(n.dy)).sum()
    for a, b in zip(theirs, problems.parts(n.dstate), strict=True):
        loss = loss + (a * torch.from_numpy(b)).sum()
    loss.backward()

    (y, final), pullback = ours.vjp(n.x, n.state, rng=seed)
    dx, _, grads = pullback(n.dy, n.dstate)
    assert_close(y, value.detach(), "torch", dtype)
    for a, b in zip(problems.parts(final), theirs, strict=True):
        assert_close(a, b.detach(), "torch", dtype)
    assert_close(dx, x.grad, "torch", dtype)
    for name, gradient in grads.items():
        assert_close(gradient, parameters[name].grad, "torch", dtype, name)
