"""gpulstm.torch's modules as modules: constructors, state, weights that are no plain parameters, dtypes, bad input."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import gpulstm.torch
from gpulstm.torch import LSTM, RNN, LSTMCell, RNNCell

torch.set_num_threads(1)  # for problems this small its pool only spins against ours

DOUBLE, HALF = torch.float64, torch.bfloat16
KINDS = ("LSTM", "GRU", "RNN", "LSTMCell")
CELLS = ("GRUCell", "RNNCell")  # which return no tuple


def twins(kind: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """gpulstm's module and torch's, drawn from one seed."""
    made = []
    for library in (gpulstm.torch, torch.nn):
        torch.manual_seed(0)
        made.append(getattr(library, kind)(*arguments, **options))
    return made[0], made[1]


def check(ours: Any, theirs: Any, x: Any) -> None:
    """Outputs, and gradients of the parameters by name, are the same up to rounding."""
    results = []
    for module in (ours, theirs):
        module.zero_grad()
        y = module(x)[0]
        y.sin().sum().backward()
        results.append((y, {name: parameter.grad for name, parameter in module.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


# --- constructors and state


@pytest.mark.parametrize(
    ("kind", "arguments", "options"),
    [
        ("LSTM", (3, 4), {}),
        ("LSTM", (3, 4, 2, False, True, 0.5, True, 2), {}),
        ("LSTM", (3, 4, 2, True, False, 0.0, False, 0, "cpu", DOUBLE), {}),
        ("LSTM", (), {"input_size": 3, "hidden_size": 4, "proj_size": 1, "dtype": DOUBLE}),
        ("RNN", (3, 4), {}),
        ("RNN", (3, 4, 2, "tanh", False, True, 0.5, True), {}),
        ("RNN", (3, 4), {"nonlinearity": "tanh", "num_layers": 3}),
        ("GRU", (3, 4), {}),
        ("GRU", (3, 4, 2, False, True, 0.5, True), {}),
        ("GRU", (), {"input_size": 3, "hidden_size": 4, "bidirectional": True, "dtype": DOUBLE}),
        ("RNN", (3, 4, 2, "relu"), {"bidirectional": True}),
        ("LSTMCell", (3, 4), {}),
        ("GRUCell", (3, 4), {}),
        ("GRUCell", (3, 4, False, "cpu", DOUBLE), {}),
        ("RNNCell", (3, 4), {}),
        ("RNNCell", (3, 4, False, "relu", "cpu", DOUBLE), {}),
        ("LSTMCell", (3, 4, False, "cpu", DOUBLE), {}),
    ],
)
def test_a_module_is_made_as_torch_makes_it(kind: str, arguments: Any, options: Any) -> None:
    ours, theirs = twins(kind, *arguments, **options)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
        assert ours.state_dict()[name].dtype == value.dtype
    for a, b in ((ours, theirs), (theirs, ours)):
        a.reset_parameters()
        b.load_state_dict(a.state_dict(), strict=True)
    if not kind.endswith("Cell"):
        assert isinstance(ours, torch.nn.RNNBase)
        for a, b in zip(*(chain(*module.all_weights) for module in (ours, theirs)), strict=True):
            assert torch.equal(a, b)
        ours.flatten_parameters()


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 0},
        {"hidden_size": 2.5},
        {"bias": 1},
        {"num_layers": 0},
        {"dropout": 2},
        {"proj_size": 9},
        {"x": 1},
    ],
)
def test_what_torch_refuses_is_refused_alike(kind: str, options: dict[str, Any]) -> None:
    errors = []
    for library in (torch.nn, gpulstm.torch):
        try:
            getattr(library, kind)(**{"input_size": 3, "hidden_size": 4, **options})
            errors.append(None)
        except (TypeError, ValueError, RuntimeError) as error:
            errors.append(error)
    # an argument that torch's RNN passes on by name is none of ours: TypeError rather than its ValueError
    assert (errors[0] is None) == (errors[1] is None)
    if "proj_size" not in options:
        assert type(errors[0]) is type(errors[1])


@pytest.mark.parametrize("sizes", [(3, 0), (0, 4)])
@pytest.mark.parametrize("kind", ["LSTMCell", *CELLS])
def test_a_cell_may_have_a_size_of_0(kind: str, sizes: tuple[int, int]) -> None:
    ours, theirs = twins(kind, *sizes)
    x = torch.ones(2, sizes[0])
    for a, b in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [RNN, RNNCell])
@pytest.mark.parametrize("value", ["sin", "", None, 1])
def test_another_nonlinearity(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="nonlinearity: expected one of tanh, relu, got"):
        kind(3, 4, nonlinearity=value)


OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("GRU", "GRUCell")]  # whose kernels are compiled


@pytest.mark.parametrize("kind", ["LSTM", "RNN", "LSTMCell", "RNNCell", *OTHERS], ids=lambda kind: f"{kind}-float64")
def test_copies_are_independent_and_state_dicts_travel(kind: str) -> None:
    ours, theirs = twins(kind, 3, 4, dtype=DOUBLE)
    x = torch.randn(5, 3, dtype=DOUBLE)
    check(copy.deepcopy(ours), theirs, x)
    clone = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert not clone(x)[0].any()
    check(ours, theirs, x)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    clone.load_state_dict(torch.load(file, weights_only=True))
    check(clone, theirs, x)


def test_meta_modules_give_shapes_without_data() -> None:
    lstm = LSTM(3, 4, num_layers=2, bidirectional=True, device="meta")
    y, (h, c) = lstm(torch.empty(5, 2, 3, device="meta"))
    assert (y.shape, h.shape, c.shape, y.device.type) == ((5, 2, 8), (4, 2, 4), (4, 2, 4), "meta")
    lstm = lstm.to_empty(device="cpu")
    lstm.reset_parameters()
    assert lstm(torch.randn(5, 2, 3))[0].isfinite().all()


# --- weights that are no plain parameters


def weight_norm(module: Any) -> None:
    parametrizations.weight_norm(module, "weight_hh_l0")
    parametrizations.weight_norm(module, "weight_ih_l1", dim=1)


def spectral_norm(module: Any) -> None:
    torch.manual_seed(1)
    parametrizations.spectral_norm(module, "weight_hh_l0")
    module.eval()  # in training every look at the weight is a power iteration, and torch's LSTM takes several


def orthogonal(module: Any) -> None:
    torch.manual_seed(1)
    parametrizations.orthogonal(module, "weight_hh_l1", orthogonal_map="cayley")


def pruned(module: Any) -> None:
    prune.l1_unstructured(module, "weight_ih_l0", amount=0.4)


def tied(module: Any) -> None:
    module.weight_hh_l1 = module.weight_hh_l0


def replaced(module: Any) -> None:
    torch.manual_seed(1)
    module.weight_hh_l0 = torch.nn.Parameter(torch.randn_like(module.weight_hh_l0))


def frozen(module: Any) -> None:
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l1.requires_grad_(False)


def transposed(module: Any) -> None:
    module.weight_hh_l0.data = module.weight_hh_l0.data.T.contiguous().T


def cast(module: Any) -> None:
    module.float().double()


@pytest.mark.parametrize(
    "change", [weight_norm, spectral_norm, orthogonal, pruned, tied, replaced, frozen, transposed, cast]
)
def test_weights_are_read_when_they_are_used(change: Callable[[Any], None]) -> None:
    ours, theirs = twins("LSTM", 4, 4, num_layers=2, dtype=DOUBLE)
    x = torch.randn(5, 3, 4, dtype=DOUBLE)
    for module in (ours, theirs):
        change(module)
    check(ours, theirs, x)
    for module in (ours, theirs):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter *= 1.1
        module.eval()
    check(ours, theirs, x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_the_older_weight_norm_that_works_by_a_hook() -> None:
    ours, theirs = twins("LSTM", 4, 4, dtype=DOUBLE)
    for module in (ours, theirs):
        torch.nn.utils.weight_norm(module, "weight_hh_l0")
    check(ours, theirs, torch.randn(5, 3, 4, dtype=DOUBLE))


def test_a_replica_of_data_parallel_reads_its_own_weights() -> None:
    """What torch.nn.parallel.replicate does for each GPU, on the CPU: copies of the parameters, set by name."""
    lstm = LSTM(3, 4, dtype=DOUBLE)
    replica: Any = lstm._replicate_for_data_parallel()
    own = {name: (2 * parameter).detach() for name, parameter in lstm.named_parameters()}
    for name, value in own.items():
        setattr(replica, name, value)
    x = torch.randn(5, 2, 3, dtype=DOUBLE)
    expected = torch.func.functional_call(lstm, own, (x,))[0]
    assert torch.equal(replica(x)[0], expected)
    assert not torch.equal(lstm(x)[0], expected)


# --- dtypes


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.parametrize("dtype", [torch.float16, HALF])
def test_half_types_are_computed_in_float32_and_come_back(kind: str, dtype: torch.dtype) -> None:
    half = getattr(gpulstm.torch, kind)(3, 4, dtype=dtype)
    single = getattr(gpulstm.torch, kind)(3, 4)
    single.load_state_dict(half.state_dict())
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    results = []
    for module, given in ((half, x), (single, x.float())):
        parts = module(given)
        parts = [parts[0], *(parts[1] if isinstance(parts[1], tuple) else parts[1:])]
        grads = torch.autograd.grad(sum(part.float().sum() for part in parts), [x, *module.parameters()])
        results.append([*parts, *grads])
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [torch.float32, HALF])
def test_autocast(kind: str, given: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # oneDNN's LSTM fails on CPUs without bfloat16
    ours, theirs = twins(kind, 3, 4)
    x = torch.randn(5, 3, dtype=given)
    with torch.autocast("cpu", dtype=HALF):
        y, state = ours(x)
        expected, _ = theirs(x)
        assert y.dtype == HALF
        assert {part.dtype for part in (state if isinstance(state, tuple) else [state])} == {HALF}
        torch.testing.assert_close(y, expected.to(HALF), rtol=3e-2, atol=3e-2)
        again, _ = ours(x, (state, state) if kind == "LSTMCell" else state)  # its own state, in bfloat16
        assert again.dtype == HALF
    y.float().sum().backward()
    assert {parameter.grad.dtype for parameter in ours.parameters()} == {torch.float32}
    ours.zero_grad()
    with torch.autocast("cpu", enabled=False):
        ours.to(given)(x)


def test_autocast_leaves_float64_alone() -> None:
    ours, theirs = twins("LSTM", 3, 4, dtype=DOUBLE)
    with torch.autocast("cpu", dtype=HALF):
        check(ours, theirs, torch.randn(5, 2, 3, dtype=DOUBLE))


# --- autograd


def test_output_and_weights_may_not_change_before_backward() -> None:
    lstm, x = LSTM(3, 4), torch.randn(5, 2, 3)
    y, _ = lstm(x)
    y.relu_()  # as with torch's, this is fine by itself
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y, _ = lstm(x)
    with torch.no_grad():
        lstm.weight_hh_l0 += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with torch.no_grad():
        y, _ = lstm(x)
        y.relu_()  # where no gradient is recorded, the output is the caller's


def test_backward_can_be_repeated_and_checkpointed() -> None:
    lstm = LSTM(3, 4, num_layers=2, dtype=DOUBLE)
    x = torch.randn(5, 2, 3, dtype=DOUBLE, requires_grad=True)
    y, _ = lstm(x)
    first = torch.autograd.grad(y.sin().sum(), x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y.sin().sum(), x)[0])
    again, _ = torch.utils.checkpoint.checkpoint(lstm, x, use_reentrant=False)
    assert torch.equal(first[0], torch.autograd.grad(again.sin().sum(), x)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_no_sequence_at_all(kind: str) -> None:
    ours, _ = twins(kind, 3, 4, num_layers=2)
    x = torch.randn(5, 0, 3, requires_grad=True)
    y, state = ours(x)
    y.sum().backward()
    assert y.shape == (5, 0, 4)
    assert not any(parameter.grad.any() for parameter in ours.parameters())
    assert (state[0] if kind == "LSTM" else state).shape == (2, 0, 4)


def test_python_threads_may_call_at_the_same_time() -> None:
    lstm = LSTM(20, 64)
    inputs = [torch.randn(50, 8, 20) for _ in range(4)]
    expected = [torch.autograd.grad(lstm(x)[0].sum(), list(lstm.parameters())) for x in inputs]
    found: dict[int, Any] = {}

    def call(k: int) -> None:
        for _ in range(5):
            found[k] = torch.autograd.grad(lstm(inputs[k])[0].sum(), list(lstm.parameters()))

    workers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(4):
        assert all(torch.equal(a, b) for a, b in zip(found[k], expected[k], strict=True))


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # its own, too
def test_packed_sequences_in_a_compiled_model() -> None:
    """Packing depends on data, so torch.compile runs it outside of its graph; the results are the same."""
    torch._dynamo.reset()
    lstm = LSTM(3, 4, dtype=DOUBLE)
    packed = pack_sequence([torch.randn(n, 3, dtype=DOUBLE) for n in (2, 5, 3)], enforce_sorted=False)
    compiled = torch.compile(lambda data: lstm(PackedSequence(data, *packed[1:]))[0].data, backend="aot_eager")
    assert torch.equal(compiled(packed.data), lstm(packed)[0].data)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["LSTMCell", *CELLS])
def test_a_cell_compiles_without_a_graph_break(kind: str) -> None:
    torch._dynamo.reset()
    cell, x = getattr(gpulstm.torch, kind)(3, 4), torch.randn(2, 3)
    compiled: Any = torch.compile(cell, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), cell(x), rtol=0, atol=0)


# --- bad input


LSTM_34 = LSTM(3, 4)
X = torch.randn(5, 2, 3)
STATE = torch.zeros(1, 2, 4)
PACKED = pack_padded_sequence(X, torch.tensor([5, 3]))


def numbers(*sizes: int) -> Tensor:
    return torch.tensor(sizes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LSTM_34(X.numpy()), TypeError, "input: expected a tensor or a PackedSequence, got ndarray"),
        (lambda: LSTM_34(X[..., :2]), ValueError, r"input: expected shape \(T, B, 3\) or \(T, 3\), got \(5, 2, 2\)"),
        (lambda: LSTM(3, 4, batch_first=True)(X[0, 0]), ValueError, r"input: expected shape \(B, T, 3\).*got \(3,\)"),
        (lambda: LSTM_34(X[:0]), ValueError, r"input: expected at least one step, got shape \(0, 2, 3\)"),
        (lambda: LSTM_34(X.long()), TypeError, "input: expected dtype torch.float32.*got torch.int64"),
        (lambda: LSTM_34(X.double()), TypeError, "input: expected dtype torch.float32.*got torch.float64"),
        (lambda: LSTM_34(X.to("meta")), ValueError, "input: expected a tensor on cpu.*got one on meta"),
        (lambda: LSTM_34(X, STATE), TypeError, r"hx: expected 2 tensors, \(h, c\), got Tensor"),
        (lambda: LSTM_34(X, (STATE,)), TypeError, r"hx: expected 2 tensors, \(h, c\), got 1 parts"),
        (lambda: LSTM_34(X, (STATE, None)), TypeError, r"hx\[1\]: expected a tensor, got NoneType"),
        (
            lambda: LSTM_34(X, (STATE, STATE[:, :1])),
            ValueError,
            r"hx\[1\]: expected shape \(1, 2, 4\), got \(1, 1, 4\)",
        ),
        (lambda: LSTM_34(X[:, 0], (STATE, STATE)), ValueError, r"hx\[0\]: expected shape \(1, 4\), got \(1, 2, 4\)"),
        (lambda: LSTM_34(X, (STATE, STATE.double())), TypeError, r"hx\[1\]: expected dtype torch.float32.*float64"),
        (lambda: LSTM_34(X, (STATE.to("meta"), STATE)), ValueError, r"hx\[0\]: expected a tensor on cpu.*on meta"),
        (lambda: RNN(3, 4)(X, (STATE,)), TypeError, "hx: expected a tensor, got tuple"),
        (lambda: RNN(3, 4)(X, STATE[0]), ValueError, r"hx: expected shape \(1, 2, 4\), got \(2, 4\)"),
        (lambda: LSTM_34(PACKED, (STATE, STATE[:, :1])), ValueError, r"hx\[1\]: expected shape \(1, 2, 4\)"),
        (
            lambda: LSTM_34(PackedSequence(torch.randn(3, 3), numbers(1, 2))),
            ValueError,
            r"input.batch_sizes: expected positive numbers that do not grow, got \[1, 2\]",
        ),
        (
            lambda: LSTM_34(PackedSequence(torch.randn(4, 3), numbers(2, 1))),
            ValueError,
            r"input.data: expected shape \(3, I\), got \(4, 3\)",
        ),
        (
            lambda: LSTM_34(PackedSequence(torch.randn(3, 2), numbers(2, 1))),
            ValueError,
            r"input.data: expected shape \(N, 3\), got \(3, 2\)",
        ),
        (lambda: LSTMCell(3, 4)(X), ValueError, r"input: expected shape \(B, 3\) or \(3,\), got \(5, 2, 3\)"),
        (lambda: LSTMCell(3, 4)(X.numpy()), TypeError, "input: expected a tensor, got ndarray"),
        (lambda: LSTMCell(3, 4)(X[0], STATE), TypeError, r"hx: expected 2 tensors, \(h, c\), got Tensor"),
        (lambda: LSTMCell(3, 4)(X[0], (STATE[0], STATE)), ValueError, r"hx\[1\]: expected shape \(2, 4\)"),
        (lambda: LSTMCell(3, 4)(X[0].double()), TypeError, "input: expected dtype torch.float32"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_autocast_takes_no_integers() -> None:
    with torch.autocast("cpu", dtype=HALF), pytest.raises(TypeError, match="input: expected dtype"):
        LSTM_34(X.long())
