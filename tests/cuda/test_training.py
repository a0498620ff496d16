"""Everything around the recurrent layers on a device: layers, losses, optimizers, and training steps in a graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

from gpulstm import nn, optim, train, use_backend
from gpulstm.data import Batch, Lanes
from gpulstm.train import Trainer, TrainingDiverged, checkpoint
from gpulstm.train.update import Update

RNG = np.random.default_rng


def numbers(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return RNG(seed).standard_normal(shape).astype(dtype)


def both(layer: Any) -> tuple[Any, Any]:
    """A layer and its twin on the device."""
    import copy

    return layer, copy.deepcopy(layer).to("cuda")


def close(runtime: Any, there: Any, here: Any, label: str) -> None:
    assert runtime.owns(there), label
    assert_close(runtime.to_host(there), here, "cuda", np.asarray(here).dtype, label)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(7,), (5, 3, 7), (300, 7)])
def test_linear(runtime: Any, dtype: str, shape: tuple[int, ...]) -> None:
    here, there = both(nn.Linear(7, 9, dtype=dtype, seed=0))
    x = numbers(shape, dtype=dtype)
    (y, _), vjp = here.vjp(x)
    (device_y, _), device_vjp = there.vjp(runtime.to_device(x))
    close(runtime, device_y, y, "y")
    dy = numbers(y.shape, 1, dtype)
    dx, _, grads = vjp(dy)
    device_dx, _, device_grads = device_vjp(runtime.to_device(dy))
    close(runtime, device_dx, dx, "dx")
    for name in grads:
        close(runtime, device_grads[name], grads[name], name)


@pytest.mark.parametrize("batch_first", [False, True])
def test_last_step_head(runtime: Any, batch_first: bool) -> None:
    here, there = both(nn.LastStepHead(5, 3, batch_first=batch_first, seed=0))
    x = numbers((4, 6, 5))
    lengths = np.array([1, 3, 6, 2]) if batch_first else np.array([1, 4, 2, 3, 4, 1])
    (y, _), vjp = here.vjp(x, lengths=lengths)
    (device_y, _), device_vjp = there.vjp(runtime.to_device(x), lengths=lengths)
    close(runtime, device_y, y, "y")
    dy = numbers(y.shape, 1)
    close(runtime, device_vjp(runtime.to_device(dy))[0], vjp(dy)[0], "dx")
    close(runtime, there(runtime.to_device(x[0])), here(x[0]), "unbatched")


@pytest.mark.parametrize("lengths", [None, np.array([1, 4, 2, 3, 4, 1])])
def test_mean_over_time(runtime: Any, lengths: Any) -> None:
    layer, x = nn.MeanOverTime(), numbers((4, 6, 5))
    if lengths is not None:
        x[np.arange(4)[:, None] >= lengths] = np.nan
    (y, _), vjp = layer.vjp(x, lengths=lengths)
    (device_y, _), device_vjp = layer.vjp(runtime.to_device(x), lengths=lengths)
    close(runtime, device_y, y, "y")
    dy = numbers(y.shape, 1)
    close(runtime, device_vjp(runtime.to_device(dy))[0], vjp(dy)[0], "dx")


def test_embedding(runtime: Any) -> None:
    here, there = both(nn.Embedding(11, 300, seed=0))
    ids = RNG(0).integers(0, 11, (5, 7))
    ids[0] = 3
    dy = numbers((5, 7, 300), 1)
    (y, _), vjp = here.vjp(ids)
    for given in (ids, runtime.to_device(ids.astype(np.int32))):
        (device_y, _), device_vjp = there.vjp(given)
        close(runtime, device_y, y, "y")
        close(runtime, device_vjp(runtime.to_device(dy))[2]["weight"], vjp(dy)[2]["weight"], "weight")
    with pytest.raises(ValueError, match="ids: expected 0 <= id < 11"):
        there(np.array([11]))
    out = runtime.to_host(there(runtime.to_device(np.array([3, 11, -1], np.int32))))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1:]).all()
    with pytest.raises(TypeError, match="int32"):
        there(runtime.to_device(ids))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [1, 5, 32, 257])
def test_cross_entropy(runtime: Any, dtype: str, classes: int) -> None:
    logits = 10 * numbers((3, 4, classes), dtype=dtype)
    targets = RNG(1).integers(0, classes, (3, 4))
    targets[1, 2] = -7
    loss, dlogits = nn.cross_entropy(logits, targets, ignore_index=-7)
    device_loss, device_dlogits = nn.cross_entropy(runtime.to_device(logits), targets, ignore_index=-7)
    assert_close(float(device_loss), loss, "cuda", dtype)
    close(runtime, device_dlogits, dlogits, "dlogits")
    targets[1, 2] = 0
    loss, dlogits = nn.cross_entropy(logits, targets)
    there = runtime.to_device(targets.astype(np.int32))
    device_loss, device_dlogits = nn.cross_entropy(runtime.to_device(logits), there)
    assert_close(float(device_loss), loss, "cuda", dtype)
    close(runtime, device_dlogits, dlogits, "dlogits")
    with pytest.raises(ValueError, match="ignore_index"):
        nn.cross_entropy(runtime.to_device(logits), there, ignore_index=0)
    with pytest.raises(ValueError, match="targets: expected 0 <= id"):
        nn.cross_entropy(runtime.to_device(logits), targets + classes)


def test_mse_and_dropout(runtime: Any) -> None:
    a, b = numbers((30, 40)), numbers((30, 40), 1)
    loss, gradient = nn.mse(a, b)
    device_loss, device_gradient = nn.mse(runtime.to_device(a), runtime.to_device(b))
    assert_close(float(device_loss), loss, "cuda", "float32")
    close(runtime, device_gradient, gradient, "gradient")
    (y, _), vjp = nn.Dropout(0.25).vjp(runtime.to_device(a), rng=1)
    dropped = runtime.to_host(y)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], a[kept] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(runtime.to_host(vjp(runtime.to_device(b))[0]) != 0, kept)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_regression_and_smoothed_labels(runtime: Any, dtype: str) -> None:
    prediction, target = 2 * numbers((7, 40, 3), 0, dtype), numbers((7, 40, 3), 1, dtype)
    labels = RNG(1).integers(0, 3, (7, 40))
    labels[1, 2] = -7
    prediction[0, 0] = target[0, 0]
    for name, loss, given in (
        ("huber", lambda p, t: nn.huber(p, t, 0.7), target),
        ("quantile", lambda p, t: nn.quantile(p, t, [0.1, 0.5, 0.9]), target[..., 0].copy()),
        ("smoothed", lambda p, t: nn.cross_entropy(p, t, -7, 0.1), labels),
    ):
        expected, gradient = loss(prediction, given)
        there = given if name == "smoothed" else runtime.to_device(given)
        found, device_gradient = loss(runtime.to_device(prediction), there)
        assert_close(float(found), expected, "cuda", dtype)
        close(runtime, device_gradient, gradient, name)
        scale = prediction.size / 3 if name == "smoothed" else prediction.size
        assert_close(runtime.to_host(device_gradient) * scale, gradient * scale, "cuda", dtype, name)


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: optim.SGD(0.1),
    "momentum": lambda: optim.SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: optim.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: optim.RMSProp(0.1, weight_decay=0.01),
    "rmsprop momentum": lambda: optim.RMSProp(0.1, momentum=0.5),
    "adam": lambda: optim.Adam(0.1, weight_decay=0.01),
    "adamw": lambda: optim.AdamW(0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_step_as_on_the_cpu(runtime: Any, name: str, dtype: str) -> None:
    here, there = OPTIMIZERS[name](), OPTIMIZERS[name]()
    params = {"a": numbers((5, 300), 0, dtype), "b": numbers((3,), 1, dtype)}
    device_params = {key: runtime.to_device(value) for key, value in params.items()}
    for step in range(4):
        grads = {key: numbers(value.shape, 2 + step, dtype) for key, value in params.items()}
        device_grads = {key: runtime.to_device(value) for key, value in grads.items()}
        here.lr = there.lr = 0.1 / (1 + step)
        norm = optim.clip_by_norm(grads, 1.5)
        device_norm = optim.clip_by_norm(device_grads, 1.5)
        assert_close(float(device_norm), norm, "cuda", dtype)
        here.step(params, grads, (norm,))
        there.step(device_params, device_grads, (device_norm,))
        if step == 1:  # saved and loaded, as by a checkpoint
            again = OPTIMIZERS[name]()
            again.load_state_dict(there.state_dict())
            there = again
    for key, value in params.items():
        close(runtime, device_params[key], value, key)
    for key, value in here.state_dict().items():
        assert_close(there.state_dict()[key], value, "cuda", dtype, key)


def test_a_norm_that_is_not_finite_stops_the_update(runtime: Any) -> None:
    params = {"a": runtime.to_device(numbers((4,)))}
    grads = {"a": runtime.to_device(np.array([1, np.nan, 2, 3], np.float32))}
    before = runtime.to_host(params["a"])
    norm = optim.clip_by_norm(grads, 1.0)
    assert math.isnan(float(norm))
    np.testing.assert_array_equal(runtime.to_host(grads["a"])[[0, 2, 3]], [1, 2, 3])
    optim.Adam().step(params, grads, (norm,))
    np.testing.assert_array_equal(runtime.to_host(params["a"]), before)


class Task(train.Task):
    """A tiny language model."""

    metric = "loss"

    def __init__(self, device: str, dropout: float = 0.0, seq_len: int = 5) -> None:
        self.config = {"task": "tiny"}
        rng = RNG(0)
        self.model = nn.Sequential(
            nn.Embedding(256, 6, seed=rng),
            nn.LSTM(6, 8, 2, dropout=dropout, seed=rng),
            nn.Dropout(dropout),
            nn.EveryStepHead(8, 256, seed=rng),
        ).to(device)
        self.batches = Lanes([b"the quick brown fox jumps over the lazy dog " * 4], 3, seq_len)
        self.optimizer = optim.Adam(0.01)

    def loss(self, output: Any, batch: Batch) -> Any:
        return nn.cross_entropy(output, batch["targets"])

    def validate(self) -> dict[str, float]:
        return {"loss": 1.0}


def trained(task: Task, steps: int, **options: Any) -> Trainer:
    trainer = Trainer(task, task.optimizer, seed=3, shown=False, **options)
    trainer.run(steps=steps)
    return trainer


def host(runtime: Any, task: Task) -> dict[str, np.ndarray]:
    return {name: runtime.to_host(value) for name, value in task.model.params.items()}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_captured_run_is_the_uncaptured_one_bit_for_bit(runtime: Any, dropout: float) -> None:
    plain, captured = Task("cuda", dropout), Task("cuda", dropout)
    trained(plain, 20, graph=False)  # more than an epoch: a fresh state comes in between
    trainer = trained(captured, 20)
    assert trainer._update.why_not is None
    assert any(trainer._update._seen.values())
    for name, value in host(runtime, plain).items():
        np.testing.assert_array_equal(host(runtime, captured)[name], value, name)


class Weighted(Task):
    """Its batches have a further array, which weighs the gradient."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        source, rng = self.batches.next, RNG(1)

        def weighted() -> Batch:
            batch = source()
            weight = rng.standard_normal((*batch["inputs"].shape, 256)).astype(np.float32)
            return Batch({**batch.arrays, "weight": weight}, batch.fresh)

        self.batches.next = weighted

    def loss(self, output: Any, batch: Batch) -> Any:
        return nn.mse(output, batch["weight"])


def test_all_arrays_of_a_batch_are_read_anew_at_each_replay(runtime: Any) -> None:
    plain, captured, here = Weighted("cuda"), Weighted("cuda"), Weighted("cpu")
    trained(plain, 6, graph=False)
    trainer = trained(captured, 6)
    assert any(trainer._update._seen.values())
    trained(here, 6)
    for name, value in host(runtime, plain).items():
        np.testing.assert_array_equal(host(runtime, captured)[name], value, name)
        assert_close(value, here.model.params[name], "cuda", "float32", name)


def test_training_is_the_cpus(runtime: Any) -> None:
    here, there = Task("cpu"), Task("cuda")
    a, b = trained(here, 6), trained(there, 6)
    assert_close(b.loss, a.loss, "cuda", "float32")
    for name, value in here.model.params.items():
        assert_close(host(runtime, there)[name], value, "cuda", "float32", name)


class Noisy(Task):
    """Of a cell whose masks a layer draws."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        rng = RNG(0)
        self.model = nn.Sequential(
            nn.Embedding(256, 6, seed=rng),
            nn.Recurrent("zoneout", 6, 8, 2, noise={"keep_c": 0.5, "keep_h": (0.1, "sequence")}, seed=rng),
            nn.EveryStepHead(8, 256, seed=rng),
        ).to(device)


def test_noise_is_that_of_the_cpu_captured_or_not(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")
    plain, captured, here = Noisy("cuda"), Noisy("cuda"), Noisy("cpu")
    trained(plain, 6, graph=False)
    trainer = trained(captured, 6)
    assert any(trainer._update._seen.values())
    with use_backend("reference"):
        trained(here, 6)
    for name, value in host(runtime, plain).items():
        np.testing.assert_array_equal(host(runtime, captured)[name], value, name)
        assert_close(value, here.model.params[name], "cuda", "float32", name)


@pytest.mark.parametrize("kind", [Task, Noisy])
def test_masks_change_at_each_replay(runtime: Any, kind: Any) -> None:
    task = kind("cuda") if kind is Noisy else Task("cuda", dropout=0.5)
    task.optimizer.lr = 0.0
    step = Update(task, task.optimizer, 1.0)
    batch, rng = task.batches.next(), RNG(0)
    losses = []
    for _ in range(4):
        outcome = step(batch, None, rng)
        losses.append(float(outcome.loss))
    assert len(set(losses)) == 4


def test_another_shape_gets_its_own_graph(runtime: Any) -> None:
    task = Task("cuda")
    step = Update(task, task.optimizer, 1.0)
    for length in (3, 4, 3, 4, 3):
        window = RNG(length).integers(0, 256, (length + 1, 2)).astype(np.uint8)
        assert math.isfinite(float(step(Batch({"inputs": window[:-1], "targets": window[1:]}), None, RNG(0)).loss))
    assert len(step._seen) == 2
    assert all(step._seen.values())


def test_what_cannot_be_captured_runs_without(runtime: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Waiting(Task):
        def loss(self, output: Any, batch: Batch) -> Any:
            loss, gradient = super().loss(output, batch)
            assert math.isfinite(float(loss))  # waits for the device
            return loss, gradient

    task = Waiting("cuda")
    step = Update(task, task.optimizer, 1.0)
    batch = task.batches.next()
    losses = [float(step(batch, None, RNG(0)).loss) for _ in range(3)]
    assert losses[2] < losses[0]
    assert "could not be captured" in (step.why_not or "")
    assert "training continues without" in caplog.text


def test_killed_and_resumed_on_the_device(runtime: Any, tmp_path: Path) -> None:
    whole, first, second = Task("cuda", 0.3), Task("cuda", 0.3), Task("cuda", 0.3)
    trained(whole, 9)
    trained(first, 5, out=tmp_path)
    trainer = Trainer(second, second.optimizer, seed=3, shown=False)
    trainer.resume(checkpoint.load(tmp_path))
    trainer.run(steps=9)
    for name, value in host(runtime, whole).items():
        np.testing.assert_array_equal(host(runtime, second)[name], value, name)


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(runtime: Any, tmp_path: Path) -> None:
    task = Task("cuda")
    trained(task, 3, out=tmp_path)
    here = Task("cpu")
    trainer = Trainer(here, here.optimizer, seed=3, shown=False)
    trainer.resume(checkpoint.load(tmp_path))
    trainer.run(steps=6)
    trained(whole := Task("cpu"), 6)
    for name, value in whole.model.params.items():
        assert_close(here.model.params[name], value, "cuda", "float32", name)


@pytest.mark.parametrize("graph", [False, True])
def test_divergence_changes_nothing(runtime: Any, graph: bool) -> None:
    task = Task("cuda")
    trainer = trained(task, 3, graph=graph)
    weight = task.model.params["3.bias"]
    bad = runtime.to_host(weight)
    bad[3] = np.inf
    runtime.copy(weight, runtime.to_device(bad))
    before = host(runtime, task)
    with pytest.raises(TrainingDiverged):
        trainer.run(steps=4)
    for name, value in before.items():
        np.testing.assert_array_equal(host(runtime, task)[name], value, name)
