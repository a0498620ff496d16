"""Single steps and streams of cells with gates of x or of h alone, parameters, inputs and h before the step, and of
rows that begin anew: against the reference, step by step.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import problems
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import arrays, cells
from gpulstm.nn import Recurrent
from gpulstm_kernels import reference
from gpulstm_kernels.cpu import layer as cpu_layer
from gpulstm_kernels.cpu import tuning
from gpulstm_kernels.cpu.codegen import features

slow = pytest.mark.slow
# Gates of both products and of either one; parameters; inputs; no recurrent product. The others are mixtures.
STREAMED = ["gru", "peephole", "time_gap", "mingru", "indrnn", "minlstm", "recurrent_dropout", "slstm", "zoneout"]
CELLS = [*STREAMED[:4], *(pytest.param(cell, marks=slow) for cell in STREAMED[4:])]
# Of each cell in float32, and of one in float64.
COMPILED = pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        *((cell, "float32") for cell in ("lstm", *STREAMED[:4])),
        *(pytest.param(cell, "float32", marks=slow) for cell in STREAMED[4:]),
        pytest.param("time_gap", "float64", marks=slow),
    ],
)


def narrow(*quick: str) -> Any:
    """Cells of each kind with narrow weights; all but int8 of the ``quick`` ones is slow."""
    cases = [("gru", "bf16"), *((cell, "int8") for cell in ("gru", "mingru", "time_gap", "slstm"))]
    return pytest.mark.parametrize(
        ("cell", "kind"),
        [pytest.param(*case, marks=[] if case in [(cell, "int8") for cell in quick] else slow) for case in cases],
    )


@pytest.fixture(autouse=True)
def shared() -> Iterator[None]:
    """Threads take part in steps and streams, however small."""
    with tuning.replaced(stream_per_thread=1, step_per_thread=1):
        yield


def parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


class Case:
    """A layer, and a sequence of which a third of the steps begins anew."""

    def __init__(self, layer: Any, batch: int, *, width: int = 1, steps: int = 6, seed: int = 1) -> None:
        rng, self.layer, self.batch, config = np.random.default_rng(seed), layer, batch, layer.config
        first = next(iter(layer.params.values()))
        dtype = first.dtype if first.dtype.kind == "f" else np.dtype(np.float32)
        self.x = rng.standard_normal((steps, batch, config.input_size)).astype(dtype)
        self.state = tuple(rng.standard_normal(shape).astype(dtype) for shape in config.state_shapes(batch))
        self.resets = rng.uniform(size=(steps, batch)) < 1 / 3
        self.resets[steps // 2, 0] = True
        shape = (steps, batch, width) if width else (steps, batch)
        self.inputs = {name: rng.uniform(size=shape).astype(dtype) for name in config.cell.inputs}

    @property
    def first(self) -> Any:
        """The initial state as a layer takes it."""
        return self.state if len(self.state) > 1 else self.state[0]

    def given(self, t: int, *, anew: bool = True) -> dict[str, Any]:
        """What the stream takes at step ``t`` beside x."""
        inputs = {"inputs": {name: value[t] for name, value in self.inputs.items()}} if self.inputs else {}
        return inputs | ({"resets": self.resets[t]} if anew else {})

    def whole(self, steps: slice = slice(None), state: Any = None, **options: Any) -> tuple[np.ndarray, Any]:
        """y (T, B, H) of the layer for the ``steps``, and the final state."""
        batch_first = self.layer.config.batch_first

        def outside(array: np.ndarray) -> np.ndarray:
            return array.swapaxes(0, 1) if batch_first else array

        inputs = {name: outside(value[steps]) for name, value in self.inputs.items()} or None
        state = self.first if state is None else state
        y, final = self.layer(
            outside(self.x[steps]), state, None, outside(self.resets[steps]), inputs=inputs, **options
        )
        return outside(y), final


@COMPILED
@pytest.mark.parametrize("sizes", ["one of each", "odd", "two registers"])
def test_one_step_equals_the_reference(cell: str, dtype: str, sizes: str) -> None:
    """In both directions, with and without biases, inputs a row and a unit; the same bits on any number of threads."""
    batch, inputs, hidden = {"one of each": (1, 1, 1), "odd": (3, 5, 9), "two registers": (2, 40, 33)}[sizes]
    for bias, resets, scalar in ((True, True, True), (False, False, False), (True, True, False)):
        p = problems.layer_problem(
            cell,
            dtype,
            steps=1,
            batch=batch,
            inputs=inputs,
            hidden=hidden,
            directions=2,
            bias=bias,
            resets=resets,
            scalar_inputs=scalar,
        )
        assert cpu_layer.describe(p.shape()).startswith("one step")
        expected, _ = problems.outputs(reference, p)
        first: problems.Arrays = {}
        for threads in (1, 2):
            with arrays.poison(), problems.threads(threads):
                found, _ = problems.outputs(cpu_layer, p)
            first = first or found
            for name, value in expected.items():
                assert_close(found[name], value, "kernel", dtype, f"{cell}, {sizes}: {name}")
                np.testing.assert_array_equal(found[name], first[name])


@pytest.mark.parametrize("cell", ["lstm", "time_gap"])
def test_one_step_of_a_sequence_of_none_keeps_the_state(cell: str) -> None:
    p = problems.layer_problem(cell, "float32", steps=1, hidden=9, directions=2)
    p.x[0, 1] = np.nan
    lengths = np.array([1, 0, 1])
    found, _ = problems.outputs(cpu_layer, p._replace(lengths=lengths))
    whole, _ = problems.outputs(cpu_layer, p)
    for name, before in zip(("h", *p.cell.states), p.state, strict=True):
        np.testing.assert_array_equal(found[name][:, 1], before[:, 1])
        np.testing.assert_array_equal(found[name][:, [0, 2]], whole[name][:, [0, 2]])
        assert np.isfinite(found[name]).all()


@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@COMPILED
def test_steps_are_the_sequence(cell: str, dtype: str, backend: str) -> None:
    """In two layers, of inputs in each shape that they may have, for one row and for several."""
    for batch, width, batch_first in ((1, 0, False), (4, 1, True), (3, 21, False)):
        layer = Recurrent(cell, 5, 21, 2, batch_first=batch_first, dtype=dtype, seed=0)
        case = Case(layer, batch, width=width)
        expected, final = case.whole(backend="reference")
        with gpulstm.use_backend(backend):
            for threads in (1, 2):
                with arrays.poison(), problems.threads(threads):
                    stream = layer.stream(batch, case.first)
                    for t, x in enumerate(case.x):
                        found = stream(x, **case.given(t))
                        assert_close(found, expected[t], "kernel", dtype, f"{cell}, batch {batch}, step {t}")
                for found, part in zip(parts(stream.state), parts(final), strict=True):
                    assert_close(found, part, "kernel", dtype, f"{cell}, batch {batch}: state")


@pytest.mark.parametrize("cell", ["lstm", *CELLS])
def test_a_stream_has_the_bits_of_calls_of_one_step(cell: str) -> None:
    layer = Recurrent(cell, 21, 33, seed=0)
    case = Case(layer, 3)
    stream, state = layer.stream(3, case.first), case.first
    for t, x in enumerate(case.x):
        y, state = case.whole(slice(t, t + 1), state)
        np.testing.assert_array_equal(stream(x, **case.given(t)), y[0])
    for found, part in zip(parts(stream.state), parts(state), strict=True):
        np.testing.assert_array_equal(found, part)


@narrow("gru")
def test_steps_of_a_quantized_layer_are_its_sequence(cell: str, kind: str) -> None:
    """Bit for bit, but for one row of bfloat16 where there is AMX, which sums blocks in another order."""
    for batch, inputs, hidden, bias in ((1, 5, 9, True), (4, 21, 70, False)):
        layer = gpulstm.quantize(Recurrent(cell, inputs, hidden, 2, bias, seed=0), kind)
        case = Case(layer, batch)
        expected, final = case.whole()
        blocks = batch == 1 and kind == "bf16" and features.AMX
        for threads in (1, 2):
            with arrays.poison(), problems.threads(threads):
                stream = layer.stream(batch, case.first)
                steps = [stream(x, **case.given(t)).copy() for t, x in enumerate(case.x)]
            for found, wanted in zip((np.stack(steps), *parts(stream.state)), (expected, *parts(final)), strict=True):
                if not blocks:
                    np.testing.assert_array_equal(found, wanted)
                assert_close(found, wanted, "bfloat16 sums", "float32", cell)


@narrow("gru", "mingru")
def test_a_quantized_layer_computes_with_the_rounded_weights(cell: str, kind: str) -> None:
    """Against the reference with the widened weights; what rounding x and h may change is a thousandth.

    An sLSTM's gates are exponentials, whose slope is their value: three times what others may be off by was measured.
    """
    layer = gpulstm.quantize(Recurrent(cell, 21, 33, 2, seed=0), kind)
    for batch in (1, 3):
        case = Case(layer, batch)
        expected, _ = case.whole(backend="reference")
        stream = layer.stream(batch, case.first)
        for t, x in enumerate(case.x):
            allowed = (1e-4 if cell == "slstm" else 2e-5) if kind == "int8" else 4e-3
            assert np.abs(stream(x, **case.given(t)) - expected[t]).max() < allowed


def test_what_is_quantized_and_what_stays() -> None:
    """By whole names: a cell's own parameters may begin like those that are quantized, and like their scales."""

    @cells.cell(gates="i", x_gates="g", states="c", params="weight_ih_2 scale scale_ih_l")
    def alike(x: Any, s: Any, p: Any) -> Any:
        c = cells.sigmoid(x.i + p.weight_ih_2) * s.c + p.scale * cells.tanh(x.g) + p.scale_ih_l * s.h
        return cells.tanh(c), {"c": c}

    layer = Recurrent(alike, 5, 9, 2, seed=0)
    for kind in ("int8", "bf16"):
        quantized = gpulstm.quantize(layer, kind)
        for name, value in layer.params.items():
            narrow = name.startswith(("weight_ih_l", "weight_hh_l"))
            assert quantized.params[name].dtype == ({"int8": np.int8, "bf16": np.uint16}[kind] if narrow else "f4")
            if not narrow:
                np.testing.assert_array_equal(quantized.params[name], value)
        assert list(quantized.widened()) == list(layer.params)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [*((cell, None) for cell in ("lstm", "gru", "peephole", "mingru")), ("gru", "int8"), ("mingru", "int8")],
)
def test_nothing_of_a_row_comes_through_a_reset(cell: str, kind: str | None) -> None:
    """Neither NaN nor infinity; rows beside it keep theirs to themselves."""
    layer: Any = Recurrent(cell, 5, 9, 2, seed=0)
    layer = gpulstm.quantize(layer, kind) if kind else layer
    case = Case(layer, 4)
    for part in case.state:
        part[:, 0], part[:, 1], part[:, 2] = np.nan, np.inf, -np.inf
    stream, fresh = layer.stream(4, case.first), layer.stream(4)
    y = stream(case.x[0], np.array([True, True, False, False]))
    anew = fresh(case.x[0])
    np.testing.assert_array_equal(y[:2], anew[:2])
    assert np.isfinite(y[[0, 1, 3]]).all()
    assert not np.isclose(y[2:], anew[2:]).all(axis=1).any()
    for part, wanted in zip(parts(stream.state), parts(fresh.state), strict=True):
        np.testing.assert_array_equal(part[:, :2], wanted[:, :2])


def test_an_output_stays_what_it_was_when_its_row_begins_anew() -> None:
    layer = gpulstm.LSTM(5, 9, seed=0)
    case = Case(layer, 2)
    stream = layer.stream(2, case.first)
    y = stream(case.x[0])
    before = y.copy()
    stream(case.x[1], np.array([True, True]))
    np.testing.assert_array_equal(y, before)


def test_resets_of_no_row_change_nothing() -> None:
    layer = Recurrent("gru", 5, 9, 2, seed=0)
    case = Case(layer, 2)
    one, other = layer.stream(2, case.first), layer.stream(2, case.first)
    for x in case.x:
        np.testing.assert_array_equal(one(x, np.zeros(2, bool)), other(x))


@slow
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
def test_inputs_in_any_layout(backend: str) -> None:
    """Bools count 1 and 0, a value a row is that of every unit; copies are taken where arrays do not lie well."""
    layer = Recurrent("time_gap", 5, 9, seed=0)
    case, gap = Case(layer, 3), np.array([1, 0, 1], np.float32)

    def step(gap: np.ndarray) -> np.ndarray:
        return layer.stream(3, case.first)(case.x[0], inputs={"gap": gap}).copy()

    with gpulstm.use_backend(backend):
        expected = step(gap)
        assert np.abs(expected - step(1 - gap)).max() > 1e-2
        wide = np.repeat(gap[:, None], 9, axis=1)
        apart = np.repeat(gap, 2)[::2]
        for given in (gap[:, None], gap.astype(bool), apart, wide, np.asfortranarray(wide), wide.astype(bool)):
            np.testing.assert_array_equal(step(given), expected)


@slow
def test_several_inputs_of_different_shapes() -> None:
    @cells.cell(gates="i", states="c", inputs="decay drive", differentiable="drive")
    def two_inputs(x: Any, s: Any, i: Any) -> Any:
        c = i.decay * s.c + cells.sigmoid(x.i) * i.drive
        return cells.tanh(c), {"c": c}

    layer = Recurrent(two_inputs, 5, 9, seed=0)
    case = Case(layer, 3)
    case.inputs["drive"] = np.random.default_rng(2).uniform(size=(6, 3, 9)).astype("f4")
    expected, _ = case.whole(backend="reference")
    stream = layer.stream(3, case.first)
    for t, x in enumerate(case.x):
        assert_close(stream(x, **case.given(t)), expected[t], "kernel", "float32")
        one = case.whole(slice(t, t + 1), backend="reference")[0]
        assert_close(case.whole(slice(t, t + 1))[0], one, "kernel", "float32")


@slow
def test_parameters_changed_in_place_act_from_the_next_step_on() -> None:
    layer = Recurrent("peephole", 5, 9, seed=0)
    x = Case(layer, 1).x
    stream = layer.stream()
    stream(x[0])
    state, before = stream.state, layer.stream()
    before(x[0])
    for name in ("p_i_l0", "p_f_l0", "p_o_l0"):
        layer.params[name] *= 3
    expected, _ = layer(x[1:2], state, backend="reference")
    assert_close(stream(x[1]), expected[0], "kernel", "float32")


@slow
def test_parameters_are_read_in_place_or_refused() -> None:
    layer = Recurrent("peephole", 5, 9, seed=0)
    layer.params["p_f_l0"] = np.repeat(layer.params["p_f_l0"], 2)[::2]
    with pytest.raises(ValueError, match="reads in place: p_f_l0"):
        layer.stream()


@pytest.mark.parametrize("cell", ["gru", "time_gap"])
def test_a_step_allocates_nothing(cell: str) -> None:
    layer = Recurrent(cell, 64, 64, 2, seed=0)
    case = Case(layer, 1)
    stream, given = layer.stream(), case.given(0) | {"resets": np.array([True])}
    stream(case.x[0], **given)
    tracemalloc.start()
    try:
        stream(case.x[0], **given)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(50):
            stream(case.x[0], **given)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 512  # Python's own objects
    assert peak - before < 4096


GAP = np.zeros(2, np.float32)


@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@pytest.mark.parametrize(
    ("cell", "given", "error", "message"),
    [
        ("time_gap", {}, ValueError, "inputs: expected a dict with gap, which cell 'time_gap' declares, got none"),
        ("time_gap", {"inputs": GAP}, TypeError, "inputs: expected a dict of arrays, got ndarray"),
        ("time_gap", {"inputs": {"gap": GAP, "gp": GAP}}, ValueError, "got missing [], left over ['gp']"),
        (
            "time_gap",
            {"inputs": {"gap": np.zeros((2, 8), np.float32)}},
            ValueError,
            "inputs['gap']: expected shape (2,) or (2, 1) or (2, 9), got (2, 8)",
        ),
        ("time_gap", {"inputs": {"gap": np.zeros(2)}}, TypeError, "inputs['gap']: expected dtype float32, got float64"),
        ("time_gap", {"inputs": {"gap": 1.0}}, TypeError, "inputs['gap']: expected an array, got float"),
        ("gru", {"inputs": {"gap": GAP}}, ValueError, "inputs: expected None, since cell 'gru' declares none"),
        ("gru", {"inputs": {}}, ValueError, "inputs: expected None, since cell 'gru' declares none"),
        ("gru", {"resets": np.zeros(2, int)}, TypeError, "resets: expected bools, got dtype int64"),
        ("gru", {"resets": np.zeros((2, 1), bool)}, ValueError, "resets: expected shape (2,), a bool a step and"),
        ("gru", {"resets": np.zeros(3, bool)}, ValueError, "resets: expected shape (2,), a bool a step and"),
        ("gru", {"resets": True}, TypeError, "resets: expected an array, got bool"),
    ],
)
def test_bad_arguments_change_nothing(
    cell: str, given: Any, error: type[Exception], message: str, backend: str
) -> None:
    layer = Recurrent(cell, 5, 9, seed=0)
    case = Case(layer, 2)
    with gpulstm.use_backend(backend):
        stream = layer.stream(2, case.first)
        with pytest.raises(error, match=re.escape(message)):
            stream(case.x[0], **given)
        for part, before in zip(parts(stream.state), case.state, strict=True):
            np.testing.assert_array_equal(part, before)
