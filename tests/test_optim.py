"""Optimizers and schedules as torch.optim's, resumed bit for bit, in little memory; clipping; bad input."""

from __future__ import annotations

import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from gpulstm import optim

SHAPES = {"weight": (7, 5), "bias": (5,), "scale": (), "long": (3, optim.BLOCK // 2 + 1)}
TWINS = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("sgd", {"weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.8, "weight_decay": 0.1}),
    ("sgd", {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
    ("rmsprop", {}),
    ("rmsprop", {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    ("rmsprop", {"momentum": 0.7, "weight_decay": 0.1}),
    ("adam", {}),
    ("adam", {"betas": (0.7, 0.95), "eps": 1e-2, "weight_decay": 0.1}),
    ("adamw", {}),
    ("adamw", {"betas": (0.7, 0.95), "eps": 1e-2, "weight_decay": 0.3}),
]
variants = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=["-".join([name, *options]) for name, options in VARIANTS]
)


def draw(seed: int, dtype: str = "float64") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


@variants
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizer_is_torchs(name: str, options: dict[str, Any], dtype: str) -> None:
    params = draw(0, dtype)
    twins = {key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in params.items()}
    optimizer = optim.create(name, lr=0.05, **options)
    twin = TWINS[name](list(twins.values()), lr=0.05, **options)
    held = dict(params)
    for step in range(8):
        grads = draw(step + 1, dtype)
        given = {key: value.copy() for key, value in grads.items()}
        for key, value in grads.items():
            twins[key].grad = torch.from_numpy(value.copy())
        optimizer.lr = twin.param_groups[0]["lr"] = 0.05 / (step + 1)
        optimizer.step(params, grads)
        twin.step()
        for key, value in grads.items():
            np.testing.assert_array_equal(value, given[key])
    # float32: 2e-6 measured, of numbers near 1
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-13}
    for key, value in params.items():
        assert value is held[key]
        assert value.dtype == dtype
        np.testing.assert_allclose(value, twins[key].detach(), **close)
    for key in twins:
        ours = {k.split("/")[0]: v for k, v in optimizer.state_dict().items() if k.endswith("/" + key)}
        theirs = twin.state_dict()["state"][list(twins).index(key)] if ours else {}
        for slot, value in ours.items():
            np.testing.assert_allclose(value, theirs[slot], **close)


@variants
def test_resume_is_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    straight, optimizer = draw(0, "float32"), optim.create(name, lr=0.05, **options)
    for step in range(3):
        optimizer.step(straight, draw(step + 1, "float32"))
    resumed = {key: value.copy() for key, value in straight.items()}
    other = optim.create(name, lr=9.0, **options)
    saved = optimizer.state_dict()
    assert all(isinstance(value, np.ndarray) for value in saved.values())
    assert saved["step"].shape == ()
    assert saved["step"].dtype == np.int64
    other.load_state_dict(saved)
    for step in range(3, 6):
        optimizer.step(straight, draw(step + 1, "float32"))
        other.step(resumed, draw(step + 1, "float32"))
    for key, value in straight.items():
        np.testing.assert_array_equal(resumed[key], value)
    final, other_final = optimizer.state_dict(), other.state_dict()
    assert list(final) == list(other_final)
    for key, value in final.items():
        np.testing.assert_array_equal(other_final[key], value)
    assert saved["step"] == 3  # a copy: it did not move with the optimizer


def test_state_dict_before_the_first_step() -> None:
    optimizer = optim.Adam(lr=0.5)
    assert {key: value.item() for key, value in optimizer.state_dict().items()} == {"step": 0, "lr": 0.5}
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(draw(0), draw(1))
    names = {f"{slot}/{name}" for slot in ("exp_avg", "exp_avg_sq") for name in SHAPES}
    assert set(optimizer.state_dict()) == {"step", "lr"} | names


@variants
def test_any_memory_layout_works(name: str, options: dict[str, Any]) -> None:
    plain, grads = draw(0), draw(1)
    odd = {
        "weight": np.asfortranarray(plain["weight"]),
        "bias": np.repeat(plain["bias"], 2)[::2],
        "scale": plain["scale"].copy(),
        "long": plain["long"].T.copy().T,
    }
    odd_grads = {key: np.copy(value, order="F") for key, value in grads.items()}
    for value in odd_grads.values():
        value.flags.writeable = False
    one, other = optim.create(name, lr=0.1, **options), optim.create(name, lr=0.1, **options)
    for _ in range(2):
        one.step(plain, grads)
        other.step(odd, odd_grads)
    for key, value in plain.items():
        np.testing.assert_array_equal(odd[key], value)


@variants
def test_a_step_takes_little_memory(name: str, options: dict[str, Any]) -> None:
    params, grads = {"w": np.ones((2000, 500), np.float32)}, {"w": np.ones((2000, 500), np.float32)}
    optimizer = optim.create(name, lr=0.1, **options)
    optimizer.step(params, grads)
    tracemalloc.start()
    try:
        optimizer.step(params, grads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.1 * params["w"].nbytes


@variants
def test_an_infinite_gradient_steps_without_a_warning(name: str, options: dict[str, Any]) -> None:
    params = {"w": np.ones(3, np.float32)}
    optim.create(name, lr=0.1, **options).step(params, {"w": np.array([np.inf, 1e30, np.nan], np.float32)})
    assert np.isnan(params["w"][2])


def test_optimizers_minimise() -> None:
    for name in optim.OPTIMIZERS:
        params = {"w": np.array([3.0, -2.0])}
        optimizer = optim.create(name, lr=0.02, weight_decay=0.0)
        for _ in range(800):
            optimizer.step(params, {"w": 2 * params["w"]})
        assert np.abs(params["w"]).max() < 0.03, name


# Clipping


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.5, 1e3, math.inf])
def test_clip_by_norm_is_torchs(max_norm: float, dtype: str) -> None:
    grads = draw(4, dtype)
    twins = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in grads.values()]
    for twin, value in zip(twins, grads.values(), strict=True):
        twin.grad = torch.from_numpy(value.copy())
    expected = torch.nn.utils.clip_grad_norm_(twins, max_norm).item()
    held = dict(grads)
    norm = optim.clip_by_norm(grads, max_norm)
    assert isinstance(norm, float)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    for (key, value), twin in zip(grads.items(), twins, strict=True):
        assert value is held[key]
        np.testing.assert_allclose(value, twin.grad, rtol=2e-5)  # torch divides by norm + 1e-6
    np.testing.assert_allclose(optim.clip_by_norm(grads, math.inf), min(norm, max_norm), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_clip_by_norm_leaves_gradients_that_are_not_finite(value: float) -> None:
    grads = {"a": np.full(3, 9.0, np.float32), "b": np.array([1.0, value])}
    before = {key: gradient.copy() for key, gradient in grads.items()}
    assert not math.isfinite(optim.clip_by_norm(grads, 1.0))
    for key, gradient in grads.items():
        np.testing.assert_array_equal(gradient, before[key])


def test_clip_by_norm_of_huge_and_of_no_gradients() -> None:
    grads = {"a": np.full(4, 1e30, np.float32)}
    np.testing.assert_allclose(optim.clip_by_norm(grads, 1.0), 2e30, rtol=1e-6)
    np.testing.assert_allclose(grads["a"], 0.5, rtol=1e-6)
    assert optim.clip_by_norm({"a": np.zeros(3)}, 1.0) == 0
    assert optim.clip_by_norm({}, 1.0) == 0


# Schedules


def test_constant() -> None:
    schedule = optim.Constant(0.3)
    assert schedule() == schedule(0.5) == schedule(1) == 0.3
    schedule.update(1.0)
    schedule.load_state_dict(schedule.state_dict())


def test_cosine_rises_then_falls() -> None:
    schedule = optim.Cosine(2.0, warmup=0.1, final=0.05)
    rates = [schedule(step / 1000) for step in range(1001)]
    np.testing.assert_allclose([rates[0], rates[50], rates[100]], [0.1, 1.05, 2.0])
    np.testing.assert_allclose([rates[550], rates[1000], schedule(1.5)], [1.05, 0.1, 0.1])
    assert np.argmax(rates) == 100
    assert (np.diff(rates[:101]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()
    assert optim.Cosine(2.0, warmup=0.0)(0.0) == 2.0


def test_plateau_is_torchs() -> None:
    losses = [3, 2, 2.5, 2.5, 1.9999, 2.1, np.inf, 1.5, 1.6, 1.6, 1.6, 1.6, 1.6, 1.6, 1.6, 1.6, 1.4, 1.4]
    twin_optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    twin = torch.optim.lr_scheduler.ReduceLROnPlateau(twin_optimizer, factor=0.5, patience=2, min_lr=0.15)
    schedule = optim.Plateau(0.8, factor=0.5, patience=2, minimum=0.15)
    for loss in losses:
        twin.step(loss)
        schedule.update(loss)
        resumed = optim.Plateau(7.0, factor=0.5, patience=2, minimum=0.15)
        resumed.load_state_dict(schedule.state_dict())
        schedule = resumed
        assert schedule() == schedule(0.5) == twin_optimizer.param_groups[0]["lr"]
    assert schedule() == 0.15


def test_plateau_of_negative_losses() -> None:
    schedule = optim.Plateau(1.0, patience=0)
    for loss in (-1.0, -2.0, -3.0):
        schedule.update(loss)
    assert schedule() == 1.0
    schedule.update(-3.0)
    assert schedule() == 0.5


# Bad input

W, G = {"w": np.zeros((2, 3))}, {"w": np.zeros((2, 3))}
STEP, LR = np.array(1), np.array(0.1)


def frozen() -> np.ndarray:
    value = np.zeros((2, 3))
    value.flags.writeable = False
    return value


def step(params: Any, grads: Any) -> None:
    optim.Adam().step(params, grads)


def load(**values: Any) -> None:
    state = {"step": STEP, "lr": LR, "exp_avg/w": np.zeros(3), "exp_avg_sq/w": np.zeros(3)}
    merged = state | {key.replace("__", "/"): value for key, value in values.items()}
    optim.Adam().load_state_dict({key: value for key, value in merged.items() if value is not None})


BAD: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: optim.create("lion", lr=0.1),
        ValueError,
        "optimizer: expected one of sgd, rmsprop, adam, adamw, got 'lion'",
    ),
    (
        lambda: optim.create("sgd", lr=0.1, betas=(0.9, 0.9)),
        TypeError,
        "betas: no option of sgd; expected one of momentum, weight_decay, nesterov",
    ),
    (lambda: optim.SGD(lr=-1), ValueError, "lr: expected a number in [0, inf), got -1"),
    (lambda: optim.SGD(lr=math.nan), ValueError, "lr: expected a number in [0, inf), got nan"),
    (lambda: optim.SGD(lr="1"), TypeError, "lr: expected a number in [0, inf), got '1'"),  # type: ignore[arg-type]
    (lambda: optim.SGD(momentum=1), ValueError, "momentum: expected a number in [0, 1), got 1"),
    (lambda: optim.SGD(nesterov=True), ValueError, "nesterov: expected a momentum above 0 with it, got"),
    (lambda: optim.SGD(weight_decay=-1), ValueError, "weight_decay: expected a number in [0, inf), got -1"),
    (lambda: optim.RMSProp(alpha=1.5), ValueError, "alpha: expected a number in [0, 1), got 1.5"),
    (lambda: optim.RMSProp(eps=-1), ValueError, "eps: expected a number in [0, inf), got -1"),
    (lambda: optim.Adam(betas=(0.9, 1)), ValueError, "betas[1]: expected a number in [0, 1), got 1"),
    (lambda: optim.Adam(betas=0.9), ValueError, "betas: expected two numbers in [0, 1), got 0.9"),  # type: ignore[arg-type]
    (lambda: step(W, {}), ValueError, "grads: expected the keys ['w'], got missing ['w'], unexpected []"),
    (lambda: step({}, G), ValueError, "grads: expected the keys [], got missing [], unexpected ['w']"),
    (lambda: step(W, {"w": np.zeros((3, 2))}), ValueError, "grads['w']: expected shape (2, 3), got (3, 2)"),
    (
        lambda: step(W, {"w": np.zeros((2, 3), "f4")}),
        TypeError,
        "grads['w']: expected dtype float64, got float32",
    ),
    (
        lambda: step({"w": [1.0]}, G),
        TypeError,
        "params['w']: expected a float32 or float64 array, got list",
    ),
    (
        lambda: step({"w": np.zeros((2, 3), int)}, G),
        TypeError,
        "params['w']: expected a float32 or float64 array, got int64",
    ),
    (
        lambda: step({"w": frozen()}, G),
        ValueError,
        "params['w']: expected a writeable array, got a read-only one",
    ),
    (lambda: load(exp_avg__w=None), ValueError, "missing ['exp_avg/w'], unexpected []"),
    (lambda: load(step=None), ValueError, "missing ['step'], unexpected []"),
    (lambda: load(momentum_buffer__w=np.zeros(3)), ValueError, "unexpected ['momentum_buffer/w']"),
    (
        lambda: load(exp_avg__w=None, exp_avg_sq__w=None),
        ValueError,
        "of every parameter after 1 steps, got none",
    ),
    (
        lambda: load(exp_avg_sq__w=np.zeros(4)),
        ValueError,
        "state_dict['exp_avg_sq/w']: expected shape (3,), got (4,)",
    ),
    (
        lambda: load(exp_avg__w=np.zeros(3, int)),
        TypeError,
        "state_dict['exp_avg/w']: expected a float32 or float64 array, got int64",
    ),
    (lambda: load(step=np.array(-1)), ValueError, "state_dict['step']: expected an integer >= 0, got"),
    (lambda: load(step=LR), TypeError, "state_dict['step']: expected an integer >= 0, got"),
    (lambda: load(lr=np.array(math.nan)), ValueError, "state_dict['lr']: expected a number in [0, inf), got"),
    (lambda: optim.clip_by_norm(G, 0.0), ValueError, "max_norm: expected a number in (0, inf], got 0.0"),
    (lambda: optim.clip_by_norm(G, math.nan), ValueError, "max_norm: expected a number in (0, inf], got nan"),
    (
        lambda: optim.clip_by_norm({"w": frozen()}, 1.0),
        ValueError,
        "grads['w']: expected a writeable array, got a read-only one",
    ),
    (
        lambda: optim.clip_by_norm({"w": None}, 1.0),  # type: ignore[dict-item]
        TypeError,
        "grads['w']: expected a float32 or float64 array, got NoneType",
    ),
    (lambda: optim.Constant(-1), ValueError, "lr: expected a number in [0, inf), got -1"),
    (lambda: optim.Cosine(1, warmup=1), ValueError, "warmup: expected a number in [0, 1), got 1"),
    (lambda: optim.Cosine(1, final=2), ValueError, "final: expected a number in [0, 1], got 2"),
    (lambda: optim.Cosine(1)(-0.1), ValueError, "progress: expected a number in [0, inf), got -0.1"),
    (lambda: optim.Plateau(1, factor=1), ValueError, "factor: expected a number in (0, 1), got 1"),
    (
        lambda: optim.Plateau(1).update(math.nan),
        ValueError,
        "validation_loss: expected a number in [-inf, inf], got nan",
    ),
    (lambda: optim.Plateau(1, patience=-1), ValueError, "patience: expected an integer >= 0, got -1"),
    (
        lambda: optim.Plateau(1).load_state_dict({"lr": LR}),
        ValueError,
        "missing ['bad', 'best'], unexpected []",
    ),
    (lambda: optim.Constant(1).load_state_dict({"lr": LR}), ValueError, "missing [], unexpected ['lr']"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:60] for *_, message in BAD])
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_step_that_does_not_fit_changes_nothing() -> None:
    optimizer, params = optim.Adam(), draw(0)
    optimizer.step(params, draw(1))
    before, state = {key: value.copy() for key, value in params.items()}, optimizer.state_dict()
    with pytest.raises(ValueError, match=re.escape("grads['long']: expected shape")):
        optimizer.step(params, draw(1) | {"long": np.zeros(2)})
    with pytest.raises(ValueError, match=re.escape("params: expected the keys")):
        optimizer.step({"other": np.zeros(2)}, {"other": np.zeros(2)})
    with pytest.raises(ValueError, match=re.escape("params['bias']: expected float64 of shape (5,), as exp_avg")):
        optimizer.step(params | {"bias": np.zeros(4)}, draw(1) | {"bias": np.zeros(4)})
    with pytest.raises(ValueError, match=re.escape("lr: expected a number")):
        optimizer.lr = -1.0
    for key, value in params.items():
        np.testing.assert_array_equal(value, before[key])
    for key, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[key])


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    optimizer = optim.Adam(lr=0.25)
    optimizer.step(draw(0), draw(1))
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=re.escape("state_dict['exp_avg_sq/bias']: expected shape (5,), got (6,)")):
        optimizer.load_state_dict(optim.Adam(lr=9).state_dict() | state | {"exp_avg_sq/bias": np.zeros(6)})
    for key, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[key])
