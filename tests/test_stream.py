"""One step at a time gives what the layer gives for the whole sequence."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import problems
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm_kernels.cpu import tuning
from gpulstm_kernels.cpu.codegen import features
from gpulstm_kernels.cpu.crew.thread_pool import crew

LAYERS: dict[str, Any] = {
    "lstm": lambda dtype: gpulstm.LSTM(5, 9, 3, dtype=dtype, seed=0),
    "no bias": lambda dtype: gpulstm.LSTM(21, 33, bias=False, dtype=dtype, seed=0),
    "rnn": lambda dtype: gpulstm.RNN(7, 70, 2, batch_first=True, dtype=dtype, seed=0),
    "projected": lambda dtype: gpulstm.LSTM(5, 9, 2, proj_size=3, dtype=dtype, seed=0),
    "projected, batch first": lambda dtype: gpulstm.LSTM(5, 9, proj_size=3, batch_first=True, dtype=dtype, seed=0),
}


def sequence(layer: Any, batch: int, steps: int = 6) -> Any:
    """Steps (T, B, I) and a state."""
    rng, dtype = np.random.default_rng(1), next(iter(layer.params.values())).dtype
    x = rng.standard_normal((steps, batch, layer.config.input_size)).astype(dtype)
    drawn = tuple(rng.standard_normal(shape).astype(dtype) for shape in layer.config.state_shapes(batch))
    return x, drawn if len(drawn) > 1 else drawn[0]


def parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.fixture
def shared_streams() -> Iterator[None]:
    """Threads take part in the steps of streams, however small."""
    with tuning.replaced(stream_per_thread=1):
        yield


def whole(layer: Any, x: np.ndarray, state: Any = None) -> Any:
    y, final = layer(x.swapaxes(0, 1) if layer.config.batch_first else x, state)
    return (y.swapaxes(0, 1) if layer.config.batch_first else y), final


@pytest.mark.usefixtures("shared_streams")
@pytest.mark.parametrize("backend", ["numba_cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_are_the_sequence(name: str, dtype: str, backend: str) -> None:
    layer = LAYERS[name](dtype)
    with gpulstm.use_backend(backend):
        for batch in (1, 4):
            x, state = sequence(layer, batch)
            for first in (None, state):
                expected, final = whole(layer, x, first)
                for threads in (1, 3):
                    with problems.threads(threads):
                        stream = layer.stream(batch, first)
                        for t in range(len(x)):
                            assert_close(stream(x[t]), expected[t], "kernel", dtype, f"{name}, step {t}")
                for found, part in zip(parts(stream.state), parts(final), strict=True):
                    assert_close(found, part, "kernel", dtype, f"{name}: state")


@pytest.mark.usefixtures("shared_streams")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_of_a_quantized_layer_are_its_sequence(name: str, kind: str, threads: int) -> None:
    """Bit for bit: a stream packs the same weights, and rounds and sums as the layer does.

    But for one row of bfloat16 where there is AMX: the layer projects the input of all its steps in blocks, which
    have another order of sums.
    """
    layer = gpulstm.quantize(LAYERS[name]("float32"), kind)
    for batch in (1, 4):
        x, state = sequence(LAYERS[name]("float32"), batch)
        expected, final = whole(layer, x, state)
        blocks = batch == 1 and kind == "bf16" and features.AMX

        def agree(found: np.ndarray, wanted: np.ndarray, exactly: bool = not blocks) -> None:
            if exactly:
                np.testing.assert_array_equal(found, wanted)
            assert_close(found, wanted, "bfloat16 sums", "float32", name)

        with problems.threads(threads):
            stream = layer.stream(batch, state)
            for t in range(len(x)):
                agree(stream(x[t]), expected[t])
        for found, part in zip(parts(stream.state), parts(final), strict=True):
            agree(found, part)


def test_a_quantized_layer_streams_on_a_backend_without_narrow_kernels() -> None:
    layer = gpulstm.quantize(gpulstm.LSTM(5, 9, 2, seed=0), "int8")
    x, state = sequence(gpulstm.LSTM(5, 9, 2, seed=0), 2)
    with gpulstm.use_backend("reference"):
        stream = layer.stream(2, state)
        expected, _ = layer(x, state)
        for t in range(len(x)):
            assert_close(stream(x[t]), expected[t], "kernel", "float32")


@pytest.mark.usefixtures("shared_streams")
def test_threads_that_poll_for_steps_take_part_and_leave_for_calls() -> None:
    """Streams of two Python threads, and calls between their steps, which take the threads back: the same bits."""
    layer = gpulstm.LSTM(40, 70, 2, seed=0)
    x = np.random.default_rng(0).standard_normal((400, 1, 40)).astype("f4")
    expected = [y.copy() for y in map(layer.stream(), x)]
    called, _ = layer(x[:20])

    def steps() -> int:
        stream, helped = layer.stream(), 0
        for t in range(len(x)):
            np.testing.assert_array_equal(stream(x[t]), expected[t])
            helped += int(stream._kernels._shared[-1, 1:, 0].any())
            if t % 100 == 50:
                np.testing.assert_array_equal(layer(x[:20])[0], called)
        return helped

    with problems.threads(3):
        assert any(steps() for _ in range(1000))  # the first few do, unless other processes keep the cores busy
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(steps) for _ in range(4)]:
                future.result()
        layer.stream()(x[0])  # is gone while a thread may still look out for it
        crew.resize(1)
        steps()


def test_a_state_comes_out_and_goes_in() -> None:
    layer = gpulstm.LSTM(5, 9, 2, seed=0)
    x, state = sequence(layer, 2)
    stream = layer.stream(2, state)
    for part, given in zip(stream.state, state, strict=True):
        np.testing.assert_array_equal(part, given)
    stream(x[0])
    between = stream.state
    after = stream(x[1]).copy()
    stream.reset(between)
    np.testing.assert_array_equal(stream(x[1]), after)
    stream.reset()
    np.testing.assert_array_equal(stream(x[0]), layer.stream(2)(x[0]))


def test_parameters_changed_in_place_act_from_the_next_step_on() -> None:
    layer = gpulstm.LSTM(5, 9, seed=0)
    x, _ = sequence(layer, 1)
    stream = layer.stream()
    stream(x[0])
    state = stream.state
    for value in layer.params.values():
        value *= 2
    expected, _ = layer(x[1:2], state)
    assert_close(stream(x[1]), expected[0], "kernel", "float32")


def test_a_step_allocates_nothing() -> None:
    layer = gpulstm.LSTM(64, 64, 2, seed=0)
    x, _ = sequence(layer, 1)
    stream = layer.stream()
    buffers = {stream(x[0]).ctypes.data for _ in range(6)}
    assert len(buffers) == 2
    tracemalloc.start()
    try:
        stream(x[0])
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(50):
            stream(x[0])
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 512  # Python's own objects
    assert peak - before < 4096


def test_any_layout_is_taken() -> None:
    layer = gpulstm.LSTM(5, 9, seed=0)
    x, _ = sequence(layer, 2)
    expected = layer.stream(2)(x[0]).copy()
    for given in (np.asfortranarray(x[0]), np.repeat(x[0], 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(layer.stream(2)(given), expected)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((1, 4), np.float32), ValueError, "x: expected shape (1, 5), got (1, 4)"),
        (np.zeros(5, np.float32), ValueError, "x: expected shape (1, 5), got (5,)"),
        (np.zeros((1, 5)), TypeError, "x: expected dtype float32, got float64"),
        ([[0.0] * 5], TypeError, "x: expected an array, got list"),
    ],
)
@pytest.mark.parametrize("projection", [0, 3])
def test_bad_input_changes_nothing(bad: Any, error: type[Exception], message: str, projection: int) -> None:
    layer = gpulstm.LSTM(5, 9, proj_size=projection, seed=0)
    x, state = sequence(layer, 1)
    stream = layer.stream(1, state)
    with pytest.raises(error, match=re.escape(message)):
        stream(bad)
    np.testing.assert_array_equal(stream(x[0]), layer.stream(1, state)(x[0]))


def test_what_cannot_be_streamed() -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        gpulstm.LSTM(5, 9, bidirectional=True).stream()
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got 0"):
        gpulstm.LSTM(5, 9).stream(0)
    with pytest.raises(ValueError, match=re.escape("state h: expected shape (1, 2, 9)")):
        gpulstm.LSTM(5, 9).stream(2, (np.zeros((1, 1, 9), np.float32), None))
