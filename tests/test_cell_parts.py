"""What a cell may have beside gates of both products, on the CPU: gates of one of them, or of the input alone, h before
the step, parameters and inputs; and sequences that begin within a call.

Buffers are poisoned, so that an element which a kernel forgot to write is NaN and fails.
"""

from __future__ import annotations

from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
from problems import Arrays, Problem
from tape_checks import check_tape
from tolerances import assert_close

from gpulstm import arrays, cells
from gpulstm_kernels import bfloat16, reference
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cpu import layer, tuning
from gpulstm_kernels.cpu.crew.thread_pool import crew

# One of each kind: gates of either product alone and h; parameters and an input with a gradient; no product of h.
CELLS = [cells.gru, cells.time_gap, cells.mingru]
OTHERS = [cells.peephole, cells.indrnn, cells.minlstm, cells.slstm, cells.zoneout, cells.recurrent_dropout, cells.lstm]
SPLITS = [(1, "batch"), (3, "batch"), (2, "units")]
SIZES: dict[str, dict[str, Any]] = {
    "one of each": {"steps": 1, "batch": 1, "inputs": 1, "hidden": 1},
    "one sequence": {"steps": 9, "batch": 1, "inputs": 5, "hidden": 70, "bias": False},
    "ragged": {"steps": 5, "batch": 7, "inputs": 3, "hidden": 33, "ragged": True, "directions": 2},
    "wide": {"steps": 4, "batch": 19, "inputs": 6, "hidden": 201, "directions": 2},
}


def compiled(cell_list: list[Cell] = CELLS) -> Any:
    """A parameter ``cell, dtype``: each of these in float32, the other cells, and one in float64, in the slow lane."""
    quick = [pytest.param(cell, "float32", id=f"{cell.name}-float32") for cell in cell_list]
    rest = [(cells.time_gap, "float64"), *((cell, "float32") for cell in OTHERS)]
    slow = [pytest.param(cell, dtype, id=f"{cell.name}-{dtype}", marks=pytest.mark.slow) for cell, dtype in rest]
    return pytest.mark.parametrize(("cell", "dtype"), [*quick, *slow])


def empty_ones(p: Problem) -> Problem:
    """The problem with a sequence of no step where it is ragged."""
    if p.lengths is None:
        return p
    lengths = np.where(np.arange(len(p.lengths)) == 2, 0, p.lengths)
    resets = None if p.resets is None else p.resets & (np.arange(len(p.x))[:, None] < lengths)
    return p._replace(lengths=lengths, resets=resets)


def check(p: Problem, label: str) -> None:
    """Within tolerance of the reference, the same bits on any number of threads, in either split, tape or none."""
    expected, first = layer_checks.solved(p), {}
    for count, split in SPLITS:
        with arrays.poison(), problems.threads(count, split):
            found = layer_checks.check(layer, p, "kernel", f"{label}, {count} threads, {split}", expected)
        first = first or found
        for name, value in found.items():
            np.testing.assert_array_equal(value, first[name], f"{label}, {count} threads, {split}: {name}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@compiled()
def test_equals_the_reference(cell: Cell, dtype: str, resets: bool, size: str) -> None:
    for scalar in (False, True)[: 1 + bool(cell.inputs)]:
        p = problems.layer_problem(cell, dtype, resets=resets, scalar_inputs=scalar, **SIZES[size])
        check(empty_ones(p), f"{size}, {'one value a row' if scalar else 'values of each unit'}")


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cells.lstm, cells.rnn], ids=lambda cell: cell.name)
def test_resets_of_a_projected_layer(cell: Cell) -> None:
    sizes: dict[str, Any] = {"steps": 5, "batch": 7, "hidden": 33, "directions": 2, "ragged": True}
    check(empty_ones(problems.layer_problem(cell, "float32", projection=9, resets=True, **sizes)), "projected")


@pytest.mark.parametrize("tuned", [{"fused_from": 1}, {"fused_from": 1 << 62, "chunk_rows": 14}, {"backward_rows": 20}])
@compiled([cells.gru, cells.mingru])
def test_inputs_and_gradients_in_chunks(cell: Cell, dtype: str, tuned: dict[str, int]) -> None:
    """Of one step, or of several with a rest."""
    with tuning.replaced(**tuned):
        check(problems.layer_problem(cell, dtype, steps=7, batch=7, hidden=40, directions=2, resets=True), str(tuned))


@pytest.mark.parametrize("cell", [cells.gru, pytest.param(cells.slstm, marks=pytest.mark.slow)], ids=lambda c: c.name)
def test_sequences_that_begin_are_calls_of_their_own(cell: Cell) -> None:
    """The same outputs and gradients, whatever is left of the sequence before: even what is not a number."""
    p = problems.layer_problem(cell, "float32", steps=9, batch=1, hidden=21, directions=2)
    resets = np.zeros((9, 1), bool)
    borders = [3, 4, 8]
    resets[borders] = True
    p = p._replace(resets=resets)
    with arrays.poison():
        found = layer_checks.computed(layer, p)
    zero = tuple(np.zeros_like(part) for part in p.state)
    total: Arrays = {}
    for first, end in zip([0, *borders], [*borders, 9], strict=True):
        own = p._replace(x=p.x[first:end], dy=p.dy[first:end], resets=None, dstate=zero, state=zero)
        # Forward the initial state is the first piece's, and the final one's gradient the last's; back, the reverse.
        ends = [(0, p.state if first == 0 else zero), (1, p.state if end == len(p.x) else zero)]
        starts = [(0, p.dstate if end == len(p.x) else zero), (1, p.dstate if first == 0 else zero)]
        own = own._replace(
            state=tuple(np.stack([part[k][d] for d, part in ends]) for k in range(len(zero))),
            dstate=tuple(np.stack([part[k][d] for d, part in starts]) for k in range(len(zero))),
        )
        for name, value in layer_checks.computed(layer, own).items():
            if name in ("y", "dx"):
                assert_close(found[name][first:end], value, "kernel", "float32", name)
            elif name.startswith(("dweight", "dbias")):
                total[name] = total.get(name, 0) + value
    for name, value in total.items():
        assert_close(found[name], value, "kernel", "float32", name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("cell", [cells.gru, cells.mingru, cells.time_gap], ids=lambda c: c.name)
def test_what_is_not_finite_ends_with_its_sequence(cell: Cell, bad: float) -> None:
    """Outputs and gradients after a sequence begins are those of any other state before it."""
    p = problems.layer_problem(cell, "float32", steps=6, batch=5, hidden=21)
    resets = np.zeros((6, 5), bool)
    resets[0], resets[3, 2] = True, True
    p = p._replace(resets=resets)
    expected = layer_checks.computed(layer, p)
    spoilt = p._replace(state=tuple(np.full_like(part, bad) for part in p.state))
    for name, value in layer_checks.computed(layer, spoilt).items():
        np.testing.assert_array_equal(value, expected[name], name)
    x = p.x.copy()
    x[1, 2] = np.nan
    y, _, _ = layer.layer_forward(p.shape(), x, *p.arguments[1:])
    assert np.isnan(y[1:3, 2]).all()
    np.testing.assert_array_equal(np.delete(y, 2, axis=1), np.delete(expected["y"], 2, axis=1))
    np.testing.assert_array_equal(y[3:, 2], expected["y"][3:, 2])


@pytest.mark.parametrize("name", ["gru", "time_gap", "mingru"])
def test_a_tape_travels_as_arrays(name: str) -> None:
    check_tape(layer, problems.layer_problem(name, "float32", hidden=21, directions=2, ragged=True, resets=True))


def narrow(p: Problem, kind: str) -> tuple[Problem, Problem]:
    """The problem with weights of this kind, and the same in float32."""
    rng, small, wide = np.random.default_rng(0), [], []
    for weights in p.weights:
        own, same = dict(weights), dict(weights)
        for of in ("ih", "hh"):
            if (w := weights.get(f"weight_{of}")) is None:
                continue
            if kind == "bf16":
                own[f"weight_{of}"] = (w.view(np.uint32) >> 16).astype(np.uint16)
                same[f"weight_{of}"] = bfloat16.widened(own[f"weight_{of}"])
            else:
                scale = rng.uniform(1e-3, 2e-3, len(w)).astype("f4")
                own[f"weight_{of}"], own[f"scale_{of}"] = rng.integers(-127, 128, w.shape).astype(np.int8), scale
                same[f"weight_{of}"] = own[f"weight_{of}"] * scale[:, None]
        small.append(own)
        wide.append(same)
    return p._replace(weights=small), p._replace(weights=wide)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (cells.gru, "int8"),
        pytest.param(cells.gru, "bf16", marks=pytest.mark.slow),
        *(pytest.param(cell, kind, marks=pytest.mark.slow) for cell in CELLS[1:] for kind in ("bf16", "int8")),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_narrow_weights(cell: Cell, kind: str) -> None:
    """A step is near the reference's with the widened weights; a walk with resets is its steps, bit for bit."""
    for batch in (1, 3, 19):
        p = problems.layer_problem(cell, "float32", steps=4, batch=batch, inputs=21, hidden=33, resets=True)
        x = (p.x.view(np.uint32) & 0xFFFF0000).view(np.float32)
        state = tuple((part.view(np.uint32) & 0xFFFF0000).view(np.float32) for part in p.state)
        small, wide = narrow(p._replace(x=x, state=state), kind)
        assert layer.why_not(small.shape()) is None
        h, carried, slack = small.state[0], small.state[1:], 0.0
        if kind == "int8":  # x and h are rounded to 1/65534 of a row's largest
            for w in wide.weights[0].values():
                slack += 3 * np.abs(w).sum(axis=-1).max() * max(np.abs(x).max(), 1) / 65534
        expected = np.empty_like(layer.layer_forward(small.shape(), *small.arguments)[0])
        for t in range(4):
            begins = small.resets[t][None, :, None]
            h, *carried = (np.where(begins, np.float32(0), part) for part in (h, *carried))
            now = slice(t, t + 1)
            given = None if small.inputs is None else small.inputs[:, now].copy()
            one = small._replace(x=x[now], state=(h, *carried), inputs=given, resets=None)
            if t == 0:
                right = reference.layer_forward(
                    one._replace(weights=wide.weights).shape(), one.x, one.state, wide.weights, None, given
                )[0]
            (expected[now], (h, *carried), _) = layer.layer_forward(one.shape(), *one.arguments)
            if t == 0:
                off = np.maximum(np.abs(expected[:1] - right) - slack, 0)
                assert_close(right + off, right, "kernel", "float32", cell.name)
        for count, split in SPLITS:
            with arrays.poison(), problems.threads(count, split):
                np.testing.assert_array_equal(layer.layer_forward(small.shape(), *small.arguments)[0], expected)


def test_threads_wait_for_each_other_only_for_a_product_of_h(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cores are oversubscribed, calls whose threads do take one of them."""
    monkeypatch.setattr(type(crew), "oversubscribed", property(lambda self: True))
    with problems.threads(2, "units"):
        told = {name: layer.describe(problems.layer_shape(name, hidden=128)) for name in ("mingru", "gru")}
    assert "2 threads over the units" in told["mingru"]
    assert "one thread (the cores are oversubscribed)" in told["gru"]
