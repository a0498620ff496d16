"""The feed-forward layers and Sequential: gradients by finite differences, and all as torch's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from gpulstm import arrays, nn

RNG = np.random.default_rng(7)


def normal(*shape: int, dtype: str = "float64") -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def differences(loss: Any, value: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of ``loss()`` by ``value``, which is moved in place, by central differences."""
    gradient = np.empty(value.shape)
    for index in np.ndindex(value.shape):
        before = value[index]
        value[index] = before + step
        above = loss()
        value[index] = before - step
        gradient[index] = (above - loss()) / (2 * step)
        value[index] = before
    return gradient


def check_gradients(layer: nn.Layer, x: np.ndarray, **options: Any) -> None:
    """Every gradient of ``sum(y * upstream)`` against finite differences, in float64."""
    with arrays.poison():
        (y, state), pullback = layer.vjp(x, **options)
        upstream = normal(*y.shape)
        dx, dstate, grads = pullback(upstream)
    assert state == dstate == ()

    def loss() -> float:
        return float((layer.vjp(x, **options)[0][0] * upstream).sum())

    assert list(grads) == list(layer.params)
    for name, gradient in grads.items():
        assert gradient.dtype == layer.params[name].dtype
        np.testing.assert_allclose(gradient, differences(loss, layer.params[name]), rtol=1e-7, atol=1e-8)
    if x.dtype.kind == "f":
        assert dx.shape == x.shape
        np.testing.assert_allclose(dx, differences(loss, x), rtol=1e-7, atol=1e-8)
    else:
        assert dx is None


class Cumulative(nn.RecurrentLayer):
    """h_t = h_{t-1} + a∘x_t over time-major x (T, B, F), zero past a length: recurrent enough for a test."""

    def __init__(self, features: int) -> None:
        self.params = {"a": normal(features)}

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, np.ndarray]:
        return self.vjp(x, state, lengths)[0]

    def vjp(self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None) -> Any:
        steps, batch = x.shape[:2]
        state = 0 if state is None else state
        valid = np.arange(steps)[:, None, None] < (steps if lengths is None else np.asarray(lengths)[:, None])
        moved = np.where(valid, x, 0)
        y = np.where(valid, np.cumsum(self.params["a"] * moved, axis=0) + state, 0)
        final = (self.params["a"] * moved).sum(0) + state

        def pullback(dy: Any, dstate: Any = None) -> Any:
            dy = np.where(valid, dy, 0)
            dstate = np.zeros((batch, x.shape[2])) if dstate is None else dstate
            dh = np.cumsum(dy[::-1], axis=0)[::-1] + dstate
            return (
                np.where(valid, dh * self.params["a"], 0),
                dy.sum(0) + dstate,
                {"a": (dh * moved).sum((0, 1))},
            )

        return (y, final), pullback


# Linear and the heads


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (1,), (5,), (4, 3), (2, 1, 3)])
def test_linear_gradients(leading: tuple[int, ...], bias: bool) -> None:
    check_gradients(nn.Linear(3, 2, bias, dtype="float64", seed=1), normal(*leading, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_is_torchs(dtype: str) -> None:
    layer = nn.Linear(7, 5, dtype=dtype, seed=3)
    twin = torch.nn.Linear(7, 5, dtype=getattr(torch, dtype))
    assert {k: v.shape for k, v in layer.params.items()} == {k: v.shape for k, v in twin.state_dict().items()}
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in layer.params.items()})
    x, upstream = normal(6, 4, 7, dtype=dtype), normal(6, 4, 5, dtype=dtype)
    torch_x = torch.from_numpy(x).requires_grad_()
    torch_y = twin(torch_x)
    torch_y.backward(torch.from_numpy(upstream))
    (y, _), pullback = layer.vjp(x)
    dx, _, grads = pullback(upstream)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_array_equal(layer(x), y)
    np.testing.assert_allclose(y, torch_y.detach(), **close)
    np.testing.assert_allclose(dx, torch_x.grad, **close)
    for name, parameter in twin.named_parameters():
        assert grads[name].dtype == dtype
        np.testing.assert_allclose(grads[name], parameter.grad, **close)


def test_initial_values() -> None:
    weight = nn.Linear(400, 300, seed=0).params["weight"]
    assert weight.dtype == np.float32
    assert np.abs(weight).max() <= np.float32(0.05)
    assert abs(weight.std() - 0.05 / 3**0.5) < 1e-3
    rows = nn.Embedding(400, 300, seed=0).params["weight"]
    assert rows.dtype == np.float32
    assert abs(rows.std() - 1) < 0.01
    assert abs(rows.mean()) < 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda s: nn.Linear(3, 4, seed=s),
        lambda s: nn.Embedding(3, 4, seed=s),
        lambda s: nn.LastStepHead(3, 4, seed=s),
    ],
)
def test_seed_repeats_parameters(make: Any) -> None:
    first, again, other = make(5).state_dict(), make(5).state_dict(), make(6).state_dict()
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert (value != other[name]).any()


def test_any_memory_layout_works() -> None:
    layer = nn.Linear(3, 2, dtype="float64", seed=0)
    x, upstream = normal(5, 4, 3), normal(5, 4, 2)
    (y, _), pullback = layer.vjp(x)
    dx, _, grads = pullback(upstream)
    for change in (np.asfortranarray, lambda v: np.repeat(v, 2, axis=1)[:, ::2], _read_only):
        (other_y, _), other_pullback = layer.vjp(change(x))
        other_dx, _, other_grads = other_pullback(change(upstream))
        np.testing.assert_array_equal(other_y, y)
        np.testing.assert_array_equal(other_dx, dx)
        for name in grads:
            np.testing.assert_allclose(other_grads[name], grads[name], rtol=1e-13)


def _read_only(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value.flags.writeable = False
    return value


def test_dlpack_input() -> None:
    layer = nn.Linear(3, 2, seed=0)
    x = normal(4, 3, dtype="float32")
    np.testing.assert_array_equal(layer(torch.from_numpy(x)), layer(x))


def test_every_step_head_is_linear() -> None:
    head, layer = nn.EveryStepHead(3, 2, seed=1), nn.Linear(3, 2, seed=1)
    x = normal(5, 4, 3, dtype="float32")
    np.testing.assert_array_equal(head(x), layer(x))


@pytest.mark.parametrize("lengths", [None, [4, 1, 3], np.array([1, 2, 4], np.uint8)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_last_step_head(batch_first: bool, lengths: Any) -> None:
    head = nn.LastStepHead(3, 2, batch_first=batch_first, dtype="float64", seed=1)
    x = normal(3, 4, 3) if batch_first else normal(4, 3, 3)
    steps = x if batch_first else x.swapaxes(0, 1)
    last = np.stack([row[n - 1] for row, n in zip(steps, [4] * 3 if lengths is None else lengths, strict=True)])
    np.testing.assert_allclose(head(x, lengths), head.linear(last), rtol=1e-14)
    check_gradients(head, x, lengths=lengths)


def test_last_step_head_unbatched() -> None:
    head = nn.LastStepHead(3, 2, dtype="float64", seed=1)
    x = normal(4, 3)
    assert head(x).shape == (2,)
    np.testing.assert_allclose(head(x), head(x[:, None])[0], rtol=1e-14)
    check_gradients(head, x)


@pytest.mark.parametrize("lengths", [None, [4, 1, 3], np.array([1, 2, 4], np.uint8)])
def test_mean_over_time(lengths: Any) -> None:
    layer = nn.MeanOverTime()
    x = normal(4, 3, 2)
    times = [4] * 3 if lengths is None else lengths
    means = [x[:time, sequence].mean(0) for sequence, time in enumerate(times)]
    np.testing.assert_allclose(layer(x, lengths), means, rtol=1e-14, atol=1e-15)
    check_gradients(layer, x, lengths=lengths)
    for sequence, time in enumerate(times):
        x[time:, sequence] = np.nan  # padding, as in other layers
    np.testing.assert_allclose(layer(x, lengths), means, rtol=1e-14, atol=1e-15)
    single = x.astype(np.float32)
    assert layer(single, lengths).dtype == np.float32
    np.testing.assert_allclose(layer(single, lengths), means, rtol=1e-5, atol=1e-6)


def test_bad_input_of_mean_over_time() -> None:
    layer = nn.MeanOverTime()
    with pytest.raises(ValueError, match=r"x: expected shape .*, got \(4, 3\)"):
        layer(normal(4, 3))
    with pytest.raises(ValueError, match="lengths"):
        layer(normal(4, 3, 2), [4, 0, 1])
    with pytest.raises(ValueError, match=r"dy: expected shape .*, got \(3, 3\)"):
        layer.vjp(normal(4, 3, 2))[1](normal(3, 3))
    with pytest.raises(ValueError, match="state: expected None"):
        layer.forward(normal(4, 3, 2), normal(2))


# Embedding


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_embedding_takes_every_integer(dtype: str) -> None:
    layer = nn.Embedding(5, 3, dtype="float64", seed=1)
    ids = np.array([[0, 4, 2], [4, 4, 0]], dtype)
    np.testing.assert_array_equal(layer(ids), layer.params["weight"][ids.astype(int)])
    check_gradients(layer, ids)


def test_embedding_is_torchs() -> None:
    layer = nn.Embedding(11, 6, seed=2)
    twin = torch.nn.Embedding(11, 6)
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in layer.params.items()})
    ids, upstream = RNG.integers(0, 11, (9, 8)), normal(9, 8, 6, dtype="float32")
    twin(torch.from_numpy(ids)).backward(torch.from_numpy(upstream))
    (y, _), pullback = layer.vjp(ids)
    dx, _, grads = pullback(upstream)
    assert dx is None
    np.testing.assert_array_equal(y, twin(torch.from_numpy(ids)).detach())
    np.testing.assert_allclose(grads["weight"], twin.weight.grad, rtol=1e-5, atol=1e-5)


# Dropout


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_gradient(p: float) -> None:
    check_gradients(nn.Dropout(p), normal(4, 5), rng=3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_zeroes_a_share_and_scales_the_rest(dtype: str) -> None:
    x = np.ones((200, 300), dtype)
    (y, _), pullback = nn.Dropout(0.2).vjp(x, rng=1)
    assert y.dtype == dtype
    assert set(np.unique(y)) == {0, np.dtype(dtype).type(1.25)}
    assert abs((y == 0).mean() - 0.2) < 0.01
    np.testing.assert_array_equal(pullback(x)[0], y)
    np.testing.assert_array_equal(nn.Dropout(0.2)(x), x)


def test_dropout_repeats_with_a_seed_or_generator() -> None:
    layer, x = nn.Dropout(0.5), normal(40, 50)

    def output(rng: Any) -> np.ndarray:
        return layer.vjp(x, rng=rng)[0][0]

    first = output(4)
    np.testing.assert_array_equal(output(4), first)
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(output(rng), first)
    assert (output(rng) != first).any()
    assert (output(None) != output(None)).any()


# Sequential


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(5, 3, dtype="float64", seed=0),
        Cumulative(3),
        nn.Dropout(0.4),
        nn.Linear(3, 4, dtype="float64", seed=1),
        Cumulative(4),
        nn.LastStepHead(4, 2, dtype="float64", seed=2),
    )


def test_sequential_shares_its_layers_arrays() -> None:
    net = model()
    names = ["0.weight", "1.a", "3.weight", "3.bias", "4.a", "5.weight", "5.bias"]
    assert list(net.params) == list(net.state_dict()) == names
    assert net.params["3.weight"] is net.layers[3].params["weight"]
    saved = net.state_dict()
    net.load_state_dict({name: value + 1 for name, value in saved.items()})
    np.testing.assert_array_equal(net.layers[1].params["a"], saved["1.a"] + 1)


def test_sequential_call_is_its_layers_one_after_another() -> None:
    net, ids, lengths = model(), RNG.integers(0, 5, (4, 3)), [4, 2, 1]
    x, first = net.layers[1](net.layers[0](ids), None, lengths)
    x, second = net.layers[4](net.layers[3](x), None, lengths)
    y, state = net(ids, lengths=lengths)
    np.testing.assert_array_equal(y, net.layers[5](x, lengths))
    assert isinstance(state, tuple)
    np.testing.assert_array_equal(state[0], first)
    np.testing.assert_array_equal(state[1], second)


@pytest.mark.parametrize("lengths", [None, [4, 2, 1]])
@pytest.mark.parametrize("nested", [False, True])
def test_sequential_gradients(nested: bool, lengths: Any) -> None:
    net = model()
    layers = net.layers[1:]
    net = nn.Sequential(nn.Sequential(*layers[:3]), *layers[3:]) if nested else nn.Sequential(*layers)
    x, state = normal(4, 3, 3), [normal(3, 3), normal(3, 4)]
    upstream, dfinal = normal(3, 2), [normal(3, 3), normal(3, 4)]

    def pack(values: Any) -> Any:
        return ((values[0],), values[1]) if nested else tuple(values)

    def loss() -> float:
        (y, (first, second)), _ = net.vjp(x, pack(state), lengths, rng=9)
        first = first[0] if nested else first
        return float((y * upstream).sum() + (first * dfinal[0]).sum() + (second * dfinal[1]).sum())

    _, pullback = net.vjp(x, pack(state), lengths, rng=9)
    dx, dstate, grads = pullback(upstream, pack(dfinal))
    assert list(grads) == list(net.params)
    close = {"rtol": 1e-7, "atol": 1e-8}
    np.testing.assert_allclose(dx, differences(loss, x), **close)
    np.testing.assert_allclose(dstate[0][0] if nested else dstate[0], differences(loss, state[0]), **close)
    np.testing.assert_allclose(dstate[1], differences(loss, state[1]), **close)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, differences(loss, net.params[name]), **close)


def test_sequential_dstate_none_means_zero_and_ids_have_no_gradient() -> None:
    net, ids = model(), RNG.integers(0, 5, (4, 3))
    _, pullback = net.vjp(ids, rng=1)
    upstream = normal(3, 2)
    dx, dstate, grads = pullback(upstream)
    assert dx is None
    zeros = (np.zeros((3, 3)), np.zeros((3, 4)))
    _, dstate_zeros, grads_zeros = pullback(upstream, zeros)
    for one, other in zip((*dstate, *grads.values()), (*dstate_zeros, *grads_zeros.values()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert nn.Sequential(nn.Linear(3, 2, seed=0)).vjp(normal(4, 3, dtype="float32"))[0][1] == ()


def test_sequential_draws_all_masks_from_one_generator() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    x = np.ones((30, 40))
    rng = np.random.default_rng(2)
    (once, _), _ = net.layers[0].vjp(x, rng=rng)
    (expected, _), _ = net.layers[1].vjp(once, rng=rng)
    np.testing.assert_array_equal(net.vjp(x, rng=2)[0][0], expected)


@pytest.mark.usefixtures("in_numpy")
def test_every_layer_has_one_form_of_inference_and_vjp() -> None:
    x, ids = normal(4, 3, 3), RNG.integers(0, 5, (4, 3))
    single = x.astype("float32")
    layers: list[tuple[nn.Layer, Any]] = [
        (nn.Linear(3, 2, dtype="float64", seed=0), x),
        (nn.EveryStepHead(3, 2, dtype="float64", seed=0), x),
        (nn.LastStepHead(3, 2, dtype="float64", seed=0), x),
        (nn.MeanOverTime(), x),
        (nn.Embedding(5, 2, seed=0), ids),
        (nn.Dropout(0.0), x),
        (nn.RNN(3, 2, seed=0), single),
        (nn.LSTM(3, 2, dtype="float64", seed=0), x),
        (nn.Reversed(nn.LSTM(3, 2, dtype="float64", seed=0)), x),
        (nn.Sequential(nn.LSTM(3, 2, dtype="float64", seed=0), nn.Linear(2, 2, dtype="float64", seed=0)), x),
    ]
    for layer, given in layers:
        empty = None if layer.has_state else ()
        y, final = layer.forward(given, empty, None)
        (trained, _), pullback = layer.vjp(given, empty, None, rng=0)
        called = layer(given)
        np.testing.assert_array_equal(called[0] if layer.has_state else called, y)
        np.testing.assert_array_equal(trained, y)
        dx, dstate, grads = pullback(np.ones_like(y), final)
        assert (dx is None) == (given is ids)
        if not layer.has_state:
            assert final == dstate == ()
        assert grads.keys() == layer.params.keys()


# Bad input

X = np.zeros((4, 3), np.float32)
LINEAR = nn.Linear(3, 2, seed=0)
HEAD = nn.LastStepHead(3, 2, seed=0)
STEPS = np.zeros((4, 2, 3), np.float32)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: nn.Linear(0, 2), ValueError, "in_features: expected an integer >= 1, got 0"),
    (lambda: nn.Linear(3, -2), ValueError, "out_features: expected an integer >= 1, got -2"),
    (lambda: nn.Linear(3.5, 2), TypeError, "in_features: expected an integer >= 1, got 3.5"),  # type: ignore[arg-type]
    (lambda: nn.Linear(True, 2), TypeError, "in_features: expected an integer >= 1, got True"),
    (lambda: nn.Linear(3, 2, dtype="int32"), ValueError, "dtype: expected float32 or float64, got 'int32'"),
    (lambda: nn.Linear(3, 2, dtype="floot"), ValueError, "dtype: expected float32 or float64, got 'floot'"),
    (lambda: nn.Linear(3, 2, dtype=None), ValueError, "dtype: expected float32 or float64, got None"),
    (
        lambda: nn.Linear(3, 2, seed="x"),
        TypeError,
        "seed: expected a numpy.random.Generator, an int seed or None",
    ),
    (lambda: LINEAR(X[:, :2]), ValueError, "x: expected shape (..., 3), got (4, 2)"),
    (lambda: LINEAR(X[:0]), ValueError, "x: expected at least one element, got shape (0, 3)"),
    (lambda: LINEAR(X.astype(float)), TypeError, "x: expected dtype float32, got float64"),
    (lambda: LINEAR(X.astype(int)), TypeError, "x: expected dtype float32, got int64"),
    (lambda: LINEAR(X.astype(complex)), TypeError, "x: expected dtype float32, got complex128"),
    (lambda: LINEAR(X.tolist()), TypeError, "x: expected an array, got list"),
    (lambda: LINEAR.vjp(X)[1](X), ValueError, "dy: expected shape (4, 2), got (4, 3)"),
    (lambda: LINEAR.vjp(X)[1](np.zeros((4, 2))), TypeError, "dy: expected dtype float32, got float64"),
    (lambda: HEAD(X[0]), ValueError, "x: expected shape (T, B, 3) or (T, 3), got (3,)"),
    (lambda: HEAD(STEPS[:0]), ValueError, "x: expected at least one element, got shape (0, 2, 3)"),
    (lambda: HEAD(X, [4]), ValueError, "lengths: expected None for an unbatched x of shape (4, 3), got [4]"),
    (lambda: HEAD(STEPS, [4]), ValueError, "lengths: expected shape (2,), one a sequence, got (1,)"),
    (
        lambda: HEAD(STEPS, [4, 5]),
        ValueError,
        "lengths: expected 1 <= length <= 4, the number of steps, got 5",
    ),
    (
        lambda: HEAD(STEPS, [0, 4]),
        ValueError,
        "lengths: expected 1 <= length <= 4, the number of steps, got 0",
    ),
    (lambda: HEAD(STEPS, [4.0, 4.0]), TypeError, "lengths: expected an integer dtype, got float64"),
    (lambda: nn.Embedding(0, 2), ValueError, "num_embeddings: expected an integer >= 1, got 0"),
    (lambda: nn.Embedding(2, 0), ValueError, "embedding_dim: expected an integer >= 1, got 0"),
    (
        lambda: nn.Embedding(5, 2)(np.array([0, 5])),
        ValueError,
        "ids: expected 0 <= id < 5, the vocabulary's size, got 5",
    ),
    (
        lambda: nn.Embedding(5, 2)(np.array([-1])),
        ValueError,
        "ids: expected 0 <= id < 5, the vocabulary's size, got -1",
    ),
    (
        lambda: nn.Embedding(5, 2)(np.array([2**64 - 1], np.uint64)),
        ValueError,
        "ids: expected 0 <= id < 5, the vocabulary's size, got 18446744073709551615",
    ),
    (lambda: nn.Embedding(5, 2)(np.array([1.0])), TypeError, "ids: expected an integer dtype, got float64"),
    (lambda: nn.Embedding(5, 2)(np.array([True])), TypeError, "ids: expected an integer dtype, got bool"),
    (
        lambda: nn.Embedding(5, 2)(np.zeros((0, 3), int)),
        ValueError,
        "ids: expected at least one element, got shape (0, 3)",
    ),
    (lambda: nn.Dropout(1.0), ValueError, "p: expected a number in [0, 1), got 1.0"),
    (lambda: nn.Dropout(-0.1), ValueError, "p: expected a number in [0, 1), got -0.1"),
    (lambda: nn.Dropout(float("nan")), ValueError, "p: expected a number in [0, 1), got nan"),
    (lambda: nn.Dropout("0.5"), TypeError, "p: expected a number in [0, 1), got '0.5'"),  # type: ignore[arg-type]
    (lambda: nn.Dropout(0.5)(np.arange(3)), TypeError, "x: expected dtype float32 or float64, got int64"),
    (
        lambda: nn.Dropout(0.5).vjp(X, rng="x"),
        TypeError,
        "rng: expected a numpy.random.Generator, an int seed or None",
    ),
    (lambda: nn.Sequential(), ValueError, "layers: expected at least one layer, got none"),
    (
        lambda: nn.Sequential(LINEAR, abs),
        TypeError,
        "layers: expected gpulstm layers, got builtin_function_or_method at position 1",
    ),  # type: ignore[arg-type]
    (
        lambda: nn.Sequential(LINEAR, LINEAR),
        ValueError,
        "layers: expected each once, got the Linear at position 1 again",
    ),
    (
        lambda: LINEAR.vjp(X, (X,)),
        ValueError,
        "state: expected None or (), since Linear has no state, got a tuple of 1",
    ),
    (lambda: LINEAR.forward(X, X), ValueError, "state: expected None or (), since Linear has no state, got ndarray"),
    (lambda: LINEAR.vjp(X, (), [4]), ValueError, "lengths: expected None, since Linear takes none, got list"),
    (
        lambda: LINEAR.vjp(X)[1](X[:, :2], (X,)),
        ValueError,
        "dstate: expected None or (), since Linear has no state, got a tuple of 1",
    ),
    (
        lambda: HEAD.vjp(STEPS, (X,), [4, 4]),
        ValueError,
        "state: expected None or (), since LastStepHead has no state, got a tuple of 1",
    ),
    (
        lambda: nn.Sequential(LINEAR)(X, lengths=[1]),
        ValueError,
        "lengths: expected None, since no layer of this model takes them",
    ),
    (
        lambda: model()(X, state=X),
        TypeError,
        "state: expected None or a tuple, one entry a recurrent layer, got ndarray",
    ),
    (lambda: model()(X, state=(X,)), ValueError, "state: expected 2 entries, one a recurrent layer, got 1"),
    (
        lambda: model().vjp(np.zeros((2, 2), int))[1](X, (X,)),
        ValueError,
        "dstate: expected 2 entries, one a recurrent layer, got 1",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:60] for *_, message in BAD])
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.pop("bias"), ValueError, "missing ['bias'], unexpected []"),
        (lambda d: d.update(extra=X), ValueError, "missing [], unexpected ['extra']"),
        (lambda d: d.update(bias=X), ValueError, "state_dict['bias']: expected shape (2,), got (4, 3)"),
        (
            lambda d: d.update(bias=np.arange(2)),
            TypeError,
            "state_dict['bias']: expected floating point, got dtype int64",
        ),
        (lambda d: d.update(bias=[0.0, 1.0]), TypeError, "bias: expected an array, got list"),
        (
            lambda d: d.update(bias=np.array([0, np.nan])),
            ValueError,
            "state_dict['bias']: holds NaN or infinite values",
        ),
        (
            lambda d: d.update(bias=np.array([0, 1e300])),
            ValueError,
            "state_dict['bias']: holds NaN or infinite values",
        ),
    ],
)
def test_a_bad_state_dict_changes_nothing(change: Any, error: type[Exception], message: str) -> None:
    layer = nn.Linear(3, 2, seed=0)
    before = layer.state_dict()
    bad = {name: value + 1 for name, value in before.items()}
    change(bad)
    with pytest.raises(error, match=re.escape(message)):
        layer.load_state_dict(bad)
    for name, value in layer.params.items():
        np.testing.assert_array_equal(value, before[name])


def test_a_state_dict_that_is_no_dict() -> None:
    with pytest.raises(TypeError, match="state_dict: expected a dict of arrays, got list"):
        LINEAR.load_state_dict([X])  # type: ignore[arg-type]
