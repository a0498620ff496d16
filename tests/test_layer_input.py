"""Bad input to LSTM and RNN is refused by name and changes nothing; unusual but good input simply works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpulstm
from gpulstm import nn

T, B, I, H = 5, 3, 4, 6


def good(dtype: str = "float32") -> tuple[gpulstm.LSTM, np.ndarray]:
    return gpulstm.LSTM(I, H, dtype=dtype, seed=0), _normal(T, B, I, dtype=dtype)


def _normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """``call`` raises ``error`` with a text that begins with ``message`` (plain text, not a pattern)."""
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


BAD_INPUT: list[tuple[str, Any, type[Exception], str]] = [
    ("rank 1", _normal(I), ValueError, "x: expected shape (T, B, 4) or (T, 4), got (4,)"),
    ("rank 4", _normal(1, T, B, I), ValueError, "x: expected shape (T, B, 4) or (T, 4), got (1, 5, 3, 4)"),
    ("rank 0", np.array(1, np.float32), ValueError, "x: expected shape (T, B, 4) or (T, 4), got ()"),
    ("a number", np.float32(1), TypeError, "x: expected an array, got float32"),
    ("features", _normal(T, B, I + 1), ValueError, "x: expected shape (T, B, 4) or (T, 4), got (5, 3, 5)"),
    ("features, unbatched", _normal(T, I - 1), ValueError, "x: expected shape (T, B, 4) or (T, 4), got (5, 3)"),
    ("ints", np.ones((T, B, I), int), TypeError, "x: expected dtype float32, got int64"),
    ("bool", np.ones((T, B, I), bool), TypeError, "x: expected dtype float32, got bool"),
    ("complex", np.ones((T, B, I), np.complex64), TypeError, "x: expected dtype float32, got complex64"),
    ("half", np.ones((T, B, I), np.float16), TypeError, "x: expected dtype float32, got float16"),
    ("double", np.ones((T, B, I)), TypeError, "x: expected dtype float32, got float64"),
    ("objects", np.full((T, B, I), None), TypeError, "x: expected dtype float32, got object"),
    ("text", np.full((T, B, I), "a"), TypeError, "x: expected dtype float32, got <U1"),
    ("big endian", np.ones((T, B, I), ">f4"), TypeError, "x: expected dtype float32, got >f4"),
    ("list", [[[1.0] * I] * B] * T, TypeError, "x: expected an array, got list"),
    ("None", None, TypeError, "x: expected an array, got NoneType"),
    ("empty batch", _normal(T, 0, I), ValueError, "x: expected at least one element, got shape (5, 0, 4)"),
    ("no steps", _normal(0, B, I), ValueError, "x: expected at least one element, got shape (0, 3, 4)"),
    ("no steps, unbatched", _normal(0, I), ValueError, "x: expected at least one element, got shape (0, 4)"),
    ("torch double", torch.ones(T, B, I, dtype=torch.float64), TypeError, "x: expected dtype float32, got float64"),
    ("torch bfloat16", torch.ones(T, B, I, dtype=torch.bfloat16), TypeError, "x: a Tensor that DLPack cannot"),
    ("torch with a gradient", torch.ones(T, B, I, requires_grad=True), TypeError, "x: a Tensor that DLPack cannot"),
]


@pytest.mark.parametrize(("x", "error", "message"), [case[1:] for case in BAD_INPUT], ids=[c[0] for c in BAD_INPUT])
def test_bad_x(x: Any, error: type[Exception], message: str) -> None:
    lstm, _ = good()
    refused(lambda: lstm(x), error, message)
    refused(lambda: lstm.vjp(x), error, message)
    refused(lambda: lstm.explain(x), error, message)


def test_bad_x_with_batch_first() -> None:
    lstm = gpulstm.LSTM(I, H, batch_first=True)
    refused(lambda: lstm(_normal(B, T, I + 1)), ValueError, "x: expected shape (B, T, 4) or (T, 4), got (3, 5, 5)")


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([5, -1, 1], ValueError, "lengths: expected 0 <= length <= 5, the number of steps, got -1"),
        ([5, -2, 1], ValueError, "lengths: expected 0 <= length <= 5, the number of steps, got -2"),
        ([5, 6, 1], ValueError, "lengths: expected 0 <= length <= 5, the number of steps, got 6"),
        ([2**64 - 1] * 3, ValueError, "lengths: expected 0 <= length <= 5, the number of steps, got 184467"),
        ([5, 1], ValueError, "lengths: expected shape (3,), one a sequence, got (2,)"),
        ([[5], [1], [1]], ValueError, "lengths: expected shape (3,), one a sequence, got (3, 1)"),
        (np.array(3), ValueError, "lengths: expected shape (3,), one a sequence, got ()"),
        ([5.0, 1.0, 1.0], TypeError, "lengths: expected an integer dtype, got float64"),
        ([True, True, True], TypeError, "lengths: expected an integer dtype, got bool"),
        (["5", "1", "1"], TypeError, "lengths: expected an integer dtype, got <U1"),
        ([], TypeError, "lengths: expected an integer dtype, got float64"),
        ([[5], [1, 1], 1], ValueError, "lengths: expected one number a sequence, got [[5], [1, 1], 1]"),
        (5, TypeError, "lengths: expected an array, got int"),
    ],
)
def test_bad_lengths(lengths: Any, error: type[Exception], message: str) -> None:
    lstm, x = good()
    refused(lambda: lstm(x, lengths=lengths), error, message)
    refused(lambda: lstm.vjp(x, lengths=lengths), error, message)


def _state(h: Any = ..., c: Any = ...) -> tuple[Any, Any]:
    return (_normal(1, B, H) if h is ... else h, _normal(1, B, H) if c is ... else c)


BAD_STATES: list[tuple[Any, type[Exception], str]] = [
    (_normal(1, B, H), TypeError, "state: expected (state h, state c), got ndarray"),
    ((_normal(1, B, H),), TypeError, "state: expected (state h, state c), got 1 parts"),
    ((*_state(), _normal(1, B, H)), TypeError, "state: expected (state h, state c), got 3 parts"),
    ({"h": 1, "c": 2}, TypeError, "state: expected (state h, state c), got dict"),
    (_state(h=_normal(B, H)), ValueError, "state h: expected shape (1, 3, 6), got (3, 6)"),
    (_state(h=_normal(2, B, H)), ValueError, "state h: expected shape (1, 3, 6), got (2, 3, 6)"),
    (_state(c=_normal(1, B + 1, H)), ValueError, "state c: expected shape (1, 3, 6), got (1, 4, 6)"),
    (_state(c=_normal(1, B, H, dtype="float64")), TypeError, "state c: expected dtype float32, got float64"),
    (_state(h=np.zeros((1, B, H), int)), TypeError, "state h: expected dtype float32, got int64"),
    (_state(c=[[0.0] * H] * B), TypeError, "state c: expected an array, got list"),
]


@pytest.mark.parametrize(("state", "error", "message"), BAD_STATES)
def test_bad_state(state: Any, error: type[Exception], message: str) -> None:
    lstm, x = good()
    refused(lambda: lstm(x, state), error, message)
    refused(lambda: lstm.vjp(x, state), error, message)


def test_bad_state_of_an_rnn() -> None:
    rnn, x = gpulstm.RNN(I, H, seed=0), _normal(T, B, I)
    refused(lambda: rnn(x, _state()), TypeError, "state: expected (state h), got 2 parts")
    refused(lambda: rnn(x, _normal(1, B, H + 1)), ValueError, "state h: expected shape (1, 3, 6), got (1, 3, 7)")


@pytest.mark.parametrize(
    ("dy", "dstate", "error", "message"),
    [
        (_normal(T, B, H + 1), None, ValueError, "dy: expected shape (5, 3, 6), got (5, 3, 7)"),
        (_normal(B, T, H), None, ValueError, "dy: expected shape (5, 3, 6), got (3, 5, 6)"),
        (_normal(T, B, H, dtype="float64"), None, TypeError, "dy: expected dtype float32, got float64"),
        (np.ones((T, B, H), int), None, TypeError, "dy: expected dtype float32, got int64"),
        (1.0, None, TypeError, "dy: expected an array, got float"),
        (None, _normal(1, B, H), TypeError, "dstate: expected (dstate h, dstate c), got ndarray"),
        (None, _state(c=_normal(1, 1, H)), ValueError, "dstate c: expected shape (1, 3, 6), got (1, 1, 6)"),
        (None, _state(h=_normal(1, B, H, dtype="float64")), TypeError, "dstate h: expected dtype float32, got float64"),
    ],
)
def test_bad_upstream_gradient(dy: Any, dstate: Any, error: type[Exception], message: str) -> None:
    lstm, x = good()
    _, pullback = lstm.vjp(x)
    refused(lambda: pullback(dy, dstate), error, message)
    before = pullback(_normal(T, B, H))
    refused(lambda: pullback(dy, dstate), error, message)
    after = pullback(_normal(T, B, H))  # the tape is as it was
    np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bias_hh_l0": None}, ValueError, "state_dict: keys do not fit LSTM: missing ['bias_hh_l0'], unexpected []"),
        ({"weight": _normal(1)}, ValueError, "state_dict: keys do not fit LSTM: missing [], unexpected ['weight']"),
        (
            {"weight_ih_l0": _normal(24, 5)},
            ValueError,
            "state_dict['weight_ih_l0']: expected shape (24, 4), got (24, 5)",
        ),
        ({"bias_hh_l0": _normal(24, 1)}, ValueError, "state_dict['bias_hh_l0']: expected shape (24,), got (24, 1)"),
        (
            {"bias_hh_l0": np.full(24, np.nan, "f4")},
            ValueError,
            "state_dict['bias_hh_l0']: holds NaN or infinite values; expected finite ones",
        ),
        ({"bias_hh_l0": np.full(24, np.inf)}, ValueError, "state_dict['bias_hh_l0']: holds NaN or infinite"),
        ({"bias_hh_l0": np.full(24, 1e300)}, ValueError, "state_dict['bias_hh_l0']: holds NaN or infinite"),
        ({"bias_hh_l0": np.ones(24, int)}, TypeError, "state_dict['bias_hh_l0']: expected floating point, got dtype"),
        ({"bias_hh_l0": [0.0] * 24}, TypeError, "bias_hh_l0: expected an array, got list"),
    ],
)
def test_bad_state_dict(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """Every other entry is new and good, and yet nothing changes."""
    lstm, _ = good()
    before = lstm.state_dict()
    new = {name: value + 1 for name, value in before.items()} | changes
    refused(lambda: lstm.load_state_dict({k: v for k, v in new.items() if v is not None}), error, message)
    for name, value in before.items():
        np.testing.assert_array_equal(lstm.params[name], value)


def test_state_dict_must_be_a_dict() -> None:
    lstm, _ = good()
    refused(lambda: lstm.load_state_dict([1]), TypeError, "state_dict: expected a dict of arrays, got list")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size: expected an integer >= 1, got 0"),
        ({"input_size": -3}, ValueError, "input_size: expected an integer >= 1, got -3"),
        ({"input_size": 2.0}, TypeError, "input_size: expected an integer >= 1, got 2.0"),
        ({"input_size": None}, TypeError, "input_size: expected an integer >= 1, got None"),
        ({"hidden_size": 0}, ValueError, "hidden_size: expected an integer >= 1, got 0"),
        ({"hidden_size": "6"}, TypeError, "hidden_size: expected an integer >= 1, got '6'"),
        ({"hidden_size": True}, TypeError, "hidden_size: expected an integer >= 1, got True"),
        ({"num_layers": 0}, ValueError, "num_layers: expected an integer >= 1, got 0"),
        ({"num_layers": -1}, ValueError, "num_layers: expected an integer >= 1, got -1"),
        ({"proj_size": -1}, ValueError, "proj_size: expected an integer >= 0, got -1"),
        ({"proj_size": H}, ValueError, "proj_size: expected less than hidden_size = 6, got 6"),
        ({"proj_size": H + 1}, ValueError, "proj_size: expected less than hidden_size = 6, got 7"),
        ({"proj_size": 2.5}, TypeError, "proj_size: expected an integer >= 0, got 2.5"),
        ({"dropout": 1.0}, ValueError, "dropout: expected a number in [0, 1), got 1.0"),
        ({"dropout": -0.1}, ValueError, "dropout: expected a number in [0, 1), got -0.1"),
        ({"dropout": float("nan")}, ValueError, "dropout: expected a number in [0, 1), got nan"),
        ({"dropout": "a"}, TypeError, "dropout: expected a number in [0, 1), got 'a'"),
        ({"dropout": True}, TypeError, "dropout: expected a number in [0, 1), got True"),
        ({"bias": 1}, TypeError, "bias: expected True or False, got 1"),
        ({"batch_first": "no"}, TypeError, "batch_first: expected True or False, got 'no'"),
        ({"bidirectional": None}, TypeError, "bidirectional: expected True or False, got None"),
        ({"dtype": "float16"}, ValueError, "dtype: expected float32 or float64, got 'float16'"),
        ({"dtype": int}, ValueError, "dtype: expected float32 or float64, got <class 'int'>"),
        ({"dtype": None}, ValueError, "dtype: expected float32 or float64, got None"),
        ({"dtype": "floating"}, ValueError, "dtype: expected float32 or float64, got 'floating'"),
        ({"init": "zeros"}, ValueError, "init: expected one of uniform, recommended, got 'zeros'"),
        ({"init": None}, ValueError, "init: expected one of uniform, recommended, got None"),
        ({"seed": "a"}, TypeError, "seed: expected a numpy.random.Generator, an int seed or None, got str"),
        ({"seed": 1.5}, TypeError, "seed: expected a numpy.random.Generator, an int seed or None, got float"),
        ({"seed": -1}, ValueError, "seed: expected a seed >= 0, got -1"),
        ({"device": "tpu"}, ValueError, "device: expected 'cpu' or 'cuda', got 'tpu'"),
        ({"device": 0}, ValueError, "device: expected 'cpu' or 'cuda', got 0"),
    ],
)
def test_bad_construction(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    refused(lambda: gpulstm.LSTM(**({"input_size": I, "hidden_size": H} | arguments)), error, message)
    if "proj_size" not in arguments:
        refused(lambda: gpulstm.RNN(**({"input_size": I, "hidden_size": H} | arguments)), error, message)


@pytest.mark.parametrize(
    ("rng", "error", "message"),
    [
        ("a", TypeError, "rng: expected a numpy.random.Generator, an int seed or None, got str"),
        (1.5, TypeError, "rng: expected a numpy.random.Generator, an int seed or None, got float"),
        (True, TypeError, "rng: expected a numpy.random.Generator, an int seed or None, got bool"),
        (-1, ValueError, "rng: expected a seed >= 0, got -1"),
    ],
)
def test_bad_rng(rng: Any, error: type[Exception], message: str) -> None:
    lstm = gpulstm.LSTM(I, H, 2, dropout=0.5, seed=0)
    refused(lambda: lstm.vjp(_normal(T, B, I), rng=rng), error, message)


# --- what must work -----------------------------------------------------------------------------------------------


def _strided(array: np.ndarray) -> np.ndarray:
    """The same values with gaps and a negative stride."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    view = wide[::-1, ..., ::-2]
    view[...] = array
    assert not view.flags.c_contiguous
    return view


def _unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "Fortran order": np.asfortranarray,
    "strided": _strided,
    "unaligned": _unaligned,
    "read-only": _read_only,
    "broadcast": lambda a: np.broadcast_to(a, (1, *a.shape))[0],
    "torch": torch.from_numpy,
    "torch, transposed": lambda a: torch.from_numpy(np.ascontiguousarray(a.T)).permute(*reversed(range(a.ndim))),
}


@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_arrays_in_any_form(form: str, dtype: str, backend: str) -> None:
    """Input, states and gradients of every layout and from another library give the same bits, and stay as they are."""
    lstm, x = good(dtype)
    state = (_normal(1, B, H, dtype=dtype), 2 * _normal(1, B, H, dtype=dtype))
    dy = _normal(T, B, H, dtype=dtype)
    of, before = FORMS[form], [a.copy() for a in (x, *state, dy)]
    results = []
    for as_given in (lambda a: a, of):
        h, c = (as_given(part) for part in state)
        (y, final), pullback = lstm.vjp(as_given(x), (h, c), backend=backend)
        dx, initial, grads = pullback(as_given(dy), (h, c))
        results.append([y, *final, dx, *initial, *grads.values()])
        np.testing.assert_array_equal(y, lstm(as_given(x), [h, c], backend=backend)[0])
    for a, b in zip(*results, strict=True):
        assert type(b) is np.ndarray
        np.testing.assert_array_equal(a, b)
    for array, copy in zip((x, *state, dy), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    "lengths",
    [
        [5, 1, 3],
        (5, 1, 3),
        *[np.array([5, 1, 3], dtype) for dtype in ("int8", "uint8", "int32", "uint32", "int64", "uint64")],
        torch.tensor([5, 1, 3]),
        _read_only(np.array([5, 1, 3])),
        np.array([5, 0, 1, 0, 3, 0])[::2],
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_lengths_in_any_form(lengths: Any) -> None:
    lstm, x = good()
    y, (h, c) = lstm(x, lengths=lengths)
    expected, (expected_h, expected_c) = lstm(x, lengths=np.array([5, 1, 3]))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(h, expected_h)
    np.testing.assert_array_equal(c, expected_c)
    for b, length in enumerate((5, 1, 3)):  # as if the sequence were alone and that long
        alone, (h_alone, c_alone) = lstm(x[:length, b : b + 1])
        np.testing.assert_allclose(y[:length, b], alone[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose((h[:, b], c[:, b]), (h_alone[:, 0], c_alone[:, 0]), rtol=1e-5, atol=1e-6)
        assert not y[length:, b].any()


def test_unbatched_is_a_batch_of_one() -> None:
    for batch_first in (False, True):
        lstm = gpulstm.LSTM(I, H, 2, bidirectional=True, batch_first=batch_first, seed=0)
        x, state = _normal(T, I), (_normal(4, H), 2 * _normal(4, H))
        y, (h, c) = lstm(x, state)
        assert (y.shape, h.shape, c.shape) == ((T, 2 * H), (4, H), (4, H))
        batched, (h1, c1) = lstm(np.expand_dims(x, 0 if batch_first else 1), tuple(part[:, None] for part in state))
        np.testing.assert_array_equal(y, batched.reshape(y.shape))
        np.testing.assert_array_equal((h, c), (h1[:, 0], c1[:, 0]))
        with_lengths, _ = lstm(x, state, lengths=[T - 1])
        assert not with_lengths[-1].any()


def test_none_stands_for_zeros() -> None:
    lstm, x = good()
    zero, dy, d = np.zeros((1, B, H), np.float32), _normal(T, B, H), _normal(1, B, H)
    np.testing.assert_array_equal(lstm(x)[0], lstm(x, (zero, zero))[0])
    np.testing.assert_array_equal(lstm(x, (None, d))[0], lstm(x, (zero, d))[0])
    _, pullback = lstm.vjp(x)
    for given, meant in (
        ((), (np.zeros_like(dy), (zero, zero))),
        ((dy,), (dy, (zero, zero))),
        ((dy, (None, d)), (dy, (zero, d))),
        ((None, (d, d)), (np.zeros_like(dy), (d, d))),
    ):
        found, expected = pullback(*given), pullback(*meant)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        for name, gradient in expected[2].items():
            np.testing.assert_array_equal(found[2][name], gradient)


def test_outputs_belong_to_the_caller() -> None:
    """Writing into what a call returned, or was given, changes no later result and not its pullback."""
    lstm, x = good()
    expected, _ = lstm(x)
    (y, (h, c)), pullback = lstm.vjp(x)
    reference_dx, _, reference_grads = pullback(np.ones_like(y))
    for array in (y, h, c):
        array.fill(np.nan)
    dx, _, grads = pullback(np.ones_like(y))
    np.testing.assert_array_equal(dx, reference_dx)
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, reference_grads[name])
        gradient.fill(np.nan)  # no gradient shares memory with another, nor with a parameter
    np.testing.assert_array_equal(lstm(x)[0], expected)
    _, _, grads = pullback(np.ones_like(y))
    assert not any(np.isnan(gradient).any() for gradient in grads.values())
    grads["bias_ih_l0"].fill(7)
    assert not (grads["bias_hh_l0"] == 7).any()


def test_state_dict_is_a_copy_and_loads_other_precisions() -> None:
    lstm, x = good()
    lstm.state_dict()["weight_ih_l0"].fill(0)
    assert lstm.params["weight_ih_l0"].any()
    twin = gpulstm.LSTM(I, H, dtype="float64", seed=1)
    arrays = dict(twin.params)
    twin.load_state_dict(lstm.state_dict())
    assert all(twin.params[name] is array for name, array in arrays.items())  # loaded in place: optimizers hold them
    np.testing.assert_array_equal(twin.params["weight_hh_l0"], lstm.params["weight_hh_l0"])
    np.testing.assert_allclose(twin(x.astype(np.float64))[0], lstm(x)[0], rtol=1e-4, atol=1e-6)


def test_initial_parameters() -> None:
    """Reproducible from a seed or a generator; within ±1/√H, or orthogonal with an open forget gate."""
    one, same, other = (gpulstm.LSTM(I, 64, 2, seed=seed).params for seed in (3, 3, 4))
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).any()
        assert np.abs(one[name]).max() <= 1 / 8
        assert np.abs(one[name]).max() > 0.9 / 8
    from_generator = gpulstm.LSTM(I, 64, 2, seed=np.random.default_rng(3)).params
    np.testing.assert_array_equal(from_generator["weight_hh_l1"], one["weight_hh_l1"])

    params = gpulstm.LSTM(I, 64, 2, proj_size=16, seed=0, init="recommended", dtype="float64").params
    for gate in params["weight_hh_l1"].reshape(4, 64, 16):
        np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-12)
    np.testing.assert_array_equal(params["bias_ih_l0"].reshape(4, 64), [[0] * 64, [1] * 64, [0] * 64, [0] * 64])
    assert not params["bias_hh_l0"].any()
    assert 0 < np.abs(params["weight_ih_l0"]).max() <= np.sqrt(6 / (64 + I))


def test_dropout_is_drawn_from_the_seed_and_only_in_training() -> None:
    lstm = gpulstm.LSTM(I, H, 2, dropout=0.5, seed=0)
    x = _normal(T, B, I)
    inference, _ = lstm(x)
    np.testing.assert_array_equal(inference, gpulstm.nn.Recurrent("lstm", I, H, 2, seed=0)(x)[0])
    (one, _), _ = lstm.vjp(x, rng=1)
    (same, _), _ = lstm.vjp(x, rng=np.random.default_rng(1))
    (other, _), _ = lstm.vjp(x, rng=2)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one != inference).any()


def test_repr_names_what_is_not_the_default() -> None:
    assert repr(gpulstm.LSTM(4, 8)) == "LSTM(4, 8)"
    assert repr(gpulstm.RNN(4, 8, 2, bidirectional=True)) == "RNN(4, 8, num_layers=2, bidirectional=True)"
    assert isinstance(gpulstm.LSTM(4, 8), nn.Recurrent)
