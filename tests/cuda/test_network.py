"""Layers on a device from the public door: against the same layers on the CPU, in whatever ways a call can go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import arrays, nn

SIZES = {"input_size": 5, "hidden_size": 12}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "proj_size": 4, "bidirectional": True},
    "batch first": {"batch_first": True, "bias": False},
}


def pair(options: dict[str, Any], kind: type = gpulstm.LSTM) -> tuple[Any, Any]:
    """The same layer on the CPU and on the device."""
    here, there = kind(**SIZES, **options, seed=1), kind(**SIZES, **options, device="cuda")
    there.load_state_dict(here.state_dict())
    return here, there


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def moved(runtime: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return runtime.to_device(value)
    return None if value is None else tuple(moved(runtime, part) for part in value)


def compare(runtime: Any, there: Any, here: Any, label: str) -> None:
    if isinstance(here, dict):
        assert here.keys() == there.keys()
        for name in here:
            compare(runtime, there[name], here[name], f"{label} {name}")
    elif isinstance(here, np.ndarray):
        assert runtime.owns(there)
        assert_close(runtime.to_host(there), here, "cuda", here.dtype, label)
    else:
        assert len(there) == len(here)
        for i, (a, b) in enumerate(zip(there, here, strict=True)):
            compare(runtime, a, b, f"{label}[{i}]")


@pytest.mark.parametrize("kind", [gpulstm.LSTM, gpulstm.RNN])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward_and_gradients_are_those_of_the_cpu(runtime: Any, name: str, kind: type) -> None:
    here, there = pair(OPTIONS[name], kind)
    x = numbers((6, 4, 5))
    lengths = np.array([6, 1, 3, 5]) if not here.config.batch_first else None
    compare(runtime, there(moved(runtime, x), lengths=lengths), here(x, lengths=lengths), "inference")
    (y, state), vjp = here.vjp(x, lengths=lengths)
    (device_y, device_state), device_vjp = there.vjp(moved(runtime, x), lengths=lengths)
    compare(runtime, (device_y, device_state), (y, state), "training")
    dy = numbers(y.shape, 1)
    dstate = tuple(numbers(part.shape, 2) for part in state) if isinstance(state, tuple) else numbers(state.shape, 2)
    compare(runtime, device_vjp(moved(runtime, dy), moved(runtime, dstate)), vjp(dy, dstate), "gradient")


def test_an_unbatched_sequence_and_a_given_state(runtime: Any) -> None:
    here, there = pair({"num_layers": 2})
    x, state = numbers((3, 5)), (numbers((2, 12), 3), numbers((2, 12), 4))
    compare(runtime, there(moved(runtime, x), moved(runtime, state)), here(x, state), "unbatched")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_for_the_device_alone(runtime: Any, dtype: str) -> None:
    with pytest.raises(ValueError, match="half types need device='cuda'"):
        gpulstm.LSTM(**SIZES, dtype=dtype)
    there = gpulstm.LSTM(**SIZES, dtype=dtype, device="cuda", seed=1)
    x = moved(runtime, numbers((3, 2, 5)).astype(there.params["weight_ih_l0"].dtype))
    y, _ = there(x)
    assert y.dtype == x.dtype
    with pytest.raises(ValueError, match="float32 or float64"):
        there.to("cpu")


def test_there_and_back(runtime: Any) -> None:
    layer = gpulstm.LSTM(**SIZES, seed=1)
    before = layer.state_dict()
    layer.to("cuda")
    assert all(runtime.owns(value) for value in layer.params.values())
    layer.to("cpu")
    for name, value in before.items():
        np.testing.assert_array_equal(layer.params[name], value)


def test_dropout_is_repeated_by_its_seed_and_scales(runtime: Any) -> None:
    _, there = pair({"num_layers": 2, "dropout": 0.5})
    x = moved(runtime, numbers((6, 4, 5)))
    runs = [runtime.to_host(there.vjp(x, rng=seed)[0][0]) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    mask = runtime.to_host(arrays.library("cuda").dropout_mask(np.random.default_rng(0), (1000, 20), 0.3))
    assert set(np.unique(mask)) == {0, 1}
    assert abs(mask.mean() - 0.7) < 4 * (0.21 / mask.size) ** 0.5


def test_an_array_of_the_host_is_refused_by_name(runtime: Any) -> None:
    _, there = pair({})
    with pytest.raises(TypeError, match="x: expected an array on the GPU"):
        there(numbers((3, 2, 5)))
    with pytest.raises(TypeError, match="state"):
        there(moved(runtime, numbers((3, 2, 5))), (numbers((1, 2, 12)), numbers((1, 2, 12))))


def test_padding_may_hold_nan(runtime: Any) -> None:
    here, there = pair({"bidirectional": True})
    x = numbers((5, 2, 5))
    x[3:, 1] = np.nan
    lengths = [5, 3]
    compare(runtime, there(moved(runtime, x), lengths=lengths), here(x, lengths=lengths), "padding")


def test_explain_names_the_walk(runtime: Any) -> None:
    _, there = pair({})
    assert "walk" in there.explain(moved(runtime, numbers((3, 2, 5))))


def _turned(runtime: Any, a: np.ndarray) -> Any:
    there = runtime.to_device(np.ascontiguousarray(a.swapaxes(0, -1)))
    return there.swapaxes(0, -1) if a.ndim > 1 else there


LAYOUTS: dict[str, Any] = {
    "turned": _turned,
    "gaps": lambda runtime, a: runtime.to_device(np.repeat(a, 2, axis=-1))[..., ::2],
    "off the boundary": lambda runtime, a: runtime.to_device(np.append(np.zeros(1, a.dtype), a))[1:].reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_and_arguments_of_any_layout(runtime: Any, layout: str) -> None:
    """Kernels go by addresses: what does not lie as they take it is copied before."""

    def laid_out(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(laid_out(part) for part in value)
        return LAYOUTS[layout](runtime, value)

    here, there = pair({"num_layers": 2, "bidirectional": True})
    there.params = {name: laid_out(value) for name, value in here.params.items()}
    x, state = numbers((6, 4, 5)), (numbers((4, 4, 12), 1), numbers((4, 4, 12), 2))
    compare(runtime, there(laid_out(x), laid_out(state)), here(x, state), "inference")
    (y, final), vjp = here.vjp(x, state)
    (y_there, final_there), vjp_there = there.vjp(laid_out(x), laid_out(state))
    compare(runtime, (y_there, final_there), (y, final), "training")
    dy = numbers(y.shape, 3)
    compare(runtime, vjp_there(laid_out(dy), laid_out(state)), vjp(dy, state), "gradient")

    ids = np.array([[1, 4], [0, 2], [4, 4]])
    for name, given in (("Embedding", ids), ("Linear", x), ("LastStepHead", x)):
        kind = getattr(nn, name)
        here, there = kind(5, 6, seed=0), kind(5, 6, device="cuda")
        there.params = {key: laid_out(value) for key, value in here.params.items()}
        if name == "LastStepHead":
            there.linear.params = there.params
        (y, _), vjp = here.vjp(given)
        (y_there, _), vjp_there = there.vjp(given if name == "Embedding" else laid_out(given))
        dy = numbers(y.shape, 4)
        (_, _, grads_there), (_, _, grads) = vjp_there(laid_out(dy)), vjp(dy)
        compare(runtime, (y_there, grads_there), (y, grads), name)
