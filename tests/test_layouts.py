"""Arrays of every layout as input, states, parameters and gradients: results are the reference's, and share no memory
with each other, with what was given, or with what backward reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Arrays, parts
from properties import REPEATABLE
from tolerances import assert_close

import gpulstm
from gpulstm import nn, ops
from gpulstm_kernels.cpu import gemm
from gpulstm_kernels.cpu.packing import cache

# --- layouts ------------------------------------------------------------------------------------------------------


def _gaps(a: np.ndarray) -> np.ndarray:
    wide = np.full([2 * n + 1 for n in a.shape], np.nan if a.dtype.kind == "f" else 99, a.dtype)
    view = wide[(slice(1, None, 2),) * a.ndim]
    view[...] = a
    return view


def _from_the_end(a: np.ndarray) -> np.ndarray:
    turn = (slice(None, None, -1),) * a.ndim
    return a[turn].copy()[turn]


def _broadcast(a: np.ndarray) -> np.ndarray:
    """Other values than those of ``a``: the first along its longest axis, again and again."""
    return np.broadcast_to(a.take([0], int(np.argmax(a.shape))), a.shape)


def _unaligned(a: np.ndarray) -> np.ndarray:
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


Layout = Callable[[np.ndarray], np.ndarray]
LIE_WELL: list[Layout] = [np.copy, _read_only, lambda a: a.copy().view(np.memmap)]
LAYOUTS: list[Layout] = [*LIE_WELL, lambda a: a.copy("F"), _gaps, _from_the_end, _broadcast, _unaligned]


def _plain(value: Any, dtype: Any = None) -> Any:
    """Copies that lie as NumPy lays out new arrays."""
    if isinstance(value, tuple):
        return tuple(_plain(part, dtype) for part in value)
    return None if value is None else np.array(value, dtype or value.dtype, order="C", subok=False)


# --- cases --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A layer whose parameters have layouts of their own, and its arguments."""

    layer: Any
    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    dy: np.ndarray
    dstate: Any

    def given(self) -> list[np.ndarray]:
        states = [] if self.state is None else parts(self.state)
        lengths = [] if self.lengths is None else [self.lengths]
        return [self.x, *states, *lengths, self.dy, *parts(self.dstate), *self.layer.params.values()]


@st.composite
def cases(draw: st.DrawFn, cell: Any, dtype: str, projected: bool) -> Case:
    """A small case. Half of the sizes are 1, where views are contiguous by chance."""

    def size(*others: int) -> int:
        return draw(st.sampled_from([1] * len(others) + list(others)))

    steps, batch, inputs = size(2, 3, 5), size(2, 3, 16, 17), size(2, 3, 7)
    hidden = draw(st.sampled_from([2, 5, 8, 17])) if projected else size(2, 5, 8, 17)
    options: dict[str, Any] = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if projected:
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    layer = cell(inputs, hidden, draw(st.integers(1, 3)), dtype=dtype, seed=rng, **options)
    rows = draw(st.sampled_from([(batch,)] * 4 + [()]))
    batch = batch if rows else 1
    order = (*rows, steps) if options["batch_first"] else (steps, *rows)
    layouts = st.sampled_from(draw(st.sampled_from([LIE_WELL, *[LAYOUTS] * 4])))

    def laid_out(values: np.ndarray) -> np.ndarray:
        return draw(layouts)(values)

    def normal(*shape: int) -> np.ndarray:
        return laid_out(rng.standard_normal(shape).astype(dtype))

    def states() -> Any:
        made = tuple(normal(count, *rows, size) for count, _, size in layer.config.state_shapes(batch))
        return made if len(made) > 1 else made[0]

    layer.params = {name: laid_out(value) for name, value in layer.params.items()}
    state = states() if draw(st.sampled_from([False] + [True] * 4)) else None
    ragged = draw(st.sampled_from([False, False, True]))
    lengths = laid_out(rng.integers(1, steps + 1, batch)) if ragged else None
    features = layer.config.directions * layer.config.output_size
    return Case(layer, normal(*order, inputs), state, lengths, normal(*order, features), states())


def _twin(layer: Any, dtype: Any) -> Any:
    """A layer of the same kind and parameters, which lie as new arrays do."""
    c = layer.config
    options = {name: getattr(c, name) for name in ("num_layers", "bias", "batch_first", "bidirectional", "proj_size")}
    twin = type(layer)(c.input_size, c.hidden_size, **options, dtype=dtype)
    twin.params = {name: _plain(value, dtype) for name, value in layer.params.items()}
    return twin


# --- what must hold -----------------------------------------------------------------------------------------------


def _outputs(y: np.ndarray, state: Any) -> Arrays:
    return {"y": y, **{f"state {k}": part for k, part in enumerate(parts(state))}}


def _gradients(dx: np.ndarray, dstate: Any, grads: Arrays) -> Arrays:
    return {"dx": dx, **{f"dstate {k}": part for k, part in enumerate(parts(dstate))}, **grads}


def _check(found: Arrays, expected: Arrays, given: Iterable[np.ndarray], dtype: Any, what: str) -> None:
    """Right values that share no memory. Then they are overwritten: nothing that is read later may change by that."""
    results = list(found.values())
    for i, result in enumerate(results):
        for other in [*results[i + 1 :], *given]:
            assert not np.shares_memory(result, other), f"{what}: a result shares memory"
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert type(value) is np.ndarray
        assert value.dtype == dtype
        assert_close(value, expected[name], "kernel", dtype, f"{what}: {name}")
        value[...] = np.nan


def _check_layer(case: Case, what: str) -> None:
    layer, x, state, lengths, dy, dstate = case
    exact = [_plain(value, np.float64) for value in (x, state)]
    (y, final), pullback = _twin(layer, np.float64).vjp(*exact, _plain(lengths), backend="reference")
    outputs, gradients = _outputs(y, final), _gradients(*pullback(*(_plain(v, np.float64) for v in (dy, dstate))))
    for backend in ("numba_cpu", "reference"):
        for _ in range(2):
            found = _outputs(*layer(x, state, lengths, backend=backend))
            _check(found, outputs, case.given(), x.dtype, f"{what}, inference by {backend}")
        (y, final), pullback = layer.vjp(x, state, lengths, backend=backend)
        _check(_outputs(y, final), outputs, case.given(), x.dtype, f"{what}, vjp by {backend}")
        for _ in range(2):
            found = _gradients(*pullback(dy, dstate))
            given = [*case.given(), y, *parts(final)]
            _check(found, gradients, given, x.dtype, f"{what}, pullback by {backend}")


def _in_time(case: Case) -> tuple[np.ndarray, Any]:
    """x (T, B, I) and the state (L, B, ·) as views."""
    x, state = case.x, case.state
    if x.ndim == 2:
        state = None if state is None else tuple(part[:, None] for part in parts(state))
        return x[:, None], state if state is None or len(state) > 1 else state[0]
    return (x.swapaxes(0, 1) if case.layer.config.batch_first else x), state


def _stepped(layer: Any, x: np.ndarray, state: Any) -> list[np.ndarray]:
    stream = layer.stream(x.shape[1], state)
    return [stream(step).copy() for step in x]


def _check_stream(case: Case, what: str) -> None:
    layer, (x, state) = case.layer, _in_time(case)
    if layer.config.bidirectional:
        return
    lie_well = all(value.flags.c_contiguous and value.flags.aligned for value in layer.params.values())
    if not lie_well and not layer.config.proj_size:
        with pytest.raises(ValueError, match="layer: expected C-contiguous, aligned parameters"):
            layer.stream(x.shape[1])
        return
    twin = _twin(layer, np.float64)
    order = (lambda a: a.swapaxes(0, 1)) if layer.config.batch_first else (lambda a: a)
    expected, _ = twin(order(_plain(x, np.float64)), _plain(state, np.float64), backend="reference")
    assert_close(np.stack(_stepped(layer, x, state)), order(expected), "kernel", x.dtype, f"{what}, stream")


def _check_quantized(case: Case, kind: str, layouts: Sequence[Layout], what: str) -> None:
    """Layouts, which follow one another from parameter to parameter, change no bit of what narrow weights give."""
    if case.x.dtype == np.float64:
        return
    plain, laid_out = (gpulstm.quantize(layer, kind) for layer in (_twin(case.layer, np.float32), case.layer))
    turns = itertools.cycle(layouts)
    laid_out.params = {name: next(turns)(value) for name, value in plain.params.items()}
    plain.params = {name: _plain(value) for name, value in laid_out.params.items()}
    y, final = laid_out(case.x, case.state, case.lengths)
    assert not any(np.shares_memory(y, part) for part in parts(final)), what
    expected = plain(*(_plain(value) for value in (case.x, case.state, case.lengths)))
    for value, right in zip((y, *parts(final)), (expected[0], *parts(expected[1])), strict=True):
        np.testing.assert_array_equal(value, right, f"{what}, {plain.kind}")
    if not case.layer.config.bidirectional:
        x, state = _in_time(case)
        found, right = _stepped(laid_out, x, state), _stepped(plain, _plain(x), _plain(state))
        np.testing.assert_array_equal(found, right, f"{what}, stream of {plain.kind}")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cell", [gpulstm.LSTM, pytest.param(gpulstm.RNN, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("projected", "examples"),
    [(False, 60), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((False, 300), (True, 20), (True, 75)))],
)
def test_any_layout_of_everything(cell: Any, dtype: str, projected: bool, examples: int) -> None:
    @settings(REPEATABLE, max_examples=examples)
    @given(
        case=cases(cell, dtype, projected),
        kind=st.sampled_from(["bf16", "int8"]),
        layouts=st.permutations(LAYOUTS),
    )
    def check(case: Case, kind: str, layouts: Sequence[Layout]) -> None:
        what = f"{case.layer!r}, x {case.x.shape}"
        before = [_plain(value) for value in case.given()]
        _check_layer(case, what)
        _check_stream(case, what)
        _check_quantized(case, kind, layouts, what)
        for value, copy in zip(case.given(), before, strict=True):
            np.testing.assert_array_equal(value, copy, f"{what}: an argument was changed")

    check()


# --- other layers, and what guards kernels ------------------------------------------------------------------------

FEATURES = 6
OTHERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(FEATURES, 4, seed=0),
    "every step": lambda: nn.EveryStepHead(FEATURES, 4, bias=False, seed=0),
    "last step": lambda: nn.LastStepHead(FEATURES, 4, seed=0),
    "embedding": lambda: nn.Embedding(9, FEATURES, seed=0),
    "reversed": lambda: nn.Reversed(gpulstm.LSTM(FEATURES, 4, seed=0)),
    "model": lambda: nn.Sequential(
        nn.Embedding(9, FEATURES, seed=0),
        gpulstm.LSTM(FEATURES, 5, 2, dropout=0.5, bidirectional=True, seed=1),
        nn.Dropout(0.5),
        nn.Linear(10, 4, seed=2),
    ),
}


def _flat(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [a for part in value for a in _flat(part)] if isinstance(value, tuple) else [] if value is None else [value]


def _relaid(layer: Any, params: Arrays) -> Any:
    """``layer`` once its arrays are ``params``, wherever it keeps them."""
    inner = getattr(layer, "layers", None)
    if inner is None:
        layer.params = params
        for part in ("linear", "layer"):
            if hasattr(layer, part):
                getattr(layer, part).params = params
        return layer
    for i, part in enumerate(inner):
        _relaid(part, {name: params[f"{i}.{name}"] for name in part.params})
    layer._gather()
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_layers(name: str, layout: Layout) -> None:
    """A layout changes no bit, and no result shares memory."""
    rng, made = np.random.default_rng(0), OTHERS[name]
    laid_out = {name: layout(value) for name, value in made().params.items()}
    ids = name in ("embedding", "model")
    x = layout(rng.integers(0, 9, (5, 3)) if ids else rng.standard_normal((5, 3, FEATURES)).astype("f4"))
    results = []
    dy: Any = None
    for of in (lambda a: a, _plain):
        layer = _relaid(made(), {name: of(value) for name, value in laid_out.items()})
        outputs = layer(of(x))
        out, pullback = layer.vjp(of(x), rng=1)
        y = out[0] if isinstance(out, tuple) else out
        dy = layout(rng.standard_normal(y.shape).astype("f4")) if dy is None else dy
        results.append(_flat((outputs, out, pullback(of(dy)))))
        for i, result in enumerate(results[-1]):
            for other in [*results[-1][:i], x, dy, *layer.params.values()]:
                assert not np.shares_memory(result, other)
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_nothing_is_copied_that_lies_well() -> None:
    """Of a parameter that may not be written to, a call reads the memory itself; so it does of x."""
    layer = gpulstm.LSTM(3, 4, seed=0)
    layer.params = {name: _read_only(value) for name, value in layer.params.items()}
    (own,) = ops.weights_of(layer.config, layer.params, 0, np.dtype("f4"), np.dtype("f4"))
    for name, value in own.items():
        assert value is layer.params[f"{name}_l0"]
    x = _read_only(np.ones((5, 4, 3), np.float32))
    _, _, tape = ops.rnn_forward(layer.config, layer.params, x, training=True)
    assert tape is not None
    assert np.shares_memory(tape.layers[0].x, x)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("weight_hh_l0", np.ones((16, 3), "f4"), ValueError, r"weight_hh_l0: expected shape \(16, 4\), got \(16, 3\)"),
        ("bias_hh_l1_reverse", np.ones((16, 1), "f4"), ValueError, r"bias_hh_l1_reverse: expected shape \(16,\)"),
        ("weight_ih_l1", np.ones((16, 8)), TypeError, "weight_ih_l1: expected dtype float32, got float64"),
        ("weight_ih_l0", [1.0] * 48, TypeError, "weight_ih_l0: expected an array, got list"),
        ("bias_ih_l0", [1.0] * 16, TypeError, "bias_ih_l0: expected an array, got list"),
        ("weight_ih_l0", np.ones((16, 3), ">f4"), TypeError, "weight_ih_l0: expected dtype float32, got >f4"),
        ("bias_ih_l0", None, TypeError, "bias_ih_l0: expected an array, got NoneType"),
    ],
)
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
def test_a_parameter_that_does_not_fit(
    name: str, value: Any, error: type[Exception], message: str, backend: str
) -> None:
    """Kernels would read past its end."""
    layer = gpulstm.LSTM(3, 4, 2, bidirectional=True, seed=0)
    layer.params[name] = value
    for call in (layer, layer.vjp):
        with pytest.raises(error, match=message):
            call(np.ones((1, 2, 3), "f4"), backend=backend)


def test_parameters_of_a_dtype_that_no_kernel_has() -> None:
    layer = gpulstm.LSTM(3, 4, seed=0)
    layer.params = {name: value.astype(np.float16) for name, value in layer.params.items()}
    with pytest.raises(ValueError, match=r"dtype: expected float32 or float64, got dtype\('float16'\)"):
        layer(np.ones((1, 2, 3), np.float16))


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint16"])
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
def test_whole_numbers_are_no_parameters(dtype: str, backend: str) -> None:
    layer = gpulstm.LSTM(3, 4, bias=False, seed=0)
    layer.params = {name: (value * 100).astype(dtype) for name, value in layer.params.items()}
    x = np.ones((5, 2, 3), "f4")
    for call in (layer.vjp, layer)[: 1 if (dtype, backend) == ("uint16", "numba_cpu") else 2]:  # which is bfloat16's
        with pytest.raises(TypeError, match=r"expected (floating-point parameters, got|an array, got NoneType)"):
            call(x, backend=backend)


def test_a_scale_that_is_missing() -> None:
    quantized = gpulstm.quantize(gpulstm.LSTM(3, 4, seed=0), "int8")
    del quantized.params["scale_ih_l0"]
    for call in (lambda: quantized(np.ones((1, 2, 3), "f4")), lambda: quantized.stream(2)):
        with pytest.raises(TypeError, match="scale_ih_l0: expected an array, got NoneType"):
            call()


@pytest.mark.parametrize("turn", [lambda a: a.T, lambda a: a[:, ::-1], lambda a: a[::2], _unaligned, _broadcast])
def test_no_kernel_runs_on_an_array_that_does_not_lie_well(turn: Layout) -> None:
    """Whatever calls it; and the next call, of arrays that do, is right."""
    a = np.arange(16.0).reshape(4, 4)
    for arrays in ((a, turn(a)), (turn(a), a)):
        with pytest.raises(ValueError, match="C-contiguous, aligned arrays"):
            cache.source_of(arrays)
    c = np.zeros((4, 4))
    gemm.multiply(c, a, a)
    np.testing.assert_array_equal(c, a @ a)


def test_a_stream_is_not_changed_through_what_it_gave_or_was_given() -> None:
    for projection, backend in ((0, "numba_cpu"), (2, "numba_cpu"), (0, "reference")):
        layer = gpulstm.LSTM(3, 4, proj_size=projection, seed=0)
        x, state = np.ones((2, 3), "f4"), (np.ones((1, 2, projection or 4), "f4"), np.ones((1, 2, 4), "f4"))
        with gpulstm.use_backend(backend):
            expected = _stepped(layer, np.stack([x, x]), state)
            stream = layer.stream(2, state)
            for part in state:
                part[...] = 9
            y = stream(x)
            np.testing.assert_array_equal(y, expected[0])
            if y.flags.writeable:
                y[...] = 9
            for part in stream.state:
                part[...] = 9
            np.testing.assert_array_equal(stream(x), expected[1])


@pytest.mark.parametrize(("name", "shape"), [("weight", (4, FEATURES - 1)), ("bias", (1,))])
def test_a_linear_parameter_that_does_not_fit(name: str, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(FEATURES, 4, seed=0)
    for value, message in ((np.ones(shape, "f4"), "expected shape"), ([1.0], "expected an array, got list")):
        layer.params[name] = value
        for call in (layer, layer.vjp):
            with pytest.raises((ValueError, TypeError), match=f"{name}: {message}"):
                call(np.ones((3, FEATURES), "f4"))
