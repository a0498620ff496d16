"""Quantized layers: how weights are rounded, that kernels compute with exactly those, and how far outputs move."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import problems
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import arrays
from gpulstm_kernels.cpu import tuning

KINDS = ["bf16", "int8"]
LAYERS: dict[str, Any] = {
    "lstm": lambda n: gpulstm.LSTM(5, 9, n, seed=0),
    "both directions": lambda n: gpulstm.LSTM(21, 33, n, bidirectional=True, batch_first=True, seed=0),
    "no bias": lambda n: gpulstm.LSTM(600, 17, n, bias=False, seed=0),
    "rnn": lambda n: gpulstm.RNN(7, 70, n, seed=0),
    "projected": lambda n: gpulstm.LSTM(5, 33, n, proj_size=3, seed=0),
}


def parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def drawn(layer: Any, steps: int, batch: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, layer.config.input_size)).astype("f4")
    state = tuple(rng.standard_normal(shape).astype("f4") for shape in layer.config.state_shapes(batch))
    return (x.swapaxes(0, 1) if layer.config.batch_first else x), state


def given(state: tuple[np.ndarray, ...]) -> Any:
    return state if len(state) > 1 else state[0]


def on_bfloat16(values: np.ndarray) -> np.ndarray:
    """``values`` cut to bfloat16, so that rounding them changes nothing."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_computes_with_the_rounded_weights(name: str, kind: str) -> None:
    layer = gpulstm.quantize(LAYERS[name](1), kind)
    for batch in (1, 3, 19):
        x, state = drawn(layer, 1, batch)
        slack = 0.0
        if kind == "bf16":
            x, state = on_bfloat16(x), (on_bfloat16(state[0]), *state[1:])
        else:  # x and h are rounded to 1/65534 of a row's largest: how far that can move a gate, and three times c or h
            wide = layer.widened()
            for weight, of in (("weight_ih_l0", x), ("weight_hh_l0", state[0])):
                slack += 3 * np.abs(wide[weight]).sum(axis=1).max() * np.abs(of).max() / 65534
        expected, final = layer(x, given(state), backend="reference")
        for threads, split in ((1, "units"), (3, "units"), (3, "batch")):
            with arrays.poison(), problems.threads(threads, split):
                y, found = layer(x, given(state))
            assert y.dtype == np.float32
            for part, wanted in zip((y, *parts(found)), (expected, *parts(final)), strict=True):
                off = np.maximum(np.abs(part - wanted) - slack, 0)
                assert_close(wanted + off, wanted, "kernel", "float32", name)


@pytest.fixture(params=[False, True], ids=["step by step", "in chunks"])
def projection(request: pytest.FixtureRequest) -> Iterator[None]:
    with tuning.replaced(fused_from=1 << 62 if request.param else 1):
        yield


@pytest.mark.usefixtures("projection")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_walk_is_its_steps(name: str, kind: str) -> None:
    """Bit for bit, however the input is projected and the threads share the work."""
    layer = gpulstm.quantize(LAYERS[name](2), kind)
    axis = 1 if layer.config.batch_first else 0
    for steps, batch in ((5, 1), (4, 3), (2, 19)):
        x, state = drawn(layer, steps, batch)
        lengths = np.random.default_rng(1).integers(1, steps + 1, batch)
        with problems.threads(1):
            ends = [layer(x.take(range(length), axis), given(state)) for length in range(1, steps + 1)]
            if layer.config.bidirectional:
                expected = None
            else:
                one, carried = [], given(state)
                for t in range(steps):
                    y, carried = layer(x.take([t], axis), carried)
                    one.append(y)
                expected = np.concatenate(one, axis)
        for threads, split in ((1, "units"), (3, "units"), (3, "batch")):
            with arrays.poison(), problems.threads(threads, split):
                whole, _ = layer(x, given(state))
                y, found = layer(x, given(state), lengths)
            np.testing.assert_array_equal(whole, ends[-1][0])
            if expected is not None:
                np.testing.assert_array_equal(whole, expected)
            for b, length in enumerate(lengths):
                short, final = ends[length - 1]
                np.testing.assert_array_equal(y.take(b, 1 - axis)[:length], short.take(b, 1 - axis))
                assert not y.take(b, 1 - axis)[length:].any()
                for part, wanted in zip(parts(found), parts(final), strict=True):
                    np.testing.assert_array_equal(part[:, b], wanted[:, b])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row(kind: str) -> None:
    layer = gpulstm.quantize(gpulstm.LSTM(5, 9, seed=0), kind)
    x, _ = drawn(layer, 4, 6)
    clean, _ = layer(x)
    x[1, 2, 3], x[2, 4, 0] = np.nan, -np.inf
    y, _ = layer(x)
    assert np.isnan(y[1:, 2]).all()
    assert not np.isclose(y[2:, 4], clean[2:, 4]).any()
    others = [0, 1, 3, 5]
    np.testing.assert_array_equal(y[:, others], clean[:, others])
    np.testing.assert_array_equal(y[0], clean[0])


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    layer = gpulstm.LSTM(40, 30, seed=0)
    w = layer.params["weight_ih_l0"]
    w[0, :4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8 + 2.0**-20), 0  # two ties, one above a tie
    wide = gpulstm.quantize(layer, "bf16").widened()["weight_ih_l0"]
    np.testing.assert_array_equal(wide[0, :4], [1, 1 + 2.0**-6, -(1 + 2.0**-7), 0])
    assert (np.abs(wide - w) <= 2.0**-8 * np.abs(w)).all()


def test_int8_is_rounded_to_nearest_by_rows() -> None:
    layer = gpulstm.LSTM(40, 30, seed=0)
    w = layer.params["weight_hh_l0"]
    w[3] = 0
    w[4] *= 1000
    wide = gpulstm.quantize(layer, "int8").widened()["weight_hh_l0"]
    largest = np.abs(w).max(axis=1, keepdims=True)
    assert (np.abs(wide - w) <= largest / 254 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(wide[3], 0)


def test_int8_with_heads_is_rounded_by_rows() -> None:
    layer = gpulstm.LSTM(5, 8, heads=2, seed=0)
    w = layer.params["weight_hh_l0"]
    w[1, 4] *= 1000
    quantized = gpulstm.quantize(layer, "int8")
    assert quantized.params["scale_hh_l0"].shape == (2, 16)
    wide = quantized.widened()["weight_hh_l0"]
    assert (np.abs(wide - w) <= np.abs(w).max(axis=2, keepdims=True) / 254 * (1 + 1e-5)).all()
    x, state = drawn(layer, 4, 3)
    layer.params |= quantized.widened()
    for part, wanted in zip(quantized(x, state)[0], layer(x, state)[0], strict=True):
        np.testing.assert_allclose(part, wanted, atol=1e-4)  # activations are rounded to 16 bits


def test_a_layer_without_recurrent_weights() -> None:
    layer = gpulstm.nn.Recurrent("indrnn", 5, 8, seed=0)
    quantized = gpulstm.quantize(layer, "int8")
    assert list(quantized.params) == ["weight_ih_l0", "scale_ih_l0", "bias_ih_l0", "u_l0"]
    np.testing.assert_array_equal(quantized.params["u_l0"], layer.params["u_l0"])


@pytest.mark.parametrize("largest", [0, 1e-45, 2e-43, 1e-40, 1e-36])
def test_rows_of_the_smallest_weights(largest: float) -> None:
    layer = gpulstm.LSTM(5, 9, seed=0)
    w = layer.params["weight_ih_l0"]
    w[3] = np.linspace(-1, 1, 5) * largest
    quantized = gpulstm.quantize(layer, "int8")
    assert (np.sign(quantized.params["weight_ih_l0"][3]) * np.sign(w[3]) >= 0).all()
    assert np.abs(quantized.widened()["weight_ih_l0"][3] - w[3]).max() <= max(largest / 254 * (1 + 1e-5), 6e-39)


@pytest.mark.parametrize(("kind", "allowed"), [("bf16", 2e-3), ("int8", 3e-3)])
def test_outputs_stay_close(kind: str, allowed: float) -> None:
    """The largest change of an output of two layers of 256 units, over 64 steps."""
    layer = gpulstm.LSTM(256, 256, 2, seed=0)
    x = np.random.default_rng(0).standard_normal((64, 8, 256)).astype("f4")
    y, _ = layer(x)
    change = np.abs(gpulstm.quantize(layer, kind)(x)[0] - y).max()
    assert allowed / 20 < change < allowed


@pytest.mark.parametrize(("kind", "part"), [("bf16", 2), ("int8", 4)])
def test_weights_are_as_small_as_promised_and_apart_from_the_layers(kind: str, part: int) -> None:
    layer = gpulstm.LSTM(5, 9, seed=0)
    quantized = gpulstm.quantize(layer, kind)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert quantized.params[name].nbytes == layer.params[name].nbytes // part
    x = np.ones((3, 2, 5), np.float32)
    before = quantized(x)[0].copy()
    for value in layer.params.values():
        value *= 2
    np.testing.assert_array_equal(quantized(x)[0], before)


def test_bad_input() -> None:
    layer = gpulstm.LSTM(5, 9, seed=0)
    with pytest.raises(ValueError, match=re.escape("kind: expected 'bf16' or 'int8', got 'int4'")):
        gpulstm.quantize(layer, "int4")
    with pytest.raises(TypeError, match="expected a recurrent layer"):
        gpulstm.quantize(gpulstm.nn.Linear(5, 9), "bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected float32 parameters on the CPU, got float64 on cpu"):
        gpulstm.quantize(gpulstm.LSTM(5, 9, dtype="float64"), "bf16")
    with pytest.raises(TypeError, match="for inference"):
        gpulstm.quantize(layer, "int8").vjp(np.zeros((1, 1, 5), np.float32))
    with pytest.raises(TypeError, match="x: expected dtype float32, got float64"):
        gpulstm.quantize(layer, "int8")(np.zeros((1, 1, 5)))
    layer.params["weight_hh_l0"][0, 0] = np.nan
    with pytest.raises(ValueError, match="weight_hh_l0"):
        gpulstm.quantize(layer, "int8")
