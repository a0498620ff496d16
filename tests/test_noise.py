"""Noise that a layer draws: by counter, so that a seed repeats it everywhere; and what layers do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import problems
import pytest
from test_train import Task, assert_same, everything, make
from tolerances import assert_close

import gpulstm
from gpulstm import io, nn
from gpulstm.arrays import library, random
from gpulstm.train import checkpoint
from gpulstm_kernels.cells import Cell, Noise
from gpulstm_kernels.cpu import tuning

ZONEOUT: dict[str, Any] = {"keep_c": 0.5, "keep_h": (0.2, "sequence")}
NOISY = [("zoneout", ZONEOUT), ("recurrent_dropout", {"mask": 0.3}), ("variational_dropout", {"mask": 0.4})]
WORDS = np.array([0x12345678, 0x9ABCDEF0], np.uint32)
FULL = 0xFFFFFFFF


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


# --- the generator


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: Any, key: Any, expected: Any) -> None:
    """The vectors that its authors publish with it (Random123, kat_vectors, philox4x32 10)."""
    assert tuple(map(int, random.philox(counter, key))) == expected


def drawn(shape: tuple[int, ...], p: float, words: np.ndarray = WORDS, stream: int = 3) -> np.ndarray:
    values = np.empty(shape, np.float32)
    random.noise(values, words, stream, round(p * random.PARTS), 1, 0)
    return values


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.3, 1.0])
def test_the_probability(p: float) -> None:
    values = drawn((40, 50, 101), p)
    assert abs(values.mean() - p) <= 5 * (p * (1 - p) / values.size) ** 0.5


def test_a_larger_call_begins_with_the_same() -> None:
    values = drawn((9, 7, 11), 0.5)
    for steps, rows, units in ((1, 1, 1), (3, 7, 11), (9, 2, 11), (9, 7, 6)):
        np.testing.assert_array_equal(drawn((steps, rows, units), 0.5), values[:steps, :rows, :units])


def test_what_differs_is_independent() -> None:
    """Of a seed, an input, steps, rows and units that lie beside each other half agree."""
    values, words = drawn((64, 64, 64), 0.5), [WORDS + np.array(by, np.uint32) for by in ((1, 0), (0, 1))]
    others = [drawn(values.shape, 0.5, stream=4), *(drawn(values.shape, 0.5, word) for word in words)]
    pairs = [*((values, other) for other in others), (values[1:], values[:-1]), (values[:, 1:], values[:, :-1])]
    pairs.append((values[:, :, 1:], values[:, :, :-1]))
    for a, b in pairs:
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / a.size**0.5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 6), (2, 3, 8), (7, 4, 3)])
def test_kernels_draw_the_same_bits_on_any_threads(shape: tuple[int, ...], dtype: str) -> None:
    from gpulstm_kernels.cpu import philox

    expected, found = np.empty(shape, dtype), np.full(shape, np.nan, dtype)
    arguments = WORDS, 5, 1 << 22, 0.0, float(np.float32(1 / 0.75))
    random.noise(expected, *arguments)
    for count in (1, 2, 3):
        with problems.threads(count), tuning.replaced(noise_per_thread=1):
            philox.draw(found, *arguments)
        np.testing.assert_array_equal(found, expected)


# --- layers


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.3}, {"bidirectional": True}])
@pytest.mark.parametrize(("cell", "noise"), NOISY)
def test_gradients_with_the_seed_held(cell: str, noise: Any, options: dict[str, Any]) -> None:
    net = nn.Recurrent(cell, 2, 3, noise=noise, **options, dtype="float64", seed=0)
    n = problems.network(net, steps=3, batch=2, ragged=True)
    given: dict[str, Any] = {"rng": 5, "backend": "reference"}
    expected = problems.network_differences(n, **given)
    for name, value in problems.network_gradients(n, **given).items():
        assert_close(value, expected[name], "differences", "float64", name)


@pytest.mark.parametrize(("cell", "noise"), NOISY)
def test_what_is_drawn_is_what_the_counter_says(cell: str, noise: Any) -> None:
    """The number of an input of a layer follows those of the inputs and layers before it."""
    layers = [nn.Recurrent(cell, 4, 4, noise=noise, dtype="float64", seed=k) for k in range(2)]
    net = nn.Recurrent(cell, 4, 4, 2, noise=noise, dtype="float64")
    for k, layer in enumerate(layers):
        for name, value in layer.params.items():
            net.params[name.replace("_l0", f"_l{k}")][:] = value
    x = y = numbers(6, 3, 4)
    words, names = random.seed_words(np.random.default_rng(7)), net.config.cell.inputs
    for k, layer in enumerate(layers):
        inputs = {}
        for j, one in enumerate(net.config.noise):
            hit, miss = (1.0, 0.0) if cell == "zoneout" else (0.0, float(np.float32(1 / (1 - one.p))))
            inputs[one.input] = values = np.empty((6, 3, 4))
            random.noise(values, words, k * len(names) + j, round(one.p * 2**24), hit, miss)
            if one.each == "sequence":
                values[:] = values[0]
        y, _ = layer(y, inputs=inputs, backend="reference")
    (found, _), _ = net.vjp(x, rng=7, backend="reference")
    np.testing.assert_array_equal(found, y)


@pytest.mark.parametrize(("cell", "noise"), NOISY)
def test_a_longer_and_wider_batch_begins_with_the_same(cell: str, noise: Any, in_numpy: None) -> None:
    net = nn.Recurrent(cell, 3, 6, 2, noise=noise, dtype="float64", seed=0)
    x = numbers(7, 5, 3)
    (whole, _), _ = net.vjp(x, rng=2)
    (part, _), _ = net.vjp(np.ascontiguousarray(x[:4, :2]), rng=2)
    np.testing.assert_allclose(part, whole[:4, :2], rtol=1e-12)
    (again, _), _ = net.vjp(x, rng=2)
    np.testing.assert_array_equal(again, whole)
    (other, _), _ = net.vjp(x, rng=3)
    assert not np.array_equal(other, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "noise"), NOISY)
def test_the_same_on_every_backend_and_number_of_threads(cell: str, noise: Any) -> None:
    net = nn.Recurrent(cell, 3, 6, 2, noise=noise, dtype="float64", seed=0, bidirectional=True)
    x = numbers(7, 5, 3)
    (expected, _), _ = net.vjp(x, rng=2, backend="reference")
    found = []
    for count in (1, 2):
        with problems.threads(count), tuning.replaced(noise_per_thread=1):
            found.append(net.vjp(x, rng=2)[0][0])
    np.testing.assert_array_equal(found[0], found[1])
    assert_close(found[0], expected, "kernel", "float64")


def test_inference_takes_the_expectation(in_numpy: None) -> None:
    """Of one step from a state h and c are linear in zoneout's masks, c in those of Semeniuta's: so is their mean."""
    x, state = np.repeat(numbers(1, 1, 3), 500, 1), tuple(np.repeat(numbers(1, 1, 4), 500, 1) for _ in "hc")
    for cell, noise in NOISY[:2]:
        net = nn.Recurrent(cell, 3, 4, noise=noise, dtype="float64", seed=0)
        _, (h, c) = net(x, state)
        parts = [net.vjp(x, state, rng=seed)[0][1] for seed in range(20)]
        for k, expected in enumerate((h, c)):
            if (cell, k) == ("recurrent_dropout", 0):
                continue
            values = np.concatenate([part[k] for part in parts], 1)
            error = 5 * values.std(1) / values.shape[1] ** 0.5
            assert (error > 0).all()
            assert (abs(values.mean(1) - expected[:, 0]) < error).all()
    net = nn.Recurrent("variational_dropout", 3, 4, noise={"mask": 0.4}, dtype="float64", seed=0)
    np.testing.assert_array_equal(net(x, state)[0], net(x, state, inputs={"mask": np.ones((1, 500))})[0])


def test_once_a_sequence_is_the_same_at_all_steps(in_numpy: None) -> None:
    """h that is kept for good, and h that is never kept: units of rows, whatever the step."""
    net = nn.Recurrent("zoneout", 3, 40, noise={"keep_c": 0, "keep_h": (0.5, "sequence")}, dtype="float64", seed=0)
    h = numbers(1, 2, 40)
    (y, _), _ = net.vjp(numbers(5, 2, 3), (h, np.zeros_like(h)), rng=0)
    kept = y == h
    assert 10 < kept[0].sum() < 70
    assert (kept == kept[0]).all()


def test_inputs_that_are_given_are_taken(in_numpy: None) -> None:
    net = nn.Recurrent("zoneout", 3, 4, noise={"keep_c": 0.5}, dtype="float64", seed=0)
    plain = nn.Recurrent("zoneout", 3, 4, dtype="float64", seed=0)
    x, keep = numbers(5, 2, 3), np.random.default_rng(1).uniform(size=(5, 2, 4)) < 0.5
    both = {"keep_c": keep, "keep_h": np.full((5, 2), 0.25)}
    expected, _ = plain(x, inputs=both)
    (found, _), _ = net.vjp(x, inputs=both, rng=0)
    np.testing.assert_array_equal(found, expected)
    one = {"keep_h": both["keep_h"]}
    (found, _), _ = net.vjp(x, inputs=one, rng=0)
    assert not np.array_equal(found, expected)
    np.testing.assert_array_equal(net(x, inputs=one)[0], plain(x, inputs=one | {"keep_c": np.full((5, 2), 0.5)})[0])
    with pytest.raises(ValueError, match=r"inputs: expected a dict with keep_c, keep_h.* got none"):
        net(x)


@pytest.mark.parametrize("backend", ["reference", pytest.param("numba_cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cell", "noise"), NOISY)
def test_streams_and_quantized_layers_take_the_expectation(cell: str, noise: Any, backend: str) -> None:
    with gpulstm.use_backend(backend):
        net, x = nn.Recurrent(cell, 3, 8, noise=noise, seed=0), numbers(4, 2, 3).astype("float32")
        y, _ = net(x)
        stream = net.stream(2)
        assert_close(np.stack([stream(step).copy() for step in x]), y, "kernel", "float32")
        if cell != "variational_dropout":
            assert np.abs(gpulstm.quantize(net, "int8")(x)[0] - y).max() < 0.05


def test_a_model_repeats_it_by_its_seed(in_numpy: None) -> None:
    layers = [nn.Recurrent("zoneout", 4, 4, noise=ZONEOUT, dtype="float64", seed=0) for _ in range(2)]
    model = nn.Sequential(
        *layers, nn.Reversed(nn.Recurrent("recurrent_dropout", 4, 4, noise={"mask": 0.5}, dtype="float64"))
    )
    x = numbers(5, 2, 4)
    first, again, other = (model.vjp(x, rng=seed)[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


class Noisy(Task):
    """As the task of other tests of training, of layers that draw noise."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        rng = np.random.default_rng(1)
        self.model = nn.Sequential(
            nn.Embedding(256, 5, seed=rng),
            nn.Recurrent("zoneout", 5, 6, 2, dropout=0.2, noise=ZONEOUT, seed=rng),
            nn.Recurrent("recurrent_dropout", 6, 6, noise={"mask": (0.3, "sequence")}, seed=rng),
            nn.EveryStepHead(6, 256, seed=rng),
        )


@pytest.mark.parametrize("backend", ["reference", pytest.param("numba_cpu", marks=pytest.mark.slow)])
def test_training_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path: Path, backend: str) -> None:
    with gpulstm.use_backend(backend):
        whole = make(tmp_path, Noisy(), save_every=1, keep=100)
        whole.run(steps=8)
        for stop in (1, 5):
            resumed = make(None, Noisy(), save_every=1, keep=100)
            resumed.resume(checkpoint.load(checkpoint.path_of(tmp_path, stop)))
            resumed.run(steps=8)
            assert_same(everything(resumed), everything(whole))


# --- what is said of it


@pytest.mark.parametrize(("cell", "noise"), [*NOISY, ("recurrent_dropout", {"mask": (0.3, "sequence")})])
def test_in_a_file(cell: str, noise: Any, tmp_path: Path) -> None:
    net = nn.Recurrent(cell, 3, 4, noise=noise, seed=0)
    io.save_safetensors(net, tmp_path / "m.safetensors")
    found = io.load_safetensors(tmp_path / "m.safetensors")
    assert found.config == net.config
    for name, value in net.params.items():
        np.testing.assert_array_equal(found.params[name], value)


def test_in_words(in_numpy: None) -> None:
    net = nn.Recurrent("zoneout", 3, 4, noise={"keep_h": 0.1, "keep_c": (0.5, "sequence")}, seed=0)
    assert repr(net) == "Recurrent('zoneout', 3, 4, noise={'keep_c': (0.5, 'sequence'), 'keep_h': 0.1})"
    said = "noise: keep_c bernoulli with p = 0.5 a sequence, keep_h bernoulli with p = 0.1 a step; its expectation in"
    assert said in gpulstm.explain(net, numbers(2, 1, 3).astype("float32"))
    assert "noise" not in gpulstm.explain(gpulstm.LSTM(3, 4), numbers(2, 1, 3).astype("float32"))


@pytest.mark.parametrize(
    ("cell", "noise", "message"),
    [
        ("zoneout", 5, "noise: expected a dict of probabilities, got int"),
        ("zoneout", {1: 0.5}, "noise: expected strings as keys, got 1"),
        (
            "zoneout",
            {"keep": 0.5},
            "noise: expected keep_c, keep_h, which cell 'zoneout' declares as noise, got 'keep'",
        ),
        ("lstm", {"mask": 0.5}, "noise: expected None, since cell 'lstm' declares no noise, got 'mask'"),
        ("time_gap", {"gap": 0.5}, "noise: expected None, since cell 'time_gap' declares no noise, got 'gap'"),
        ("zoneout", {"keep_h": 1.5}, r"noise\['keep_h'\]: expected a number in \[0, 1\], got 1.5"),
        ("zoneout", {"keep_h": "x"}, r"noise\['keep_h'\]: expected a number in \[0, 1\], got 'x'"),
        ("recurrent_dropout", {"mask": 1}, r"noise\['mask'\]: expected a number in \[0, 1\), got 1"),
        ("zoneout", {"keep_h": (0.5, "row")}, r"noise\['keep_h'\]: expected one of step, sequence, got 'row'"),
        ("zoneout", {"keep_h": (0.5,)}, r"noise\['keep_h'\]: expected a probability, or one with 'step' or 'sequence'"),
    ],
)
def test_wrong_settings(cell: str, noise: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        nn.Recurrent(cell, 3, 4, noise=noise)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (5, "noise: expected names with spaces between them, got 5"),
        ("keep", "noise: expected an input with its distribution, as in bernoulli or dropout of mask:dropout.* 'keep'"),
        ("keep:normal", "noise: expected an input with its distribution.* got 'keep:normal'"),
        ("keep:dropout:row", "noise: expected an input with .*step or sequence.* got 'keep:dropout:row'"),
        ("a:dropout", "noise: expected each once, of the inputs keep, gap, .*got 'a:dropout'"),
        ("gap:dropout", "noise: expected each once, .*none that is differentiable, got 'gap:dropout'"),
        ("keep:dropout keep:dropout", "noise: expected each once, .*got 'keep:dropout'"),
    ],
)
def test_wrong_declarations(declared: Any, message: str) -> None:
    with pytest.raises((gpulstm.cells.CellError, TypeError), match=f"^cell 'noisy': {message}"):

        @gpulstm.cell(gates="a", inputs="keep gap", differentiable="gap", noise=declared)
        def noisy(x: Any, s: Any, i: Any) -> Any:
            return i.keep * x.a + i.gap, {}


def test_wrong_noise_of_a_cell_by_hand() -> None:
    def make(*noise: Any) -> Cell:
        return Cell("by_hand", ("a",), (), 0, "no.module", inputs=("keep",), noise=noise)

    with pytest.raises(TypeError, match="cell: 'by_hand': noise: expected a Noise"):
        gpulstm.cells.register(make("keep"))
    with pytest.raises(TypeError, match="cell: 'by_hand': noise: expected a Noise"):
        gpulstm.cells.register(make(Noise("keep", "normal")))
    with pytest.raises(ValueError, match=r"cell: 'by_hand': noise: expected an input that is not diff.*'other'"):
        gpulstm.cells.register(make(Noise("other", "dropout")))


def test_two_cells_that_differ_in_noise_alone_are_two() -> None:
    def noisy(x: Any, s: Any, i: Any) -> Any:
        return i.keep * x.a, {}

    a, b = (
        gpulstm.cells._language.cell(gates="a", inputs="keep", noise=f"keep:{of}")(noisy)
        for of in ("dropout", "bernoulli")
    )
    assert a != b


def test_what_arrays_of_noise_need() -> None:
    """By the library, as layers call it: into one of several inputs, a mask a step and one for all steps."""
    own = library("cpu")
    source = own.counter(3)
    np.testing.assert_array_equal(source.words, random.seed_words(np.random.default_rng(3)))
    together = own.zeros((2, 4, 3, 5), np.float64)
    with gpulstm.use_backend("reference"):
        own.draw_noise(together[1], source, 6, 1 << 23, 1.0, 0.0, True)
    assert (together[0] == 0).all()
    np.testing.assert_array_equal(together[1], np.broadcast_to(drawn((1, 3, 5), 0.5, source.words, 6), (4, 3, 5)))
