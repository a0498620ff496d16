"""gpulstm.jax against the same network written with jax.lax.scan: values and gradients, under jit, grad and vmap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import gpulstm
import gpulstm.jax
from gpulstm.jax import jax

jnp = jax.numpy


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", before)


def _scan(config: Any, params: Any, x: Any, state: Any, lengths: Any) -> Any:
    """The network in JAX's own operations; time-major, batched."""
    lstm = config.cell.name == "lstm"
    steps, batch, _ = x.shape
    valid = jnp.arange(steps)[:, None, None] < (jnp.full(batch, steps) if lengths is None else lengths)[:, None]
    finals: list[Any] = []
    for number, ends in enumerate(config.suffixes()):
        outputs = []
        for direction, end in enumerate(ends):
            index = number * config.directions + direction
            weight_ih, weight_hh = params[f"weight_ih{end}"], params[f"weight_hh{end}"]
            bias = params[f"bias_ih{end}"] + params[f"bias_hh{end}"] if config.bias else 0.0

            def step(
                carry: Any, given: Any, ih: Any = weight_ih, hh: Any = weight_hh, b: Any = bias, end: str = end
            ) -> Any:
                h, c = carry
                x_t, inside = given
                gates = x_t @ ih.T + h @ hh.T + b
                if lstm:
                    i, f, g, o = jnp.split(gates, 4, axis=-1)
                    c_new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                    h_new = jax.nn.sigmoid(o) * jnp.tanh(c_new)
                    if config.proj_size:
                        h_new = h_new @ params[f"weight_hr{end}"].T
                else:
                    h_new, c_new = jnp.tanh(gates), c
                return (jnp.where(inside, h_new, h), jnp.where(inside, c_new, c)), jnp.where(inside, h_new, 0)

            begin = (state[0][index], state[1][index] if lstm else jnp.zeros((batch, config.hidden_size), x.dtype))
            final, y = jax.lax.scan(step, begin, (x, valid), reverse=direction == 1)
            outputs.append(y)
            finals.append(final)
        x = jnp.concatenate(outputs, axis=-1)
    states = tuple(jnp.stack(parts) for parts in zip(*finals, strict=True))
    return x, states if lstm else states[:1]


def _problem(seed: int, dtype: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    kind, hidden = ("LSTM", "RNN")[seed % 2], int(rng.integers(2, 9))
    options: dict[str, Any] = {"bias": bool(rng.integers(3)), "bidirectional": bool(rng.integers(2))}
    if kind == "LSTM" and rng.integers(2):
        options["proj_size"] = int(rng.integers(1, hidden))
    layer = getattr(gpulstm, kind)(
        int(rng.integers(1, 6)), hidden, int(rng.integers(1, 4)), **options, dtype=dtype, seed=seed
    )
    steps, batch = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    x = jnp.asarray(rng.standard_normal((steps, batch, layer.config.input_size)), dtype)
    state = tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in layer.config.state_shapes(batch))
    lengths = jnp.asarray(rng.integers(1, steps + 1, batch)) if rng.integers(2) else None
    return layer.config, {name: jnp.asarray(value) for name, value in layer.params.items()}, x, state, lengths


def _ours(config: Any, params: Any, x: Any, state: Any, lengths: Any) -> Any:
    if config.cell.name == "lstm":
        return gpulstm.jax.lstm(params, x, state, lengths)
    y, h = gpulstm.jax.rnn(params, x, state[0], lengths)
    return y, (h,)


def _loss(network: Any, config: Any, lengths: Any, seed: int) -> Any:
    def loss(params: Any, x: Any, state: Any) -> Any:
        rng = np.random.default_rng(seed)
        y, final = network(config, params, x, state, lengths)
        parts = [y, *final]
        total = sum((part * jnp.asarray(rng.standard_normal(part.shape), part.dtype)).sum() for part in parts)
        return total, parts

    return loss


# XLA compiles each anew, for a second
@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, *range(3, 12)))])
def test_values_and_gradients(seed: int, dtype: str) -> None:
    config, params, x, state, lengths = _problem(seed, dtype)
    gradients, outputs = [], []
    for network in (_scan, _ours):
        grad = jax.grad(_loss(network, config, lengths, seed), argnums=(0, 1, 2), has_aux=True)
        gradient, output = jax.jit(grad)(params, x, state)
        gradients.append(gradient)
        outputs.append(output)
    for a, b in zip(*map(jax.tree.leaves, reversed(outputs)), strict=True):
        assert_close(a, b, "jax", dtype, f"output of {config}")
    eagerly = _ours(config, params, x, state, lengths)
    jax.tree.map(np.testing.assert_array_equal, eagerly, (outputs[1][0], tuple(outputs[1][1:])))
    assert jax.tree.structure(gradients[0]) == jax.tree.structure(gradients[1])
    for a, b in zip(*map(jax.tree.leaves, reversed(gradients)), strict=True):
        assert a.dtype == dtype
        assert_close(a, b, "jax", dtype, f"gradient of {config}")


def test_vmap_over_sequences_and_over_parameters() -> None:
    config, params, x, state, _ = _problem(2, "float32")
    xs = jnp.stack([x, 2 * x, -x])
    grad = jax.grad(lambda *given: _loss(_ours, config, None, 0)(*given)[0], argnums=(0, 1))
    found = jax.jit(jax.vmap(grad, in_axes=(None, 0, None)))(params, xs, state)
    for k, one in enumerate(xs):
        expected = grad(params, one, state)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), found, expected)
    many = jax.tree.map(lambda value: jnp.stack([value, value / 2]), params)
    twice = jax.vmap(lambda p: jax.vmap(lambda one: _ours(config, p, one, state, None)[0])(xs))(many)
    assert twice.shape[:2] == (2, 3)
    half = jax.tree.map(lambda value: value / 2, params)
    np.testing.assert_array_equal(twice[1, 2], _ours(config, half, -x, state, None)[0])


def test_without_state_batch_first_and_unbatched() -> None:
    layer = gpulstm.LSTM(3, 4, batch_first=True, seed=0)
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    lengths = np.array([5, 2])
    y, (h, c) = gpulstm.jax.lstm(layer.params, x, lengths=lengths, batch_first=True)
    expected, (h_expected, c_expected) = layer(x, lengths=lengths)
    for a, b in ((y, expected), (h, h_expected), (c, c_expected)):
        np.testing.assert_array_equal(a, b)
    single, (h, _) = gpulstm.jax.lstm(layer.params, x[0])
    np.testing.assert_array_equal(single, layer(x[0])[0])
    assert h.shape == (1, 4)
    dx = jax.grad(lambda x: gpulstm.jax.lstm(layer.params, x)[0].sum())(jnp.asarray(x[0]))
    (_, _), pullback = layer.vjp(x[0])
    np.testing.assert_array_equal(dx, pullback(np.ones((5, 4), np.float32))[0])


def test_large_arrays_under_jit() -> None:
    """Arguments of a callback that are large come to the host without a deadlock."""
    layer = gpulstm.LSTM(256, 256, seed=0)
    params = {name: jnp.asarray(value) for name, value in layer.params.items()}
    loss = jax.jit(jax.grad(lambda p, x: (gpulstm.jax.lstm(p, x * 2)[0] * 3).sum()))
    grads = loss(params, jnp.ones((64, 64, 256), jnp.float32))
    assert np.isfinite(grads["weight_hh_l0"]).all()


def test_what_jax_cannot_do_here() -> None:
    layer = gpulstm.LSTM(3, 4, seed=0)
    x = jnp.ones((5, 2, 3), jnp.float32)

    def total(x: Any) -> Any:
        return gpulstm.jax.lstm(layer.params, x)[0].sum()

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(total, (x,), (x,))
    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        jax.grad(lambda x: jax.grad(total)(x).sum())(x)
    with pytest.raises(Exception, match="expected 0 <= length <= 5, the number of steps, got 6"):
        jax.block_until_ready(jax.jit(lambda n: gpulstm.jax.lstm(layer.params, x, lengths=n)[0])(jnp.array([6, 1])))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": [1]}, TypeError, "params: expected a dict of arrays"),
        ({"params": {}}, TypeError, "params: expected a dict of arrays"),
        ({"params": {1: np.zeros(3)}}, TypeError, "params: expected strings as keys, got 1"),
        ({"params": {"weight": np.zeros(3)}}, ValueError, "weight"),
        ({"x": np.ones((5, 2, 3), object)}, TypeError, "x: expected an array that JAX takes, got dtype object"),
        ({"x": np.ma.ones((5, 2, 3))}, TypeError, "x: expected an array, got a masked one"),
        (
            {"x": np.ones((5, 2, 4), np.float32)},
            ValueError,
            r"x: expected shape \(T, B, 3\) or \(T, 3\), got \(5, 2, 4\)",
        ),
        ({"x": np.ones((5, 2, 3), np.int32)}, TypeError, "x: expected dtype float32, got int32"),
        ({"x": [[1.0]]}, TypeError, "x: expected a JAX or NumPy array, got list"),
        ({"x": jnp.ones((5, 2, 3), "bfloat16")}, TypeError, "x: expected dtype float32, got bfloat16"),
        ({"state": 3}, TypeError, r"state: expected \(h, c\), got int"),
        ({"state": (np.zeros((1, 2, 4), np.float32),) * 3}, TypeError, r"state: expected \(h, c\), got 3 parts"),
        ({"state": (np.zeros((1, 3, 4), np.float32),) * 2}, ValueError, r"state h: expected shape \(1, 2, 4\)"),
        ({"lengths": np.array([6, 1])}, ValueError, "expected 0 <= length <= 5, the number of steps, got 6"),
        ({"lengths": np.array([1.0, 1.0])}, TypeError, "lengths: expected an integer dtype, got float32"),
        ({"lengths": np.array([1])}, ValueError, r"lengths: expected shape \(2,\), one a sequence, got \(1,\)"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type, message: str) -> None:
    given: dict[str, Any] = {"params": gpulstm.LSTM(3, 4, seed=0).params, "x": np.ones((5, 2, 3), np.float32)} | change
    with pytest.raises(error, match=message):
        gpulstm.jax.lstm(given["params"], given["x"], given.get("state"), given.get("lengths"))


def test_shapes_are_checked_while_tracing() -> None:
    params = gpulstm.LSTM(3, 4, seed=0).params
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 3\) or \(T, 3\), got \(5, 2, 4\)"):
        jax.jit(gpulstm.jax.lstm)(params, jnp.ones((5, 2, 4), jnp.float32))
    with pytest.raises(ValueError, match=r"lengths: expected shape \(2,\)"):
        jax.jit(gpulstm.jax.lstm)(params, jnp.ones((5, 2, 3), jnp.float32), lengths=jnp.array([1]))


def test_arrays_on_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        platform = "gpu"

    x = jnp.ones((5, 2, 3), jnp.float32)
    params = gpulstm.LSTM(3, 4, seed=0).params
    monkeypatch.setattr(type(x), "devices", lambda _: {Gpu()})
    with pytest.raises(
        ValueError, match="expected an array on a CPU, got one on gpu; the kernels that JAX calls run on"
    ):
        gpulstm.jax.lstm(params, x)
