"""A torch module in the training loop: torch's own steps, and everything of it in the checkpoint."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_task import TYPES, Attention, ModuleTask, Numbers, trainer

import gpulstm
from gpulstm import optim
from gpulstm.data import Batch
from gpulstm.torch import LSTM, Recurrent
from gpulstm.train import CheckpointError, TorchModel, checkpoint

X = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)
RULES = {
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (optim.Adam, torch.optim.Adam, {"lr": 0.01}),
}

pytestmark = pytest.mark.usefixtures("in_numpy")


def linear(*sizes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def step(model: TorchModel, x: Any, dy: Any) -> dict[str, np.ndarray]:
    """The gradients of one call."""
    _, pullback = model.vjp(x)
    return pullback(dy)[2]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-11)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", ["reference", pytest.param("numba_cpu", marks=pytest.mark.slow)])
def test_the_steps_of_torchs_own_loop(backend: str, rule: str, dtype: str, tolerance: float) -> None:
    """Whose LSTM is torch's, of the same parameters."""
    ours, theirs, options = RULES[rule]
    task, module = ModuleTask(Attention(dtype), dtype), Attention(dtype)
    module.lstm = torch.nn.LSTM(3, 5, dtype=TYPES[dtype])  # type: ignore[assignment]
    module.load_state_dict(task.model.module.state_dict())
    optimizer, batches = theirs(module.parameters(), **options), Numbers(dtype)
    losses = []
    for _ in range(20):
        batch = batches.next()
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module(torch.from_numpy(batch["inputs"])), torch.tensor(batch["targets"]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with gpulstm.use_backend(backend):
        found = trainer(task, ours(**options), clip=None).run(steps=20)
    assert found.loss == pytest.approx(losses[-1], rel=tolerance)
    start = Attention(dtype).state_dict()
    for name, value in module.state_dict().items():
        np.testing.assert_allclose(task.model.params[name], value.numpy(), rtol=tolerance, atol=tolerance)
        assert not np.allclose(value.numpy(), start[name].numpy(), atol=1e-3), name


def test_clipping_is_torchs() -> None:
    task, module = ModuleTask(Attention("float64"), "float64"), Attention("float64")
    batch = Numbers("float64").next()
    loss = torch.nn.functional.mse_loss(module(torch.from_numpy(batch["inputs"])), torch.tensor(batch["targets"]))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    assert norm > 0.02
    before = task.model.state_dict()
    trainer(task, optim.SGD(1.0), clip=0.01).run(steps=1)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        expected = before[name] - parameter.grad.numpy()
        np.testing.assert_allclose(task.model.params[name], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path: Path, rule: str) -> None:
    """With dropout, and with the buffers of a normalization by batch."""
    ours, _, options = RULES[rule]

    def make(out: Path) -> Any:
        task = ModuleTask(Attention(dropout=0.5, norm=True))
        return trainer(task, ours(**options), out, save_every=1, keep=100, validate_every=2)

    make(tmp_path / "whole").run(steps=8)
    expected = checkpoint.load(tmp_path / "whole")
    assert {"norm.running_mean", "norm.num_batches_tracked"} <= expected.model.keys()
    assert expected.model["norm.num_batches_tracked"] == 8
    for stop in (0, 3, 7):
        again = make(tmp_path / str(stop))
        again.task.model.module.norm.running_mean.fill_(7.0)
        again.resume(checkpoint.load(checkpoint.path_of(tmp_path / "whole", stop)))
        again.run(steps=8)
        found = checkpoint.load(tmp_path / str(stop))
        same(found.model, expected.model)
        same(found.training, expected.training)
        assert found.record["validation"] == expected.record["validation"]
        assert found.record["rng"] == expected.record["rng"]


def test_what_is_drawn_follows_from_the_generator() -> None:
    model = TorchModel(torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Dropout(0.5)))
    before = torch.get_rng_state()
    first, again, other = (model.vjp(X, rng=seed)[0][0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    assert 0.4 < np.mean(first == 0) < 0.6
    assert not np.array_equal(first, other)
    rng = np.random.default_rng(5)
    assert not np.array_equal(model.vjp(X, rng=rng)[0][0], model.vjp(X, rng=rng)[0][0])
    assert np.all(model(X) != 0)


def test_noise_of_cells_follows_from_the_generator() -> None:
    model = TorchModel(Recurrent("zoneout", 3, 8, noise={"keep_c": 0.5, "keep_h": 0.5}))
    first, again, other = (model.vjp(X, rng=seed)[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_parameters_are_in_torchs_memory() -> None:
    model = TorchModel(linear(3, 2))
    model.params["0.weight"][...] = 5.0
    assert model.module.get_parameter("0.weight").eq(5.0).all()
    model.module.double()
    assert model.params["0.weight"].dtype == np.float64
    model.params["0.weight"][...] = 6.0
    assert model.module.get_parameter("0.weight").eq(6.0).all()


class Tied(torch.nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.embedding(ids))
        return result


def test_shared_weights() -> None:
    model, module = TorchModel(Tied()), Tied()
    assert sorted(model.params) == ["embedding.weight", "head.bias"]
    assert sorted(model.state_dict()) == ["embedding.weight", "head.bias", "head.weight"]
    ids = np.array([[1, 2], [2, 6]])
    dy = np.random.default_rng(0).standard_normal((2, 2, 7)).astype(np.float32)
    module(torch.from_numpy(ids)).backward(torch.from_numpy(dy))
    found = step(model, ids, dy)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-6)
    optim.SGD(0.1).step(model.params, found)
    assert model.module.embedding.weight is model.module.head.weight
    state = model.state_dict()
    np.testing.assert_array_equal(state["head.weight"], state["embedding.weight"])
    model.load_state_dict(state)
    state["head.weight"] = state["head.weight"] + 1
    message = r"state_dict\['head.weight'\]: expected the values of 'embedding.weight', which is the same tensor"
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)


def test_frozen_parameters_are_left_alone(tmp_path: Path) -> None:
    module = Attention()
    module.lstm.requires_grad_(False)
    task = ModuleTask(module)
    assert sorted(task.model.params) == ["head.bias", "head.weight", "query.weight"]
    before = task.model.state_dict()
    trainer(task, optim.AdamW(0.1, weight_decay=0.5), tmp_path).run(steps=3)
    saved = checkpoint.load(tmp_path).model
    assert saved.keys() == before.keys()
    for name, value in before.items():
        assert np.array_equal(saved[name], value) == name.startswith("lstm."), name


class Views(torch.nn.Module):
    """Adds two parameters, whose gradients autograd makes as views of one array, and has a third without use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.zeros(6)), torch.nn.Parameter(torch.zeros(6))
        self.unused = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a.view(2, 3) + self.b.view(2, 3) + x


def test_gradients_share_no_memory() -> None:
    found = step(TorchModel(Views()), np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert not np.shares_memory(found["a"], found["b"])
    optim.clip_by_norm(found, 1.0)
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], np.full(6, 12**-0.5), rtol=1e-6)
    np.testing.assert_array_equal(found["unused"], np.zeros(2))


def test_sparse_gradients_are_those_of_dense_ones() -> None:
    dense, sparse = (TorchModel(torch.nn.Embedding(5, 2, sparse=sparse)) for sparse in (False, True))
    ids, dy = np.array([1, 1, 4]), np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(step(sparse, ids, dy)["weight"], step(dense, ids, dy)["weight"])


def test_modes() -> None:
    module = Attention(dropout=0.5, norm=True)
    module.norm.eval()
    model = TorchModel(module)
    model.vjp(X, rng=0)
    assert (module.training, module.norm.training, module.dropout.training) == (True, False, True)
    assert module.norm.num_batches_tracked == 0
    model(X)
    assert (module.training, module.norm.training, module.dropout.training) == (True, False, True)
    module.eval()
    np.testing.assert_array_equal(model(X), module(torch.from_numpy(X)).detach().numpy())
    assert not module.training
    model.vjp(X, rng=0)
    assert module.norm.training


def test_a_state_is_carried(tmp_path: Path) -> None:
    lstm = TorchModel(LSTM(3, 2))
    y, (h, c) = lstm(X)
    first, state = lstm(X[:2])
    second, last = lstm(X[2:], state)
    np.testing.assert_allclose(np.concatenate([first, second]), y, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(np.stack(last), np.stack([h, c]), rtol=1e-6, atol=1e-7)

    def make(out: Path | None) -> Any:
        torch.manual_seed(0)
        task = ModuleTask(LSTM(3, 2))
        task.loss = lambda output, batch: (0.0, np.ones_like(output))  # type: ignore[method-assign]
        task.batches.next = lambda: Batch({"inputs": X}, fresh=False)  # type: ignore[method-assign]
        return trainer(task, optim.SGD(0.01), out, save_every=1)

    whole, half = make(None), make(tmp_path)
    whole.run(steps=4)
    half.run(steps=2)
    resumed = make(None)
    resumed.resume(checkpoint.load(tmp_path))
    resumed.run(steps=4)
    same(resumed.task.model.state_dict(), whole.task.model.state_dict())
    for found, expected in zip(resumed.state, whole.state, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_lengths_reach_the_module() -> None:
    model = TorchModel(Recurrent("lstm", 3, 2))
    y, _ = model(X, lengths=np.array([1, 6, 3, 2], np.int32))
    assert (y[:, 0] != 0).any(axis=1).tolist() == [True] + [False] * 5
    assert (y[:, 1] != 0).all()
    np.testing.assert_array_equal(model(X, lengths=[1, 6, 3, 2])[0], y)


class Several(torch.nn.Module):
    """Two inputs and two outputs, by position or by name."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.named = torch.nn.Linear(3, 2), torch.nn.Linear(4, 2), named

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        y, z = self.first(a), self.second(b) * self.first(a)
        return {"z": z, "y": y, "ids": y.argmax(-1)} if self.named else (y, [z, y.detach()])


def test_several_inputs_and_outputs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((5, 4)).astype(np.float32)
    module = Several(named=False)
    y, (z, _) = module(torch.from_numpy(a), torch.from_numpy(b))
    (y.square().mean() + 3 * z.sum()).backward()

    def named(output: Any, batch: Batch) -> torch.Tensor:
        return output["y"].square().mean() + batch["weight"] * output["z"].sum()

    def placed(output: Any, batch: Batch) -> torch.Tensor:
        return output[0].square().mean() + batch["weight"] * output[1][0].sum()

    batch = Batch({"weight": np.array([3.0], np.float32)}, tokens=5)
    for model, x in (
        (TorchModel(Several(named=True), named), {"b": b, "a": a}),
        (TorchModel(Several(named=False), placed), (a, b)),
    ):
        (output, _), pullback = model.vjp(x)
        loss, gradient = model.loss(output, batch)
        assert loss == pytest.approx((y.square().mean() + 3 * z.sum()).item(), rel=1e-6)
        for name, value in pullback(gradient)[2].items():
            expected = module.get_parameter(name).grad
            assert expected is not None
            np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_threads_of_torch() -> None:
    class Counting(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    seen: list[int] = []
    before = torch.get_num_threads()
    for threads, expected in ((None, before), (1, 1), (3, 3)):
        model = TorchModel(Counting(3, 2), threads=threads)
        _, pullback = model.vjp(X)
        model.module.weight.register_hook(lambda gradient: seen.append(torch.get_num_threads()))
        pullback(np.ones((6, 4, 2), np.float32))
        model(X)
        assert seen == [expected, expected, expected]
        assert torch.get_num_threads() == before
        seen.clear()
    with pytest.raises(ValueError, match="threads: expected an integer >= 1, got 0"):
        TorchModel(linear(3, 2), threads=0)


def test_arrays_that_torch_cannot_look_at_are_copied() -> None:
    model = TorchModel(linear(3, 2))
    x = X.copy()
    expected = model(x)
    x.flags.writeable = False
    np.testing.assert_array_equal(model(x), expected)
    np.testing.assert_array_equal(model(x[::-1])[::-1], expected)
    np.testing.assert_array_equal(model(np.broadcast_to(x[:1], x.shape))[3], expected[0])


def half() -> torch.nn.Module:
    return torch.nn.Linear(3, 2).bfloat16()


def with_buffer(value: Any) -> torch.nn.Module:
    module = torch.nn.Linear(3, 2)
    module.register_buffer("mask", value)
    return module


class Extra(torch.nn.Linear):
    def get_extra_state(self) -> Any:
        return "more"


@pytest.mark.parametrize(
    ("module", "loss", "error", "message"),
    [
        (3, None, TypeError, "module: expected a torch.nn.Module, got 3"),
        (torch.nn.Linear, None, TypeError, "module: expected a torch.nn.Module, got <class"),
        (torch.nn.ReLU(), None, ValueError, "module: expected parameters that take a gradient, got ReLU with none"),
        (linear(3, 2).requires_grad_(False), None, ValueError, "that take a gradient, got Sequential with none"),
        (half(), None, TypeError, "module: expected float32 or float64, got 'weight' of torch.bfloat16"),
        (with_buffer(torch.tensor([0.0, -torch.inf])), None, ValueError, "infinite ones in 'mask'; .*persistent=False"),
        (with_buffer(torch.ones(2, dtype=torch.complex64)), None, TypeError, "'mask' of torch.complex64"),
        (Extra(3, 2), None, TypeError, "module: expected a state dict of tensors, got 'more' as '_extra_state'"),
        (torch.nn.LazyLinear(2), None, ValueError, "module: expected parameters that have a shape, got 'weight'"),
        (torch.nn.Linear(3, 2, device="meta"), None, ValueError, "tensors on the CPU, .*, got 'weight', .* on meta"),
        (linear(3, 2), 3, TypeError, "loss: expected None or a function, got 3"),
        (linear(3, 2), torch.nn.Linear(2, 1), ValueError, "loss: expected one without parameters, .* got Linear"),
    ],
)
def test_what_is_refused(module: Any, loss: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TorchModel(module, loss)


class Constant(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Forgetful(torch.nn.Linear):
    def forward(self, x: torch.Tensor, state: Any = None) -> torch.Tensor:
        return super().forward(x)


class Wordy(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), "text"


def test_wrong_calls() -> None:
    model = TorchModel(linear(3, 2))
    for call in (model, model.forward, model.vjp):
        with pytest.raises(ValueError, match=r"state: expected None or \(\), since Sequential has no state, got list"):
            call(X, [1])
        with pytest.raises(ValueError, match="lengths: expected None, since Sequential takes none, got list"):
            call(X, lengths=[1, 2])
        with pytest.raises(TypeError, match=r"x: expected .*, got str"):
            call("x")
    with pytest.raises(TypeError, match=r"rng: expected a numpy\.random\.Generator"):
        model.vjp(X, rng="x")
    with pytest.raises(TypeError, match="lengths: expected an integer dtype, got float64"):
        TorchModel(Recurrent("lstm", 3, 2))(X, lengths=[1.5])
    with pytest.raises(ValueError, match="module: expected an output that depends on parameters"):
        TorchModel(Constant(3, 2)).vjp(X)
    with pytest.raises(TypeError, match="module: expected output and state of Forgetful, whose forward takes state"):
        TorchModel(Forgetful(3, 2))(X)
    with pytest.raises(TypeError, match="module: expected an output of tensors, got 'text'"):
        TorchModel(Wordy(3, 2))(X)
    _, pullback = model.vjp(X)
    for dy in (np.ones((6, 4, 3), np.float32), (np.ones((6, 4, 2), np.float32),) * 2):
        with pytest.raises(ValueError, match=r"dy: expected arrays of shapes \[\(6, 4, 2\)\], as the output, got \["):
            pullback(dy)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (None, TypeError, "loss: expected a function, which TorchModel was made without"),
        (lambda y, batch: y, TypeError, r"loss: expected a tensor with one element, got \(6, 4, 2\)"),
        (lambda y, batch: 1.0, TypeError, "loss: expected a tensor with one element, got 1.0"),
        (lambda y, batch: y.detach().sum(), ValueError, "loss: expected a value that depends on the output"),
    ],
)
def test_wrong_losses(loss: Any, error: type[Exception], message: str) -> None:
    model = TorchModel(linear(3, 2), loss)
    with pytest.raises(error, match=message):
        model.loss(model(X), Batch({"inputs": X}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm.bias": None}, ValueError, r"keys do not fit Attention: missing \['norm.bias'\], unexpected \[\]"),
        ({"other": np.ones(1)}, ValueError, r"missing \[\], unexpected \['other'\]; expected \['head.bias', "),
        ({"norm.bias": np.ones(4)}, ValueError, r"state_dict\['norm.bias'\]: expected shape \(5,\), got \(4,\)"),
        ({"norm.bias": np.ones(5, int)}, TypeError, r"state_dict\['norm.bias'\]: expected dtype float32, got int64"),
        ({"norm.num_batches_tracked": np.ones(())}, TypeError, "expected dtype int64, got float64"),
        ({"norm.bias": np.full(5, 1e300)}, ValueError, r"state_dict\['norm.bias'\]: holds NaN or infinite values"),
        ({"norm.bias": [1.0] * 5}, TypeError, r"state_dict\['norm.bias'\]: expected "),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change: Any, error: type[Exception], message: str) -> None:
    model = TorchModel(Attention(norm=True))
    before = model.state_dict()
    given = {name: value + 1 for name, value in before.items()} | change
    with pytest.raises(error, match=message):
        model.load_state_dict({name: value for name, value in given.items() if value is not None})
    same(model.state_dict(), before)


def test_the_checkpoint_of_another_module(tmp_path: Path) -> None:
    trainer(ModuleTask(Attention()), optim.SGD(0.1), tmp_path).run(steps=1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not fit this run: model: state_dict: keys do"):
        trainer(ModuleTask(Attention(norm=True)), optim.SGD(0.1)).resume(checkpoint.load(tmp_path))


@pytest.mark.slow
def test_torch_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, gpulstm.train; assert 'torch' not in sys.modules; "
    code += "gpulstm.train.TorchModel; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
