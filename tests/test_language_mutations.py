"""Changing any term of the language's rules, or what is saved, fails the comparisons of test_language.py."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_language
from written_cells import backward, drawn, forward, written

from gpulstm import cells
from gpulstm_kernels.language import cell as language
from gpulstm_kernels.language import code, derive
from gpulstm_kernels.language.graph import Value


def survives(check: Callable[[], None]) -> bool:
    """Whether a mutant passes; one that fails in another way does not."""
    try:
        check()
    except (AssertionError, ArithmeticError, LookupError, NameError, TypeError, ValueError):
        return False
    return True


def every_operator() -> None:
    for case in test_language.CASES:
        test_language.test_value_and_gradient_of_every_operator(case)


# --- the rules ----------------------------------------------------------------------------------------------------


def without_a_term(node: ast.AST) -> Iterator[ast.AST]:
    """A term of a rule dropped, or its operands swapped, or its sign wrong."""
    match node:
        case ast.Call(ast.Name("mul"), [a, b]):
            yield from (a, b)
        case ast.Call(ast.Name("div" | "sub"), [a, b]):
            yield from (a, ast.Call(node.func, [b, a], []))
        case ast.Call(ast.Name("neg"), [a]):
            yield a
        case ast.Call(ast.Name("select"), [a, b, x, y]):
            yield from (x, y, ast.Call(node.func, [b, a, x, y], []), ast.Call(node.func, [a, b, y, x], []))
        case ast.Tuple(parts):
            for k, part in enumerate(parts):
                for wrong in (ast.Call(ast.Name("neg", ast.Load()), [part], []), ast.parse("_zero(d)").body[0].value):  # type: ignore[attr-defined]
                    yield ast.Tuple([*parts[:k], wrong, *parts[k + 1 :]], ast.Load())
            if len(parts) == 2 and ast.dump(parts[0]) != ast.dump(parts[1]):
                yield ast.Tuple(parts[::-1], ast.Load())


class Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def mutants(
    tree: ast.Module,
    roots: Callable[[ast.Module], list[ast.AST]],
    mutate: Callable[[ast.AST], Iterator[ast.AST]] = without_a_term,
) -> Iterator[tuple[str, ast.Module]]:
    """Each mutant of what ``roots`` finds in a module, and what is changed."""
    for root in roots(tree):
        for node in ast.walk(root):
            for new in mutate(node):
                index = list(ast.walk(tree)).index(node)
                twin = copy.deepcopy(tree)
                old = list(ast.walk(twin))[index]
                changed = Replace(old, copy.deepcopy(new)).visit(twin)
                yield f"{ast.unparse(node)} -> {ast.unparse(new)}", ast.fix_missing_locations(changed)


def rules(tree: ast.Module) -> list[ast.AST]:
    """The bodies of the rules, and what the rule of the absolute value returns."""
    found: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "RULES":
            assert isinstance(node.value, ast.Dict)
            found += [value.body for value in node.value.values if isinstance(value, ast.Lambda)]
        elif isinstance(node, ast.FunctionDef) and node.name == "_of_absolute":
            found += [inner.value for inner in node.body if isinstance(inner, ast.Return) and inner.value]
    return found


def changes_nothing(was: str) -> bool:
    """A gradient of 0 stays 0 with another sign, or as 0."""
    old, _, new = was.partition(" -> ")
    return new in (old.replace("_zero(d)", "neg(_zero(d))", 1), old) or (
        "_zero(d), _zero(d)" in old and new == old.replace("_zero(d), _zero(d)", "_zero(d), neg(_zero(d))", 1)
    )


@pytest.mark.slow
def test_every_term_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    every_operator()
    found = [
        (was, tree) for was, tree in mutants(ast.parse(inspect.getsource(derive)), rules) if not changes_nothing(was)
    ]
    assert len(found) >= 70
    survivors = []
    for was, tree in found:
        module = ModuleType("mutated_rules")
        module.__package__ = derive.__package__
        exec(compile(tree, "<mutated rules>", "exec"), vars(module))
        with monkeypatch.context() as patch:
            patch.setattr(derive, "RULES", module.RULES)
            if survives(every_operator):
                survivors.append(was)
    assert survivors == []


@pytest.mark.parametrize("operator", derive.COSTS)
def test_finite_differences_find_a_wrong_rule_without_what_is_known(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As :func:`gpulstm.cells.check` sees it, which authors have."""
    right = derive.RULES[operator]

    def doubled(d: Value, y: Value, *arguments: Value) -> tuple[Value, ...]:
        return tuple(derive.add(part, part) for part in right(d, y, *arguments))

    def tried() -> None:
        for case in test_language.CASES:
            test_language.test_every_operator_against_finite_differences(case)

    tried()
    monkeypatch.setitem(derive.RULES, operator, doubled)
    with pytest.raises((AssertionError, cells.CellError)):
        tried()


def test_a_gradient_that_is_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "add", lambda a, b: b)
    assert not survives(every_operator)


# --- what is saved, and the code ----------------------------------------------------------------------------------


def same_as_by_hand(cell: cells.TracedCell) -> None:
    test_language.test_derived_is_what_is_written_by_hand(cell, test_language.lstm_by_hand)


def lstm_anew() -> cells.TracedCell:
    return language.cell(gates="i f g o", states="c")(cells.lstm.function)


def test_a_saved_value_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either backward cannot be written, or it computes more again than it must."""
    same_as_by_hand(lstm_anew())
    choose = derive.choose_saved
    for k in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(language, "choose_saved", lambda *a, k=k: choose(*a)[:k] + choose(*a)[k + 1 :])
            assert not survives(lambda: same_as_by_hand(lstm_anew()))


def test_a_saved_value_more(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = derive.choose_saved
    monkeypatch.setattr(language, "choose_saved", lambda *a: (*choose(*a), a[0][0].arguments[1]))  # tanh(c)
    assert lstm_anew().saved == 5
    assert not survives(lambda: same_as_by_hand(lstm_anew()))


@pytest.mark.parametrize("save", [1, 10_000])
def test_a_choice_for_another_price(save: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen for one price of saving is not what costs least at another."""
    names = [name for name in test_language.SMALL if name not in ("rnn", "nothing")]
    choose = derive.choose_saved

    def for_another_price(*arguments: Any) -> tuple[Value, ...]:
        with monkeypatch.context() as patch:
            patch.setattr(derive, "SAVE", save)
            return choose(*arguments)

    monkeypatch.setattr(derive, "choose_saved", for_another_price)

    def check() -> None:
        for name in names:
            with monkeypatch.context() as patch:
                test_language.test_what_is_saved_costs_least(name, 30, patch)

    assert not survives(check)


@pytest.mark.parametrize("pair", list(itertools.combinations(range(4), 2)))
def test_saved_values_in_another_order(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of forward and of backward agree on the order."""
    python = code.python

    def swapped(cell: str, d: code.Derivation) -> str:
        source = python(cell, d)
        names = [f"saved_{k}" for k in range(4)]
        a, b = pair
        names[a], names[b] = names[b], names[a]
        changed = re.sub(r"\(saved_0, .*\) = saved", f"({', '.join(names)}) = saved", source)
        assert changed != source
        return changed

    monkeypatch.setattr(code, "python", swapped)
    assert not survives(lambda: same_as_by_hand(lstm_anew()))


@pytest.mark.parametrize(
    ("known", "body"),
    [
        ("h", "return tanh(x.a * x.b), {'c': s.c}"),
        ("new", "c = x.a * s.c + x.b\nreturn tanh(c) * 2, {'c': tanh(c)}"),
        ("old", "return x.a * s.c, {'c': x.b * s.c}"),
    ],
)
def test_what_backward_is_given(known: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward reads h, the new states and the old ones, and goes wrong where it is given others."""
    cell = written(body, states="c")
    rng = np.random.default_rng(6)
    gates, old, upstream = drawn(rng, 2), drawn(rng, 1), drawn(rng, 2)
    h, *new = forward(cell, gates, old)
    saved = cell.module.forward(gates, old)[2]
    right = backward(cell, gates, old, upstream)
    given = {"h": h, "new": tuple(new), "old": old}
    given[known] = 2 * h if known == "h" else tuple(2 * value for value in given[known])
    dgates, dstates = cell.module.backward(upstream[0], upstream[1:], given["h"], saved, given["new"], given["old"])
    assert any(np.abs(one - two).max() > 0.1 for one, two in zip((*dgates, *dstates), right, strict=True))


def terms(tree: ast.Module) -> list[ast.AST]:
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "backward")
    return [statement for statement in function.body if isinstance(statement, (ast.Assign, ast.Return))]


def without_a_factor(node: ast.AST) -> Iterator[ast.AST]:
    """A term or factor of derived code dropped, or its sign wrong."""
    match node:
        case ast.BinOp(left, ast.Add() | ast.Mult(), right):
            yield from (left, right)
        case ast.BinOp(left, ast.Sub(), right):
            yield from (left, ast.UnaryOp(ast.USub(), right), ast.BinOp(left, ast.Add(), right))


def test_every_term_of_the_derived_lstm() -> None:
    found = list(mutants(ast.parse(cells.lstm.source), terms, without_a_factor))
    assert len(found) >= 40

    def check(tree: ast.Module) -> None:
        mutant = lstm_anew()
        module = ModuleType("mutant")
        exec(compile(tree, "<mutant>", "exec"), vars(module))
        vars(mutant)["module"] = module
        same_as_by_hand(mutant)

    check(ast.parse(cells.lstm.source))
    assert [was for was, tree in found if survives(functools.partial(check, tree))] == []
