"""The cell language on its own: gradients, simplification, what is saved. Nothing is compiled."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import lstm_by_hand
import numpy as np
import pytest
import rnn_by_hand
from tolerances import assert_close
from written_cells import backward, differences, drawn, forward, shown, written

from gpulstm import cells
from gpulstm_kernels.language import derive
from gpulstm_kernels.language.code import FUNCTIONS
from gpulstm_kernels.language.graph import Trace, Value, apply, evaluate, is_number, ordered
from gpulstm_kernels.language.operators import ON_ARRAYS

# --- operators ----------------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Case(NamedTuple):
    """An expression of a and b, its value and its gradients, each by hand."""

    expression: str
    value: Callable[..., Any]
    da: Callable[..., Any]
    db: Callable[..., Any] | None = None
    positive: bool = False  # where it is defined


# Points lie on both sides of each kink, and on it: 0, ±1/2, ±1, ±5/2 (hard_sigmoid of ONNX) and ±3 (of torch), a = b.
CASES = [
    Case("a + b", lambda a, b: a + b, lambda a, b: 1, lambda a, b: 1),
    Case("a + 2.5", lambda a: a + 2.5, lambda a: 1),
    Case("2.5 + a", lambda a: a + 2.5, lambda a: 1),
    Case("a - b", lambda a, b: a - b, lambda a, b: 1, lambda a, b: -1),
    Case("2.5 - a", lambda a: 2.5 - a, lambda a: -1),
    Case("a * b", lambda a, b: a * b, lambda a, b: b, lambda a, b: a),
    Case("a * -2.5", lambda a: -2.5 * a, lambda a: -2.5),
    Case("a / b", lambda a, b: a / b, lambda a, b: 1 / b, lambda a, b: -a / b**2, positive=True),
    Case("2.5 / a", lambda a: 2.5 / a, lambda a: -2.5 / a**2, positive=True),
    Case("a / 4", lambda a: a / 4, lambda a: 0.25),
    Case("-a", lambda a: -a, lambda a: -1),
    Case("-(a * b)", lambda a, b: -a * b, lambda a, b: -b, lambda a, b: -a),
    Case("-tanh(a)", lambda a: -np.tanh(a), lambda a: -1 / np.cosh(a) ** 2),
    Case("+a * 3", lambda a: 3 * a, lambda a: 3),
    Case("a ** 2", lambda a: a * a, lambda a: 2 * a),
    Case("tanh(a)", np.tanh, lambda a: 1 / np.cosh(a) ** 2),
    Case("sigmoid(a)", sigmoid, lambda a: sigmoid(a) * sigmoid(-a)),
    Case("exp(a)", np.exp, np.exp),
    Case("log(a)", np.log, lambda a: 1 / a, positive=True),
    Case("sqrt(a)", lambda a: a**0.5, lambda a: 0.5 * a**-0.5, positive=True),
    Case("softplus(a)", lambda a: np.log(1 + np.exp(a)), sigmoid),
    Case("abs(a)", np.abs, np.sign),
    Case("maximum(a, b)", np.maximum, lambda a, b: a > b, lambda a, b: a <= b),
    Case("maximum(a, 0.5)", lambda a: np.maximum(a, 0.5), lambda a: a > 0.5),
    Case("maximum(0.5, a)", lambda a: np.maximum(a, 0.5), lambda a: a > 0.5),
    Case("minimum(a, b)", np.minimum, lambda a, b: a < b, lambda a, b: a >= b),
    Case("minimum(a, 0.5)", lambda a: np.minimum(a, 0.5), lambda a: a < 0.5),
    Case("minimum(0.5, a)", lambda a: np.minimum(a, 0.5), lambda a: a < 0.5),
    Case("relu(a)", lambda a: a * (a > 0), lambda a: a > 0),
    Case("where(a, 3 * b, b)", lambda a, b: b * np.where(a > 0, 3, 1), lambda a, b: 0, lambda a, b: 1 + 2 * (a > 0)),
    Case("where(a, a * a, -a)", lambda a: np.where(a > 0, a * a, -a), lambda a: np.where(a > 0, 2 * a, -1)),
    Case(
        "where(a, 1.5, 2.5) * b", lambda a, b: b * np.where(a > 0, 1.5, 2.5), lambda a, b: 0, lambda a, b: 2.5 - (a > 0)
    ),
    Case("where(a - 0.5, 2, a)", lambda a: np.where(a > 0.5, 2, a), lambda a: a <= 0.5),
    Case("where(1.0, a, b) + where(-1, a, 2 * b)", lambda a, b: a + 2 * b, lambda a, b: 1, lambda a, b: 2),
    Case("hard_sigmoid(a)", lambda a: np.clip(a / 6 + 0.5, 0, 1), lambda a: (np.abs(a) < 3) / 6),
    Case("hard_sigmoid(a, 0.2, 0.5)", lambda a: np.clip(0.2 * a + 0.5, 0, 1), lambda a: 0.2 * (np.abs(a) < 2.5)),
    Case("named(it=a * b)", lambda a, b: a * b, lambda a, b: b, lambda a, b: a),
]


POINTS = np.array([-40, -5, -3, -2.5, -1.5, -1, -0.7, -0.5, -0.1, 0, 0.1, 0.5, 0.7, 1, 1.5, 2.5, 3, 5, 40])


KINKS = (0, 0.5, 1, 2.5, 3)


def of_case(case: Case, given: str = "{}") -> tuple[Any, int]:
    """A cell of it and its count of gates, each put through ``given`` first."""
    gates = "a" if case.db is None else "a b"
    lines = [f"{gate} = {given.format(f'x.{gate}')}" for gate in gates.split()]
    return written("\n".join([*lines, f"return {case.expression}, {{}}"]), gates), len(gates.split())


def points(case: Case, count: int) -> list[np.ndarray]:
    grid = np.array(list(itertools.product(POINTS[POINTS > 0] if case.positive else POINTS, repeat=count)))
    return list(grid.T)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.expression)
def test_value_and_gradient_of_every_operator(case: Case) -> None:
    cell, count = of_case(case)
    given = points(case, count)
    dh = 0.5 + np.arange(given[0].size) % 7
    expected = [dh * derivative(*given) for derivative in (case.da, case.db)[:count] if derivative is not None]
    (h,) = forward(cell, given, ())
    np.testing.assert_allclose(h, case.value(*given), rtol=4e-15, atol=2e-16)
    for found, right in zip(backward(cell, given, (), [dh]), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.expression)
def test_every_operator_against_finite_differences(case: Case) -> None:
    given = "softplus({}) + 0.1" if case.positive else "{}"
    cell, count = of_case(case, given)
    assert "are within" in cells.check(cell)
    cell, count = of_case(case)
    grid = points(case, count)
    smooth = np.all([np.abs(np.abs(value) - kink) > 1e-3 for value in grid for kink in KINKS], axis=0)
    smooth &= np.all([np.abs(value) < 6 for value in grid], axis=0)  # differences lose places beside large values
    if count == 2:
        smooth &= grid[0] != grid[1]
    grid = [value[smooth] for value in grid]
    dh = 0.5 + np.arange(smooth.sum()) % 7
    for found, right in zip(backward(cell, grid, (), [dh]), differences(cell, grid, (), [dh]), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("operator", derive.COSTS)  # of those that couple units: test_shipped_cells.py
def test_every_rule_by_itself(operator: str) -> None:
    trace = Trace("rule")
    count = {"select": 4, **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), 2)}.get(operator, 1)
    leaves = tuple(trace.leaf(name) for name in "abxy"[:count])
    d, y = trace.leaf("d"), apply(operator, *leaves)
    parts = derive.RULES[operator](d, y, *leaves)
    rng = np.random.default_rng(1)
    given = [np.abs(value) + 0.2 if operator in ("log", "sqrt", "div") else value for value in drawn(rng, count)]
    upstream = drawn(rng, 1)[0]
    found = evaluate(parts, dict(zip((*leaves, d), (*given, upstream), strict=True)), ON_ARRAYS)
    for k, part in enumerate(found):
        up, down = (ON_ARRAYS[operator](*(v + e * (j == k) for j, v in enumerate(given))) for e in (1e-6, -1e-6))
        np.testing.assert_allclose(part, upstream * (up - down) / 2e-6, rtol=1e-7, atol=1e-8, err_msg=f"argument {k}")


def test_every_operator_has_all_that_it_needs() -> None:
    """A rule, a cost, a function of arrays, and a case above."""
    assert derive.RULES.keys() == derive.COSTS.keys() | {"product", "row_mean"}
    assert derive.COSTS.keys() == ON_ARRAYS.keys()
    assert set(FUNCTIONS) <= ON_ARRAYS.keys()
    tried = {value.operator for case in CASES for value in ordered([of_case(case)[0].derivation.h])}
    assert tried - {"leaf", "number"} == derive.COSTS.keys()


def test_functions_of_numbers_are_numbers() -> None:
    for name, of_arrays in (("tanh", np.tanh), ("exp", np.exp), ("abs", np.abs), ("sigmoid", sigmoid)):
        found = getattr(cells, name)(-0.75)
        assert isinstance(found, float)
        assert found == pytest.approx(float(of_arrays(-0.75)), rel=1e-15)
    assert cells.log(2) == pytest.approx(np.log(2))
    assert cells.sqrt(2) == pytest.approx(2**0.5)
    assert [cells.softplus(x) for x in (-800, 800)] == [0, 800]
    assert (cells.maximum(1, 2), cells.minimum(1, 2), cells.relu(-1), cells.where(0, 3, 4)) == (2, 1, 0, 4)
    assert [cells.hard_sigmoid(x) for x in (-4, 0, 4)] == [0, 0.5, 1]
    assert cells.named(three=3) == 3


def test_a_value_is_given_a_name() -> None:
    cell = written("f = named(f=sigmoid(x.b))\nreturn named(h=f * x.a), {}")
    assert cell.names == {"f": cell.derivation.h.arguments[1], "h": cell.derivation.h}


# --- derived and written by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "by_hand"), [(cells.lstm, lstm_by_hand), (cells.rnn, rnn_by_hand)])
def test_derived_is_what_is_written_by_hand(cell: cells.TracedCell, by_hand: ModuleType) -> None:
    rng = np.random.default_rng(2)
    gates, states = drawn(rng, len(cell.gates)), drawn(rng, len(cell.states))
    dh, dstates = drawn(rng, 1)[0], drawn(rng, len(cell.states))
    results = []
    for module in (cell.module, by_hand):
        h, new, saved = module.forward(gates, states)
        dgates, dprevious = module.backward(dh, dstates, h, saved, new, states)
        results.append((h, *new, *sorted(saved, key=lambda value: value[0]), *dgates, *dprevious))
    assert len(results[0]) == len(results[1])  # as many values are saved: the same ones, in some order
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, "cell", "float64", cell.name)


def test_the_lstm_computes_each_activation_once() -> None:
    """Backward computes tanh(c) again, and nothing else of what costs much."""
    before, _, after = cells.lstm.source.partition("def backward")
    assert (before.count("sigmoid("), before.count("tanh(")) == (3, 2)
    assert (after.count("sigmoid("), after.count("tanh(")) == (0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_keep_their_type(dtype: str) -> None:
    for cell in (cells.lstm, cells.rnn, cells.cifg, cells.rnn_relu):
        gates = tuple(np.full(5, 0.3, dtype) for _ in cell.gates)
        states = tuple(np.full(5, 0.3, dtype) for _ in cell.states)
        h, new, saved = cell.module.forward(gates, states)
        assert {value.dtype for value in (h, *new, *saved)} == {np.dtype(dtype)}
        dgates, dstates = cell.module.backward(h, new, h, saved, new, states)
        assert {value.dtype for value in (*dgates, *dstates)} == {np.dtype(dtype)}


def test_the_trace_is_evaluated_without_code() -> None:
    rng = np.random.default_rng(3)
    for cell in (cells.lstm, cells.rnn, cells.cifg, cells.rnn_relu):
        gates, states = drawn(rng, len(cell.gates)), drawn(rng, len(cell.states))
        upstream = drawn(rng, 1 + len(cell.states))
        found = cell.evaluate(ON_ARRAYS, gates, states)
        for one, two in zip(found, forward(cell, gates, states), strict=True):
            np.testing.assert_array_equal(one, two)
        found = cell.gradient(ON_ARRAYS, gates, states, upstream[0], upstream[1:])
        for one, two in zip(found, backward(cell, gates, states, upstream), strict=True):
            assert_close(one, two, "cell", "float64", cell.name)


@pytest.mark.parametrize(
    ("body", "states"),
    [
        ("return x.a, {'c': x.b}", "c"),  # h is a gate
        ("return s.c, {'c': tanh(x.a * x.b)}", "c"),  # h is a state
        ("v = x.a * x.b + s.c\nreturn v, {'c': v}", "c"),  # h is the new state
        ("v = x.a * x.b + s.c\nreturn tanh(v), {'c': v, 'd': v}", "c d"),  # two states in one
        ("return x.a * x.b, {'c': s.d, 'd': s.c + x.a}", "c d"),  # states change places
        ("return x.a * x.b, {'c': s.c, 'd': s.c}", "c d"),  # a state is copied, and one is not read
        ("return tanh(x.a) * x.b, {'c': s.c, 'd': x.a}", "c d"),  # saved as a state
    ],
)
def test_values_that_stand_in_several_places(body: str, states: str) -> None:
    cell = written(body, states=states)
    rng = np.random.default_rng(4)
    gates, old = drawn(rng, 2), drawn(rng, len(cell.states))
    upstream = drawn(rng, 1 + len(cell.states))
    for one, two in zip(backward(cell, gates, old, upstream), differences(cell, gates, old, upstream), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("gates", "states"),
    [
        ("tanh dh saved_0 v0 gates", ""),
        ("i f", "v0 previous dh tanh"),
        ("old_c new_c", "c old new dnew"),
        ("i f", "old_a new_a"),
    ],
)
def test_names_never_clash_with_those_of_the_code(gates: str, states: str) -> None:
    first = gates.split()[0]
    values = " * ".join([*(f"sigmoid(x.{name})" for name in gates.split()), *(f"(s.{n} + 2)" for n in states.split())])
    new = ", ".join(f"{n!r}: tanh(s.{n} * {k + 1} + x.{first})" for k, n in enumerate(states.split()))
    cell = written(f"return {values}, {{{new}}}", gates, states)
    rng = np.random.default_rng(5)
    x, old = drawn(rng, len(cell.gates)), drawn(rng, len(cell.states))
    upstream = drawn(rng, 1 + len(cell.states))
    for one, two in zip(backward(cell, x, old, upstream), differences(cell, x, old, upstream), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-8)


# --- simplification and sharing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("a + 0", "a"),
        ("0.0 + a", "a"),
        ("a - 0", "a"),
        ("0 - a", "-a"),
        ("a * 1", "a"),
        ("1.0 * a", "a"),
        ("a / 1", "a"),
        ("a * -1", "-a"),
        ("-(-a)", "a"),
        ("-(a - b)", "b - a"),
        ("a + -b", "a - b"),
        ("-a + b", "b - a"),
        ("a - -b", "a + b"),
        ("-a * b", "-(a * b)"),
        ("a * -b", "-(a * b)"),
        ("-a * -b", "a * b"),
        ("-a / b", "-(a / b)"),
        ("a + b", "b + a"),
        ("a * b", "b * a"),
        ("a * 2", "2 * a"),
        ("a + 2", "2 + a"),
        ("maximum(1, a)", "maximum(a, 1)"),
        ("minimum(1, a)", "minimum(a, 1)"),
        ("maximum(a, a)", "a"),
        ("minimum(b, b)", "b"),
        ("where(a, b, b)", "b"),
        ("where(2, a, b)", "a"),
        ("where(0, a, b)", "b"),
        ("a ** 2", "a * a"),
        ("abs(a)", "cells.abs(a)"),
        ("tanh(a + b)", "tanh(b + a)"),
        ("relu(a)", "maximum(0, a)"),
        ("sum([a, b])", "a + b"),
    ],
)
def test_what_is_the_same_value(expression: str, same: str) -> None:
    trace = Trace("same")
    names = {name: getattr(cells, name) for name in cells.__all__} | {"cells": cells}
    names |= {name: trace.leaf(name) for name in "ab"}
    assert eval(expression, names) is eval(same, names)


@pytest.mark.parametrize(
    ("expression", "other"), [("a - b", "b - a"), ("a / b", "b / a"), ("maximum(a, b)", "maximum(b, a)")]
)
def test_what_is_another_value(expression: str, other: str) -> None:
    """The order of maximum says whose gradient a tie is."""
    trace = Trace("other")
    names = {"a": trace.leaf("a"), "b": trace.leaf("b"), "maximum": cells.maximum}
    assert eval(expression, names) is not eval(other, names)


@pytest.mark.parametrize(
    ("expression", "number"),
    [
        ("a * 0", 0),
        ("0 * a + 3", 3),
        ("0 / a", 0),
        ("(0 * a + 3) * (0 * b + 2) - 1", 5),
        ("(0 * a + 3) / 2", 1.5),
        ("-(0 * a + 3)", -3),
        ("where(0 * a + 1, 4 + 0 * b, 5)", 4),
        ("tanh(0 * a)", 0),
        ("maximum(0 * a + 1, 3)", 3),
    ],
)
def test_what_is_a_number(expression: str, number: float) -> None:
    trace = Trace("number")
    names = {name: getattr(cells, name) for name in cells.__all__} | {name: trace.leaf(name) for name in "ab"}
    assert is_number(eval(expression, names), number)


def test_what_is_written_twice_is_computed_once() -> None:
    cell = written("return tanh(x.a + x.b) * x.a + tanh(x.b + x.a), {}")
    assert cell.source.partition("def backward")[0].count("tanh(") == 1
    helper = written(
        "half = lambda v: 0.5 * v\nh = x.a\nfor _ in range(3): h = tanh(half(h) + half(x.b))\nreturn h, {}"
    )
    once = written("h = x.a\n" + 3 * "h = tanh(0.5 * h + 0.5 * x.b)\n" + "return h, {}")
    assert helper == once
    assert hash(helper) == hash(once)
    assert helper.source == once.source


def test_numbers_of_numpy_are_numbers() -> None:
    cell = written("return x.a * np.float32(0.5) + np.float64(3) * x.b - np.int64(2) / (x.a ** 2 + np.float64(1)), {}")
    assert cell == written("return x.a * 0.5 + 3 * x.b - 2 / (x.a ** 2 + 1), {}")
    assert all(type(value.detail) is float for value in ordered([cell.derivation.h]) if is_number(value))
    assert "are within" in cells.check(cell)


@pytest.mark.parametrize("count", [90, 2000])
def test_long_sums(count: int) -> None:
    """A Python loop is no loop of the cell: its body is there as often as it ran."""
    cell = written(f"v = x.a\nfor k in range({count}): v = v + x.b * k\nreturn v, {{}}")
    (h,) = forward(cell, [np.array([2.0]), np.array([3.0])], ())
    assert h == [2 + 3 * count * (count - 1) / 2]


# --- what is saved ------------------------------------------------------------------------------------------------

SMALL = {
    "lstm": cells.lstm,
    "rnn": cells.rnn,
    "cifg": cells.cifg,
    "rnn_relu": cells.rnn_relu,
    "product": written("return x.a * x.b, {}"),
    "cheap sums": written("return (x.a + x.b) * (x.a - x.b), {}"),
    "dear": written("return softplus(x.a) * softplus(x.b), {}"),
    "chain": written("return tanh(sigmoid(tanh(x.a * 2))) * x.b, {}"),
    "one for two": written("v = x.a + x.b\nreturn tanh(v) * sigmoid(v), {}"),
    "sum of gates": written("v = x.a + x.b\nreturn v * v * tanh(v * 0.5), {}"),
    "states known": written("c = x.a * s.c\nreturn tanh(c) * sigmoid(c) * x.b, {'c': c}", states="c"),
    "root": written("v = sqrt(x.a ** 2 + 1)\nreturn x.b / v, {}"),
    "kinks": written("return maximum(x.a, x.b) * abs(x.b), {}"),
    "several uses": written("u = exp(-x.a ** 2)\nv = u * x.b\nreturn log(1 + u) + v * tanh(v), {}"),
    "nothing": written("return 2 * x.a + x.b, {}"),
}


def cost(saved: Iterable[Value], forward: set[int], backward: Sequence[Value], known: set[int], save: int) -> float:
    """Of saving ``saved``, and of computing again what of ``forward`` is needed beside it."""
    saved = list(saved)
    total, seen, walk = float(save * len(saved)), {value.index for value in saved} | known, list(backward)
    while walk:
        value = walk.pop()
        if value.index in seen or is_number(value):
            continue
        seen.add(value.index)
        if value.index in forward:
            if not value.arguments:
                return float("inf")  # a gate cannot be computed
            total += derive.COSTS[value.operator]
        walk += value.arguments
    return total


@pytest.mark.parametrize("save", [derive.SAVE, 2, 200])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_saved_costs_least(name: str, save: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum cut against every subset of the forward's values."""
    monkeypatch.setattr(derive, "SAVE", save)
    d = SMALL[name].derivation
    results, gradients = [d.h, *d.new], [*d.dgates, *d.dold]
    known = {value.index for value in (*results, *d.old)}
    candidates = [v for v in ordered(results) if v.index not in known and not is_number(v)]
    of_forward = {value.index for value in ordered(results)}
    leaves = {value.index for value in (d.dh, *d.dnew)}
    subsets = itertools.chain.from_iterable(itertools.combinations(candidates, n) for n in range(len(candidates) + 1))
    least = min(cost(subset, of_forward, gradients, known | leaves, save) for subset in subsets)
    chosen = derive.choose_saved(results, gradients, [*results, *d.old])
    assert cost(chosen, of_forward, gradients, known | leaves, save) == least < float("inf")
    if save == derive.SAVE == 30:
        assert d.saved == chosen


def test_what_known_cells_save() -> None:
    def saved(cell: cells.TracedCell) -> set[str]:
        return set(re.findall(r"saved_\d+ = (.*)", shown(cell)))

    assert saved(cells.lstm) == {"sigmoid(x.i)", "sigmoid(x.f)", "tanh(x.g)", "sigmoid(x.o)"}
    assert saved(cells.cifg) == {"sigmoid(x.i)", "tanh(x.g)", "sigmoid(x.o)"}
    assert saved(cells.rnn) == set()
    assert saved(SMALL["nothing"]) == set()
    assert saved(SMALL["cheap sums"]) == {"x.a + x.b", "x.a - x.b"}
    assert saved(SMALL["one for two"]) == {"tanh(v0)", "sigmoid(v0)"}  # of v0 = x.a + x.b
    assert saved(SMALL["sum of gates"]) == {"x.a + x.b"}
