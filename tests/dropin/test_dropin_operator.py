"""The operator and its gradients: opcheck, gradgradcheck, torch.func, torch.compile, torch.export, the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor
from torch._dynamo import testing
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import gpulstm.torch
from gpulstm import BackendUnavailable, arrays, cells, use_backend
from gpulstm.torch import LSTM, autograd, equations, operator
from gpulstm_kernels import reference
from gpulstm_kernels.cpu import layer as cpu_layer
from gpulstm_kernels.cpu.crew.thread_pool import crew

torch.set_num_threads(1)  # for problems this small its pool only spins against ours

DOUBLE = torch.float64
pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning",  # torch's, of its own LSTM
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",  # torch.compile itself does
)


def arguments(
    cell: str = "lstm", *, directions: int = 1, projection: int = 0, bias: bool = True, ragged: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
    """x, state, weights and lengths of a small random layer in float64."""
    torch.manual_seed(0)
    steps, batch, inputs, hidden = 4, 3, 2, 5
    rows, outputs = hidden * len(cells.get(cell).gates), projection or hidden

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=DOUBLE) * 0.5

    state = [normal(directions, batch, outputs)]
    state += [normal(directions, batch, hidden) for _ in cells.get(cell).states]
    weights = []
    for _ in range(directions):
        weights += [normal(rows, inputs), normal(rows, outputs)]
        weights += [normal(rows), normal(rows)] if bias else []
        weights += [normal(projection, hidden)] if projection else []
    return normal(steps, batch, inputs), state, weights, torch.tensor([2, 4, 1]) if ragged else None


VARIANTS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "rnn"},
    {"cell": "lstm", "directions": 2, "projection": 3, "ragged": True},
    {"cell": "lstm", "directions": 2, "bias": False},
    {"cell": "rnn", "directions": 2, "ragged": True},
    {"cell": "lstm", "projection": 2, "bias": False, "ragged": True},
]
variants = pytest.mark.parametrize(
    "variant",
    VARIANTS,
    ids=lambda v: "-".join([*(f"{k}={v[k]}" for k in v), "projected" * ("projection" in v), "float64"]),
)


# --- torch.library


@pytest.mark.slow
@variants
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
def test_opcheck_of_forward(variant: dict[str, Any], training: bool, recorded: bool, backend: str) -> None:
    x, state, weights, lengths = arguments(**variant)
    for tensor in (x, *state, *weights):
        tensor.requires_grad_(recorded)
    torch.library.opcheck(operator.forward, (x, state, weights, lengths, variant["cell"], backend, training))


@pytest.mark.slow
@variants
@pytest.mark.parametrize("taped", [True, False])
def test_opcheck_of_backward(variant: dict[str, Any], taped: bool) -> None:
    x, state, weights, lengths = arguments(**variant)
    names = variant["cell"], "numba_cpu"
    first, *rest = operator.forward(x, state, weights, lengths, *names, True)
    tape = [first, *rest[len(state) :]] if taped else []
    dy = torch.randn_like(first[1:-1])
    torch.library.opcheck(operator.backward, (x, state, weights, lengths, tape, dy, state, *names))


@variants
def test_the_registered_gradient_is_the_functions(variant: dict[str, Any]) -> None:
    x, state, weights, lengths = arguments(**variant)
    leaves = [tensor.requires_grad_() for tensor in (x, *state, *weights)]
    y, final = autograd.layer(variant["cell"], x, state, weights, lengths)
    upstream = [torch.randn_like(part) for part in (y, *final)]
    if lengths is not None:
        upstream[0][torch.arange(len(x))[:, None] >= lengths] = 0
    expected = torch.autograd.grad((y, *final), leaves, upstream)
    for training in (True, False):
        first, *rest = operator.forward(x, state, weights, lengths, variant["cell"], "numba_cpu", training)
        outputs = (first[1:-1] if training else first, *rest[: len(state)])
        for a, b in zip(torch.autograd.grad(outputs, leaves, upstream), expected, strict=True):
            assert torch.equal(a, b)


# --- gradients of gradients


@pytest.mark.slow
@variants
def test_gradcheck_and_gradgradcheck(variant: dict[str, Any]) -> None:
    x, state, weights, lengths = arguments(**variant)
    valid = 1 if lengths is None else (torch.arange(len(x))[:, None] < lengths)[:, :, None]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        n = 1 + len(state)
        y, final = autograd.layer(variant["cell"], tensors[0], tensors[1:n], tensors[n:], lengths)
        return (y * valid, *final)  # past a length y is unspecified

    leaves = tuple(tensor.requires_grad_() for tensor in (x, *state, *weights))
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@variants
def test_the_equations_are_the_operator(variant: dict[str, Any]) -> None:
    x, state, weights, lengths = arguments(**variant)
    y, final = autograd.layer(variant["cell"], x, state, weights, lengths)
    expected = equations.layer(variant["cell"], x, lengths, state, weights)
    if lengths is not None:
        y = y * (torch.arange(len(x))[:, None] < lengths)[:, :, None]
    for actual, value in zip((y, *final), expected, strict=True):
        assert_close(actual, value, "torch", "float64")


@pytest.mark.slow
def test_gradgradcheck_of_a_packed_module() -> None:
    torch.manual_seed(0)
    lstm = LSTM(2, 3, num_layers=2, bidirectional=True, dtype=DOUBLE)
    names = list(lstm.state_dict())

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([2, 4]), enforce_sorted=False)
        output, (h, c) = functional_call(lstm, dict(zip(names, weights, strict=True)), (packed,))
        return torch.cat([output.data.flatten(), h.flatten(), c.flatten()])

    leaves = [torch.randn(4, 2, 2, dtype=DOUBLE, requires_grad=True), *lstm.parameters()]
    assert torch.autograd.gradgradcheck(call, leaves)


# --- torch.func: torch's own module, in a loop where it has no rule, is the truth


def twins(kind: str = "LSTM", **options: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    ours = getattr(gpulstm.torch, kind)(2, 3, **options, dtype=DOUBLE)
    theirs = getattr(torch.nn, kind)(2, 3, **options, dtype=DOUBLE)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, {name: value.detach() for name, value in ours.named_parameters()}


def loss_of(module: Any) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        y, state = functional_call(module, params, (x,))
        return y.sin().sum() + sum(part.pow(2).sum() for part in ([state] if isinstance(state, Tensor) else state))

    return loss


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


functional = pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("LSTM", {"num_layers": 2}, id="LSTM"),
        pytest.param("RNN", {}, id="RNN-float64"),
        pytest.param("LSTM", {"bidirectional": True, "proj_size": 2}, id="LSTM-projected-float64"),
        pytest.param("GRU", {"bidirectional": True}, id="GRU-float64", marks=pytest.mark.slow),
        pytest.param("RNN", {"nonlinearity": "relu"}, id="relu-RNN-float64"),
    ],
)


@functional
def test_func_grad(kind: str, options: dict[str, Any]) -> None:
    ours, theirs, params = twins(kind, **options)
    x = torch.randn(4, 3, 2, dtype=DOUBLE)
    close(grad(loss_of(ours), argnums=(0, 1))(params, x), grad(loss_of(theirs), argnums=(0, 1))(params, x))
    close(jacrev(loss_of(ours), argnums=1)(params, x), jacrev(loss_of(theirs), argnums=1)(params, x))


@functional
def test_func_grad_of_grad(kind: str, options: dict[str, Any]) -> None:
    ours, theirs, params = twins(kind, **options)
    x = torch.randn(3, 2, 2, dtype=DOUBLE)

    def twice(module: Any) -> Any:
        return jacrev(grad(loss_of(module), argnums=1), argnums=1)(params, x)

    close(twice(ours), torch.autograd.functional.hessian(lambda x: loss_of(theirs)(params, x), x))


@functional
def test_vmap_over_inputs(kind: str, options: dict[str, Any]) -> None:
    ours, theirs, params = twins(kind, **options)
    xs = torch.randn(4, 5, 3, 2, dtype=DOUBLE)  # batched along the second axis
    expected = torch.stack([theirs(x)[0] for x in xs.unbind(1)]).detach()

    def call(x: Tensor) -> Tensor:
        return functional_call(ours, params, (x,))[0]

    close(vmap(call, in_dims=1)(xs), expected)
    with torch.no_grad():
        close(vmap(call, in_dims=1)(xs), expected)
        nested = xs.movedim(1, 0).unflatten(0, (1, 5))
        close(vmap(vmap(call))(nested)[0], expected)


@functional
def test_gradients_of_each_sample(kind: str, options: dict[str, Any]) -> None:
    ours, theirs, params = twins(kind, **options)
    xs = torch.randn(5, 4, 3, 2, dtype=DOUBLE)
    each = [grad(loss_of(theirs))(params, x) for x in xs]
    expected = {name: torch.stack([one[name] for one in each]) for name in params}
    close(vmap(grad(loss_of(ours)), in_dims=(None, 0))(params, xs), expected)

    def total(params: dict[str, Tensor]) -> Tensor:
        return vmap(loss_of(ours), in_dims=(None, 0))(params, xs).sum()

    close(grad(total)(params), {name: value.sum(0) for name, value in expected.items()})


@functional
@pytest.mark.parametrize("shared_input", [True, False])
def test_an_ensemble_by_vmap_over_weights(kind: str, options: dict[str, Any], shared_input: bool) -> None:
    members: list[Any] = [getattr(gpulstm.torch, kind)(2, 3, **options, dtype=DOUBLE) for _ in range(3)]
    params, buffers = stack_module_state(members)  # type: ignore[arg-type]
    x = torch.randn(*(() if shared_input else (3,)), 4, 5, 2, dtype=DOUBLE)

    def call(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(members[0], (params, buffers), (x,))[0]

    dims = (0, None if shared_input else 0)
    outputs = vmap(call, in_dims=dims)(params, x)
    expected = torch.stack([member(x if shared_input else x[k])[0] for k, member in enumerate(members)])
    close(outputs, expected)
    of_ours = torch.autograd.grad(outputs.sin().sum(), list(params.values()))
    of_each = torch.autograd.grad(expected.sin().sum(), [p for m in members for p in m.parameters()])
    count = len(params)
    for k, value in enumerate(of_ours):
        close(value, torch.stack(of_each[k::count]))


def test_ragged_sequences_that_share_weights_become_one_batch() -> None:
    x, state, weights, lengths = arguments(directions=2, ragged=True)
    xs = torch.stack([x, 2 * x, -x], dim=1)
    assert lengths is not None
    valid = torch.arange(len(x))[:, None, None] < lengths[:, None]

    def call(x: Tensor) -> list[Tensor]:
        return operator.forward(x, state, weights, lengths, "lstm", "numba_cpu", False)

    together = vmap(call, in_dims=1)(xs)
    for k, one in enumerate(xs.unbind(1)):
        for a, b in zip(together, call(one), strict=True):
            close(a[k] * valid, b * valid) if len(b) == len(x) else close(a[k], b)


# --- programs that leave Python


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
@functional
def test_compile_without_a_graph_break(kind: str, options: dict[str, Any], dynamic: bool | None) -> None:
    ours, _, _ = twins(kind, **options)
    check_compiled(ours, "aot_eager", dynamic)


def check_compiled(module: Any, backend: str, dynamic: bool | None) -> None:
    """Values and gradients of a compiled module are those of the module, at several shapes."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    parameters = list(module.parameters())
    for steps, batch in ((4, 3), (6, 5), (9, 2)):
        x = torch.randn(steps, batch, 2, dtype=DOUBLE, requires_grad=True)
        results = []
        for call in (compiled, module):
            y, state = call(x)
            loss = y.sin().sum() + (state if isinstance(state, Tensor) else state[-1]).sum()
            results.append((y, torch.autograd.grad(loss, [x, *parameters])))
        close(*results)
        with torch.no_grad():
            close(compiled(x)[0], module(x)[0])


def test_dynamic_shapes_compile_once() -> None:
    torch._dynamo.reset()
    counter = testing.CompileCounterWithBackend("aot_eager")
    lstm = LSTM(2, 3)
    compiled, counts = torch.compile(lstm, fullgraph=True, backend=counter, dynamic=True), []
    for steps, batch in ((4, 3), (6, 5), (9, 2)):
        x = torch.randn(steps, batch, 2)
        assert torch.equal(compiled(x)[0], lstm(x)[0])
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


def test_compiled_functional_gradient() -> None:
    """torch.compile takes no autograd.Function inside torch.func: there it is given the equations."""
    torch._dynamo.reset()
    ours, theirs, params = twins()
    x = torch.randn(4, 3, 2, dtype=DOUBLE)
    compiled = torch.compile(grad(loss_of(ours)), fullgraph=True, backend="aot_eager")
    close(compiled(params, x), grad(loss_of(theirs))(params, x))


def test_export_round_trip(tmp_path: Any) -> None:
    lstm = LSTM(2, 3, num_layers=2, bidirectional=True, dtype=DOUBLE)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    x = torch.randn(4, 3, 2, dtype=DOUBLE)
    program = torch.export.export(lstm, (x,), dynamic_shapes=({0: steps, 1: batch}, None)[:1])
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.gpulstm.layer_forward.default) == 2  # one a layer, whatever the steps
    torch.export.save(program, tmp_path / "lstm.pt2")
    loaded = torch.export.load(tmp_path / "lstm.pt2").module()
    longer = torch.randn(7, 5, 2, dtype=DOUBLE)
    output, (h, c) = loaded(longer)
    for actual, expected in zip((output, h, c), (lambda y, s: (y, *s))(*lstm(longer)), strict=True):
        assert torch.equal(actual, expected)
    own = dict(loaded.named_parameters())  # it can be trained on
    grads = torch.autograd.grad(output.sin().sum(), list(own.values()))
    expected = torch.autograd.grad(lstm(longer)[0].sin().sum(), [lstm.get_parameter(name) for name in own])
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a, b)


def test_tracing_records_the_operator() -> None:
    lstm = LSTM(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is on its way out, and that it fixes the shapes
        traced = torch.jit.trace(lstm, torch.randn(4, 3, 2))
    other = torch.randn(4, 3, 2)
    assert torch.equal(traced(other)[0], lstm(other)[0])


# --- the same bits


def test_the_same_bits_on_every_run_and_number_of_threads() -> None:
    torch.manual_seed(0)
    lstm = LSTM(40, 70, num_layers=2, bidirectional=True)
    x = torch.randn(30, 20, 40)
    before, results = crew.size, []
    try:
        for threads in (1, 2, 3, 1):
            crew.resize(threads)
            y, (h, c) = lstm(x)
            results.append((y, h, c, *torch.autograd.grad(y.sum() + c.sum(), list(lstm.parameters()))))
    finally:
        crew.resize(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@variants
def test_nothing_by_chance_in_what_the_operator_returns(variant: dict[str, Any]) -> None:
    x, state, weights, lengths = arguments(**variant)
    call = x, state, weights, lengths, variant["cell"], "numba_cpu", True
    expected = operator.forward(*call)
    with arrays.poison():  # every buffer starts as NaN
        poisoned = operator.forward(*call)
    assert all(torch.equal(a, b) for a, b in zip(expected, poisoned, strict=True))


def test_one_call_a_layer() -> None:
    """A profile of a training step shows the operator once a layer and direction of the pass, never once a step."""
    lstm = LSTM(2, 3, num_layers=2, bidirectional=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        lstm(torch.randn(50, 3, 2))[0].sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["gpulstm::layer_forward"] == counts["gpulstm::layer_backward"] == 2


# --- what kernels are given


@variants
def test_tensors_of_any_layout(variant: dict[str, Any]) -> None:
    """Kernels go by addresses: what has gaps, or lies in another order, is copied before."""
    x, state, weights, lengths = arguments(**variant)

    def with_gaps(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2, -1)[..., ::2]

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    expected: Any = None
    for of in (lambda tensor: tensor, with_gaps, turned):
        names, limits = (variant["cell"], "numba_cpu"), None if lengths is None else of(lengths)
        given = of(x), [of(part) for part in state], [of(weight) for weight in weights], limits
        y, *rest = operator.forward(*given, *names, False)
        first, *others = operator.forward(*given, *names, True)
        tape = [of(part) for part in (first, *others[len(state) :])]
        upstream = of(torch.ones_like(y)), [of(part) for part in state]
        found = [y, *rest, *operator.backward(*given, tape, *upstream, *names)]
        expected = found if expected is None else expected
        valid = 1 if lengths is None else (torch.arange(len(x))[:, None] < lengths)[:, :, None]
        assert torch.equal(found[0] * valid, expected[0] * valid)
        assert all(torch.equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "weight_ih_l0",
            torch.zeros(8, 3),
            r"weight_ih: expected float32 of shape \(16, 3\), got float32 of shape \(8",
        ),
        ("weight_hh_l0_reverse", torch.zeros(16, 3), r"weight_hh_reverse: expected float32 of shape \(16, 4\)"),
        ("bias_hh_l0", torch.zeros(16, 1), r"bias_hh: expected float32 of shape \(16,\)"),
    ],
)
def test_a_weight_that_does_not_fit(name: str, value: Tensor, message: str) -> None:
    """Kernels would read past its end."""
    lstm = LSTM(3, 4, bidirectional=True)
    setattr(lstm, name, torch.nn.Parameter(value))
    with pytest.raises(ValueError, match=message):
        lstm(torch.zeros(5, 2, 3))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_automatic_choice_passes_over_a_backend_without_the_cell(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for that one: the next that runs computes."""
    lstm, x = LSTM(2, 3), torch.randn(4, 2, 2)
    with use_backend("reference"):
        expected = lstm(x)[0]
    torch.compiler.reset()
    monkeypatch.setattr(cpu_layer, "why_not", lambda shape: f"it has no cell {shape.cell.name}")
    monkeypatch.setattr(cpu_layer, "layer_forward", lambda *args: pytest.fail("computed"))
    module: Any = torch.compile(lstm, fullgraph=True, backend="aot_eager") if compiled else lstm
    assert torch.equal(module(x)[0], expected)
    monkeypatch.setattr(reference, "why_not", lambda shape: "nor has it")
    torch.compiler.reset()
    with pytest.raises(BackendUnavailable, match="device: no backend can compute this on 'cpu': numba_cpu: it has no"):
        lstm(x)
