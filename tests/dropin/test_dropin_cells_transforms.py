"""Any cell under torch.func, torch.compile and torch.export; the operator's registered gradient, and opcheck."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cell_problems import DOUBLE, Problem, close, flat, gradients, variants, weights_of
from tolerances import assert_close
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from bench import torch_loops
from gpulstm.torch import Recurrent, autograd, equations, operator

torch.set_num_threads(1)  # for problems this small its pool only spins against ours

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings(
        "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"  # torch.compile itself
    ),
]


@variants
def test_the_registered_gradient_is_the_functions(cell: str, options: dict[str, Any]) -> None:
    p = Problem(cell, options | {"num_layers": 1, "batch_first": False}, resets=True, scalar=True)
    key, weights = p.module._key(), list(p.module.parameters())
    inputs = torch.stack([value[..., None] for value in p.inputs.values()]) if p.inputs else None
    y, final = autograd.layer(key, p.x, p.state, weights, None, inputs, p.resets)
    chosen = autograd._backend_name("cpu", key, DOUBLE, p.module.config.heads > 1, True, False)
    expected = gradients([y, *final], p.leaves)
    for training in (True, False):
        given = p.x, p.state, weights, None, key, chosen, training, inputs, p.resets
        first, *rest = operator.forward(*given)
        found = gradients([first[1:-1] if training else first, *rest[: len(p.state)]], p.leaves)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    again = equations.layer(key, p.x, None, p.state, weights, inputs, p.resets)
    for a, b in zip(again, (y, *final), strict=True):
        assert_close(a.detach(), b.detach(), "torch", "float64")


# --- torch.func, torch.compile, torch.export


def loss_of(p: Problem) -> Callable[..., Tensor]:
    def loss(params: dict[str, Tensor], x: Tensor, gap: Tensor) -> Tensor:
        options = {"inputs": {"gap": gap}, "resets": p.resets, "lengths": p.lengths}
        y, (h, _) = functional_call(p.module, params, (x,), options)
        return y.sin().sum() + h.sum()

    return loss


def truth_of(p: Problem) -> Callable[..., Tensor]:
    def loss(params: dict[str, Tensor], x: Tensor, gap: Tensor) -> Tensor:
        weights = {name.removesuffix("_l0"): value for name, value in params.items()}
        state = tuple(torch.zeros(3, 4, dtype=DOUBLE) for _ in range(2))
        y, (h, _) = torch_loops.loop(
            torch_loops.CELLS["time_gap"], x, state, weights, {"gap": gap[..., None]}, p.resets
        )
        return y.sin().sum() + h.sum()

    return loss


def test_func_transforms() -> None:
    p = Problem("time_gap", {}, resets=True, scalar=True)
    params, x, gap = weights_of(p.module), p.x.detach(), p.inputs["gap"].detach()
    ours, theirs = loss_of(p), truth_of(p)
    close(grad(ours, (0, 1, 2))(params, x, gap), grad(theirs, (0, 1, 2))(params, x, gap))
    close(jacrev(grad(ours, 2), 1)(params, x, gap), jacrev(grad(theirs, 2), 1)(params, x, gap))
    xs, gaps = torch.stack([x, 2 * x, -x]), torch.stack([gap, gap + 1, gap * 2], dim=1)
    expected = [grad(theirs, 2)(params, a, b) for a, b in zip(xs, gaps.unbind(1), strict=True)]
    close(vmap(grad(ours, 2), (None, 0, 1))(params, xs, gaps), torch.stack(expected))
    with torch.no_grad():
        close(vmap(ours, (None, 0, None))(params, xs, gap), torch.stack([theirs(params, one, gap) for one in xs]))


@pytest.mark.parametrize("recorded", [True, False])
def test_vmap_over_resets_and_lengths(recorded: bool) -> None:
    p = Problem("peephole", {"bidirectional": True})
    resets, lengths = torch.rand(3, 5, 3) < 0.4, torch.tensor([[1, 2, 3], [5, 5, 5], [0, 1, 4]])

    def call(resets: Tensor, lengths: Tensor) -> Tensor:
        y, (_, c) = p.module(p.x, resets=resets, lengths=lengths)
        return torch.cat([y.flatten(), c.flatten()])

    with torch.set_grad_enabled(recorded):
        expected = torch.stack([call(*one) for one in zip(resets, lengths, strict=True)])
        close(vmap(call)(resets, lengths), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    ("cell", "options"), [("time_gap", {"bidirectional": True}), ("slstm", {"heads": 2}), ("mingru", {"num_layers": 2})]
)
def test_compile_without_a_graph_break(cell: str, options: dict[str, Any], dynamic: bool | None) -> None:
    torch._dynamo.reset()
    module = Recurrent(cell, 2, 4, **options, dtype=DOUBLE)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for steps, batch in ((4, 3), (6, 5)):
        x = torch.randn(steps, batch, 2, dtype=DOUBLE, requires_grad=True)
        gap = torch.rand(steps, batch, dtype=DOUBLE, requires_grad=True)
        given: dict[str, Any] = {"resets": torch.rand(steps, batch) < 0.3, "lengths": torch.arange(batch)}
        leaves = [x, *module.parameters()]
        if cell == "time_gap":
            given["inputs"] = {"gap": gap}
            leaves.append(gap)
        results = []
        for call in (compiled, module):
            outputs = flat(call(x, **given))
            results.append((outputs, gradients(outputs, leaves)))
        close(*results)
        with torch.no_grad():
            close(flat(compiled(x, **given)), flat(module(x, **given)))


@pytest.mark.slow
def test_compiled_functional_gradient() -> None:
    """torch.compile takes no autograd.Function inside torch.func: there it is given the equations."""
    torch._dynamo.reset()
    p = Problem("time_gap", {}, resets=True, scalar=True)
    given = weights_of(p.module), p.x.detach(), p.inputs["gap"].detach()
    compiled = torch.compile(grad(loss_of(p), (0, 1, 2)), fullgraph=True, backend="aot_eager")
    close(compiled(*given), grad(truth_of(p), (0, 1, 2))(*given))


def test_export_round_trip(tmp_path: Any) -> None:
    p = Problem("time_gap", {"num_layers": 2, "bidirectional": True}, resets=True, scalar=True)
    options = {"resets": p.resets, "inputs": {"gap": p.inputs["gap"].detach()}}
    program = torch.export.export(p.module, (p.x.detach(),), options)
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    x, gap = torch.randn(5, 3, 2, dtype=DOUBLE), torch.rand(5, 3, dtype=DOUBLE, requires_grad=True)
    options["inputs"] = {"gap": gap}
    found, expected = flat(loaded(x, **options)), flat(p.module(x, **options))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    own = dict(loaded.named_parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            gradients(found, [gap, *own.values()]),
            gradients(expected, [gap, *(p.module.get_parameter(name) for name in own)]),
            strict=True,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("training", [True, False])
@variants
def test_opcheck(cell: str, options: dict[str, Any], training: bool, recorded: bool) -> None:
    p = Problem(cell, options | {"num_layers": 1, "batch_first": False}, ragged=True, scalar=True)
    weights = list(p.module.parameters())
    for leaf in p.leaves:
        leaf.requires_grad_(recorded)
    inputs = torch.stack([value.detach()[..., None] for value in p.inputs.values()]) if p.inputs else None
    if inputs is not None and p.module.config.cell.differentiable:
        inputs.requires_grad_(recorded)
    resets = torch.zeros(5, 3, dtype=torch.bool)
    resets[1] = True
    assert p.lengths is not None
    resets &= torch.arange(5)[:, None] < p.lengths
    key = p.module._key()
    chosen = autograd._backend_name("cpu", key, DOUBLE, p.module.config.heads > 1, True, False)
    given, names = (p.x, p.state, weights, p.lengths), (key, chosen)
    torch.library.opcheck(operator.forward, (*given, *names, training, inputs, resets))
    if training:
        first, *rest = operator.forward(*given, *names, True, inputs, resets)
        tape = [part.detach() for part in (first, *rest[len(p.state) :])]
        dy, dstate = torch.randn_like(first[1:-1]), [torch.randn_like(part) for part in p.state]
        with torch.no_grad():
            torch.library.opcheck(operator.backward, (*given, tape, dy, dstate, *names, inputs, resets))
