"""Every gate, state and h by its name: those of the reference's steps, and the textbook's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import gpulstm
from gpulstm import nn
from gpulstm.cells import named, sigmoid, tanh
from gpulstm_kernels import reference

pytestmark = pytest.mark.usefixtures("in_numpy")
STEPS, BATCH, FEATURES = 6, 4, 3
LENGTHS = np.array([6, 4, 0, 1])


def x_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def resets_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).random(shape) < 0.3


def logistic(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("lstm", {}),
        ("lstm", {"proj_size": 2}),
        ("rnn", {"bias": False}),
        ("gru", {}),
        ("peephole", {}),
        ("indrnn", {}),
        ("slstm", {"heads": 2}),
        ("time_gap", {}),
        ("gru_reset_before", {}),
        ("layer_norm_lstm", {}),
        ("recurrent_dropout", {"noise": {"mask": 0.25}}),
    ],
)
def test_values_are_those_of_the_references_steps(
    cell: str, options: dict[str, Any], ragged: bool, resets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Recurrent(cell, FEATURES, 4, 2, bidirectional=True, **options, seed=0)
    state = [x_of(*shape) for shape in layer.config.state_shapes(BATCH)]
    given = {name: x_of(STEPS, BATCH) for name in layer.config.cell.inputs if "noise" not in options}
    call: dict[str, Any] = {"inputs": given or None, "resets": resets_of(STEPS, BATCH) if resets else None}
    call |= {"state": state, "lengths": LENGTHS if ragged else None}
    x, tapes = x_of(STEPS, BATCH, FEATURES), []
    forward = reference.layer_forward

    def kept(shape: Any, *arguments: Any) -> Any:
        y, final, tape = forward(shape._replace(training=True), *arguments)
        tapes.append(tape)
        return y, final, tape

    with monkeypatch.context() as patch:
        patch.setattr(reference, "layer_forward", kept)
        y, last = layer(x, **call)
    found = gpulstm.watch(layer, x, **call)
    np.testing.assert_array_equal(found.y, y)
    for one, other in zip(*(part if isinstance(part, tuple) else (part,) for part in (found.state, last)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(found) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for watched, steps in zip(found.values(), [steps for tape in tapes for steps in tape.steps], strict=True):
        assert list(watched.preactivations) == list(watched.cell.preactivations)
        for step in steps:
            for name, value in zip(watched.cell.preactivations, _split(step, watched.cell), strict=True):
                _compare(watched.preactivations[name][step.t], value, step.valid, name)
            for name, value in zip(watched.cell.states, step.states, strict=True):
                _compare(watched.state(name)[step.t], value, step.valid, name)
            if not options.get("proj_size"):
                _compare(watched.h[step.t], step.hidden, step.valid, "h")


def _split(step: Any, cell: Any) -> list[np.ndarray]:
    """The reference saves the gates of those two cells that it prints itself."""
    if cell.name == "lstm":
        i, f, g, o = step.saved
        return [np.log(i / (1 - i)), np.log(f / (1 - f)), np.arctanh(g), np.log(o / (1 - o))]
    return [np.arctanh(step.hidden)] if cell.name == "rnn" else list(step.saved)


def _compare(found: np.ndarray, expected: np.ndarray, valid: np.ndarray, name: str) -> None:
    assert np.isnan(found[~valid[:, 0]]).all()
    assert_close(found[valid[:, 0]], expected[valid[:, 0]], "kernel", "float32", name)


def test_gates_of_an_lstm() -> None:
    layer = gpulstm.LSTM(FEATURES, 4, seed=0)
    inside = gpulstm.watch(layer, x_of(STEPS, BATCH, FEATURES))["l0"]
    i, f, g, o = (inside.gate(name) for name in "ifgo")
    for name, gate in (("i", i), ("f", f), ("o", o)):
        np.testing.assert_allclose(gate, logistic(inside.preactivations[name]), rtol=1e-6)
    np.testing.assert_allclose(g, np.tanh(inside.preactivations["g"]), rtol=1e-6)
    c = inside.state("c")
    np.testing.assert_allclose(c[1:], f[1:] * c[:-1] + i[1:] * g[1:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(inside.h, o * np.tanh(c), rtol=1e-5, atol=1e-7)


def test_what_an_author_names() -> None:
    @gpulstm.cell(gates="a b", states="c")
    def with_names(x: Any, s: Any) -> Any:
        keep = named(keep=sigmoid(x.a + s.c))
        c = keep * s.c + (1 - keep) * named(b=2 * tanh(x.b))
        return tanh(c), {"c": c}

    inside = gpulstm.watch(nn.Recurrent(with_names, FEATURES, 4, seed=0), x_of(STEPS, BATCH, FEATURES))["l0"]
    assert list(inside.gates) == ["a", "b", "keep"]
    before = np.concatenate([np.zeros((1, BATCH, 4), np.float32), inside.state("c")[:-1]])
    pre = inside.preactivations
    np.testing.assert_allclose(inside.gate("keep"), logistic(pre["a"] + before), rtol=1e-5)
    np.testing.assert_allclose(inside.gate("b"), 2 * np.tanh(pre["b"]), rtol=1e-5)
    np.testing.assert_array_equal(inside.gate("a"), pre["a"])  # it is used in a sum


def test_layouts() -> None:
    """One sequence, and batches first, as the output."""
    x = x_of(BATCH, STEPS, FEATURES)
    first = gpulstm.LSTM(FEATURES, 4, batch_first=True, seed=0)
    batch = gpulstm.watch(first, x)["l0"]
    assert batch.gate("f").shape == (BATCH, STEPS, 4)
    for b in range(BATCH):
        one = gpulstm.watch(first, x[b])["l0"]
        np.testing.assert_allclose(one.gate("f"), batch.gate("f")[b], rtol=1e-6)
        np.testing.assert_allclose(one.h, batch.h[b], rtol=1e-5, atol=1e-7)


def test_a_model() -> None:
    model = nn.Sequential(
        nn.Embedding(9, FEATURES, seed=0),
        gpulstm.GRU(FEATURES, 4, seed=1),
        nn.Dropout(0.5),
        nn.Reversed(gpulstm.LSTM(4, 5, seed=2)),
        nn.Linear(5, 2, seed=3),
    )
    ids = np.random.default_rng(0).integers(0, 9, (STEPS, BATCH))
    found, (y, state) = gpulstm.watch(model, ids, lengths=LENGTHS), model(ids, lengths=LENGTHS)
    assert list(found) == ["1.l0", "3.l0"]
    np.testing.assert_array_equal(found.y, y)
    np.testing.assert_array_equal(found.state[1][0], state[1][0])
    c = found["3.l0"].state("c")
    np.testing.assert_allclose(c[0, LENGTHS > 0], state[1][1][0, LENGTHS > 0], rtol=1e-5)  # it ends at the first step
    assert (np.isnan(c[..., 0]) == (np.arange(STEPS)[:, None] >= LENGTHS)).all()


def test_pre_activations_from_outside() -> None:
    inner = gpulstm.GRU(FEATURES, 4, bidirectional=True, seed=0)
    outer = nn.Recurrent("gru", None, 4, bidirectional=True, seed=0)
    x = x_of(STEPS, BATCH, FEATURES)
    for name in outer.params:
        outer.params[name] = inner.params[name]
    rows = np.concatenate([x @ inner.params[f"weight_ih_l0{end}"].T for end in ("", "_reverse")], axis=2)
    for one, other in zip(gpulstm.watch(outer, rows).values(), gpulstm.watch(inner, x).values(), strict=True):
        for name, value in one.gates.items():
            np.testing.assert_allclose(value, other.gates[name], rtol=1e-5, atol=1e-6)


def test_a_cell_written_by_hand() -> None:
    coupled = gpulstm.cells.Cell("coupled", gates=("i", "g", "o"), states=("c",), saved=3, maths="coupled_cell")
    layer = nn.Recurrent(gpulstm.cells.register(coupled), FEATURES, 4, seed=0)
    x = x_of(STEPS, BATCH, FEATURES)
    inside = gpulstm.watch(layer, x)["l0"]
    np.testing.assert_allclose(inside.state("c")[-1], layer(x)[1][1][0], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(inside.gate("i"), inside.preactivations["i"])


def test_wrong_names_and_models() -> None:
    layer = gpulstm.LSTM(FEATURES, 4, seed=0)
    found = gpulstm.watch(layer, x_of(STEPS, BATCH, FEATURES))
    with pytest.raises(ValueError, match="name: expected a gate of cell 'lstm', i, f, g, o, got 'r'"):
        found["l0"].gate("r")
    with pytest.raises(ValueError, match="name: expected a state of cell 'lstm', c, got 'h'"):
        found["l0"].state("h")
    with pytest.raises(KeyError, match="expected one of l0, got 'l1'"):
        found["l1"]
    with pytest.raises(TypeError, match=r"model: expected a gpulstm layer such as gpulstm\.LSTM, got dict"):
        gpulstm.watch({}, 1)  # type: ignore[arg-type]
    quantized = gpulstm.quantize(layer, "int8")
    with pytest.raises(TypeError, match=r"model: expected layers that can be looked at, such as gpulstm\.LSTM, got "):
        gpulstm.watch(quantized, x_of(STEPS, BATCH, FEATURES))
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match="resets: expected None, since Sequential takes none, got ndarray"):
        gpulstm.watch(model, x_of(STEPS, BATCH, FEATURES), resets=resets_of(STEPS, BATCH))
    with pytest.raises(ValueError, match="lengths: expected shape"):
        gpulstm.watch(layer, x_of(STEPS, BATCH, FEATURES), lengths=[1])
