"""Random cells: what is derived of them against finite differences, and kernels against the reference.

A cell is drawn as the text of its function, so that a failure shows a cell that can be pasted. The same text runs on
NumPy arrays without any trace, which is what the forward is compared with, bit for bit: what the trace simplifies
changes no rounding.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import layer_checks
import numpy as np
import problems
import pytest
from hypothesis import Phase, assume, event, given, settings
from hypothesis import strategies as st
from properties import REPEATABLE
from written_cells import backward, differences, drawn, forward, function, written

from gpulstm import arrays
from gpulstm_kernels.cells import activations
from gpulstm_kernels.cpu import layer
from gpulstm_kernels.language import derive
from gpulstm_kernels.language.cell import TracedCell, cell
from gpulstm_kernels.language.graph import CellError, Value, ordered
from gpulstm_kernels.language.operators import ON_ARRAYS

# Domains are kept: what a root or a logarithm is taken of, and divisors, are at least 0.1.
ONE = (
    "tanh({})",
    "sigmoid({})",
    "softplus({})",
    "abs({})",
    "relu({})",
    "hard_sigmoid({})",
    "hard_sigmoid({}, 0.2, 0.5)",
    "(-{})",
    "({} ** 2)",
    "exp(tanh({}))",
    "exp(-softplus({}))",
    "log(softplus({}) + 0.1)",
    "log({} ** 2 + 0.5)",
    "sqrt({} ** 2 + 0.5)",
    "sqrt(softplus({}) + 0.1)",
    "(1.5 * {})",
    "({} * -1)",
    "({} + 0.25)",
    "({} - 0)",
    "(1 - {})",
    "({} / 4)",
    "(2 / (1.5 + tanh({})))",
    "maximum({}, 0.3)",
    "minimum(0.4, {})",
    "where({}, 1.5, -0.5)",
    "named(**{{'value': {}}})",
)
TWO = (
    "({} + {})",
    "({} - {})",
    "({} * {})",
    "({} / ({} ** 2 + 0.5))",
    "({} / (softplus({}) + 0.1))",
    "maximum({}, {})",
    "minimum({}, {})",
    "where({}, {}, 0.5)",
)
THREE = ("where({}, {}, {})", "({} * {} + {})", "((1 - {0}) * {1} + {0} * {2})")
DEPTH = 3  # of one line; lines build on each other
BOUNDED = ("tanh({})", "hard_sigmoid({})", "sigmoid({})")


class Written(NamedTuple):
    """What a random cell is written as."""

    body: str
    gates: str
    states: str
    more: tuple[tuple[str, str], ...] = ()  # further parts and their names

    @property
    def arguments(self) -> str:
        parts = dict(self.more)
        return "x, s" + ", p" * ("params" in parts) + ", i" * ("inputs" in parts)

    def cell(self) -> TracedCell:
        parts = {"gates": self.gates, "states": self.states, **dict(self.more)}
        parts["differentiable"] = parts.get("inputs", "")
        return cell(**parts)(function(self.body, self.arguments))

    def on_arrays(self, cell: TracedCell, gates: Any, states: Any, given: Any) -> tuple[np.ndarray, ...]:
        """h and the new states, of the function as it stands, called with arrays."""
        names = {name: getattr(activations, name) for name in ("tanh", "sigmoid", "softplus", "exp", "log", "sqrt")}
        names |= {"abs": np.abs, "where": lambda x, a, b: np.where(x > 0, a, b), "named": lambda value: value}
        names |= {"maximum": np.maximum, "minimum": np.minimum, "relu": lambda x: np.maximum(x, 0.0)}
        names["hard_sigmoid"] = lambda x, alpha=1 / 6, beta=1 / 2: np.clip(alpha * x + beta, 0.0, 1.0)
        q = function(self.body, self.arguments)
        q.__globals__.update(names)
        values = {"h": np.zeros_like(gates[0])}  # of lines that nothing uses
        values |= dict(zip((*cell.preactivations, *cell.states, *cell.given), (*gates, *states, *given), strict=True))
        h, new = q(*[SimpleNamespace(**values)] * len(self.arguments.split(",")))
        return (h, *(new[state] for state in self.states.split()))


@st.composite
def expressions(draw: st.DrawFn, known: list[str], depth: int) -> str:
    """A tree of operators over the values that are known."""
    kind = draw(st.sampled_from("112223" if depth == DEPTH else "0112233")) if depth else "0"
    if kind == "0":
        return draw(st.sampled_from(known))
    form = draw(st.sampled_from({"1": ONE, "2": TWO, "3": THREE}[kind]))
    return form.format(*(draw(expressions(known, depth - 1)) for _ in range(int(kind))))


@st.composite
def random_cells(draw: st.DrawFn, bounded: bool = False) -> Written:
    """One of 1 to 4 gates and 0 to 2 states. ``bounded``: h and states stay between -1 and 1, however long it runs."""
    gates, states = "abde"[: draw(st.integers(1, 4))], "cn"[: draw(st.integers(0, 2))]
    known = [*(f"x.{gate}" for gate in gates), *(f"s.{state}" for state in states)]
    lines = []
    for k in range(draw(st.integers(0, 3))):
        lines.append(f"v{k} = {draw(expressions(known, DEPTH))}")
        known = [*known, f"v{k}"]
    results = [draw(expressions(known, DEPTH)) for _ in range(1 + len(states))]
    text = " ".join([*lines, *results])
    results[0] += "".join(f" + 0.5 * x.{gate}" for gate in gates if f"x.{gate}" not in text)
    if bounded:
        results = [draw(st.sampled_from(BOUNDED)).format(result) for result in results]
    new = ", ".join(f"{state!r}: {value}" for state, value in zip(states, results[1:], strict=True))
    return Written("\n".join([*lines, f"return {results[0]}, {{{new}}}"]), " ".join(gates), " ".join(states))


@st.composite
def cells_of_all_parts(draw: st.DrawFn) -> Written:
    """One whose gates are, but for the first, of any kind, or are parameters, inputs or h instead."""
    random = draw(random_cells(bounded=True))
    body, parts = random.body, {"gates": "", "x_gates": ""}
    for k, gate in enumerate(random.gates.split()):
        kind = draw(
            st.sampled_from(("gates", "x_gates") if k == 0 else ("x_gates", "h_gates", "params", "inputs", "h"))
        )
        if kind != "h":
            parts[kind] = f"{parts.get(kind, '')} {gate}".strip()
        instead = {"params": f"p.{gate}", "inputs": f"i.{gate}", "h": "s.h"}.get(kind, f"x.{gate}")
        body = body.replace(f"x.{gate}", instead)
    return Written(body, parts.pop("gates"), random.states, tuple(parts.items()))


def traced(random: Written) -> TracedCell:
    """Its cell; drawn anew where a gate is used by lines alone that nothing uses, or a name is given twice."""
    try:
        return random.cell()
    except CellError as error:
        assume(not any(reason in str(error) for reason in ("expected each to be used", "expected another name")))
        raise


def compare(random: Written, seed: int) -> None:
    cell = traced(random)
    rng = np.random.default_rng(seed)
    gates, states = drawn(rng, len(cell.preactivations)), drawn(rng, len(cell.states))
    given = drawn(rng, len(cell.given))
    upstream = drawn(rng, 1 + len(cell.states))
    with np.errstate(all="ignore"):
        plain = random.on_arrays(cell, gates, states, given)
        evaluated = cell.evaluate(ON_ARRAYS, gates, states, given)
        gradient = cell.gradient(ON_ARRAYS, gates, states, upstream[0], upstream[1:], given)
    found = forward(cell, gates, states, given)
    for one, two, three in zip(found, plain, evaluated, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    derived = backward(cell, gates, states, upstream, given)
    for one, two in zip(derived, gradient, strict=True):
        np.testing.assert_array_equal(one, np.broadcast_to(two, one.shape))
    # Two steps agree where neither meets a kink, a jump or a lack of places.
    coarse, fine = (differences(cell, gates, states, upstream, step, given) for step in (1e-5, 2e-6))
    tried = 0
    names = *cell.preactivations, *cell.states, *cell.given_gradients
    for name, value, one, two in zip(names, derived, coarse, fine, strict=True):
        scale = np.maximum(1.0, np.abs(two))
        smooth = np.abs(one - two) <= 1e-7 * scale
        tried += smooth.sum()
        off = (np.abs(value - two) / scale)[smooth].max(initial=0)
        assert off <= 2e-6, f"gradient of {name} is off by {off:.2g}"
    event(f"{10 * tried // (len(derived) * gates[0].size)} of ten")
    assert tried >= len(derived) * gates[0].size / 4


@settings(REPEATABLE, max_examples=60)
@given(random_cells(), st.integers(0, 1000))
def test_derived_gradients_are_those_of_finite_differences(random: Written, seed: int) -> None:
    compare(random, seed)


@settings(REPEATABLE, max_examples=60)
@given(cells_of_all_parts(), st.integers(0, 1000))
def test_derived_gradients_of_all_parts(random: Written, seed: int) -> None:
    compare(random, seed)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=300)
@given(st.one_of(random_cells(), cells_of_all_parts()), st.integers(1001, 100_000))
def test_derived_gradients_of_many_cells(random: Written, seed: int) -> None:
    compare(random, seed)


@pytest.mark.slow
@pytest.mark.parametrize("operator", derive.COSTS)
def test_a_wrong_rule_is_found(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = derive.RULES[operator]

    def doubled(d: Value, y: Value, *arguments: Value) -> tuple[Value, ...]:
        return tuple(derive.add(part, part) for part in right(d, y, *arguments))

    @settings(REPEATABLE, max_examples=300, phases=[Phase.generate])
    @given(random_cells(), st.integers(1001, 100_000))
    def search(random: Written, seed: int) -> None:
        compare(random, seed)

    monkeypatch.setitem(derive.RULES, operator, doubled)
    with pytest.raises(AssertionError, match=r"gradient of . is off by"):
        search()


def test_every_operator_is_drawn() -> None:
    a, b, c = "x.a", "x.b", "x.c"
    texts = (
        [form.format(a) for form in ONE]
        + [form.format(a, b) for form in TWO]
        + [form.format(a, b, c) for form in THREE]
    )
    cells = [written(f"named(t=x.b + x.c)\nreturn x.a * x.b * x.c + {text}, {{}}", "a b c") for text in texts]
    assert {value.operator for cell in cells for value in ordered([cell.derivation.h])} >= derive.COSTS.keys()


@functools.cache
def large_cells(count: int) -> list[Written]:
    """The longest of some random cells."""
    found: list[Written] = []

    @settings(REPEATABLE, max_examples=40, phases=[Phase.generate])
    @given(st.one_of(random_cells(bounded=True), cells_of_all_parts()))
    def collect(random: Written) -> None:
        traced(random)
        found.append(random)

    collect()
    return sorted(found, key=lambda random: len(random.body))[-count:]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_kernels_of_random_cells(number: int) -> None:
    random = large_cells(6)[number]
    p = problems.layer_problem(random.cell(), hidden=9, directions=2, ragged=True, resets=number % 2 == 1, seed=number)
    with arrays.poison(), problems.threads(2, "batch"):
        layer_checks.check(layer, p, "kernel of a random cell", repr(random))
