"""Dropping any term of a gradient fails the check that the gradient passes.

NumPy code is mutated systematically, at every operand, accumulation and mask of its syntax tree, and checked against
finite differences. The compiled walk is mutated at a list of terms, all in one compilation: which of them is missing
is a number that the kernel reads; it is checked against the reference.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import lstm_by_hand
import numpy as np
import problems
import pytest
import rnn_by_hand
from problems import Arrays, Problem
from tolerances import TOLERANCES, error

import gpulstm
from gpulstm import arrays, cells, ops
from gpulstm_kernels import reference
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cpu import layer, tuning
from gpulstm_kernels.cpu.crew import team, thread_pool
from gpulstm_kernels.cpu.walks import sequence_backward


def agree(found: Arrays, expected: Arrays, what: str) -> bool:
    """Whether every gradient is within the tolerance that the tests of the unmutated code use."""
    tolerance = TOLERANCES[what, "float64"]
    return found.keys() == expected.keys() and all(
        found[name].shape == expected[name].shape and error(found[name], expected[name]) <= tolerance
        for name in expected
    )


def survives(check: Callable[[], bool]) -> bool:
    """Whether a mutant passes ``check``; one that raises does not."""
    try:
        with np.errstate(all="ignore"):
            return check()
    except (ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError):
        return False


# --- mutants of a syntax tree -------------------------------------------------------------------------------------


def without_a_term(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` with one of its terms, factors, branches or effects missing."""
    match node:
        case ast.BinOp(left, ast.Add() | ast.Mult() | ast.Div(), right):
            yield from (left, right)
        case ast.BinOp(left, ast.Sub(), right):
            yield from (left, ast.UnaryOp(ast.USub(), right))
        case ast.BinOp(left, ast.Pow(), _):
            yield left
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Call(ast.Attribute(attr="where"), [_, yes, no]):
            yield from (yes, no)
        case ast.AugAssign() | ast.Assign([ast.Subscript()]) | ast.Expr(ast.Call()):
            yield ast.Pass()


def without_a_statement(node: ast.AST) -> Iterator[ast.AST]:
    """The mutants that cannot make compiled code read past an array: no size is computed otherwise."""
    match node:
        case ast.IfExp() | ast.AugAssign() | ast.Assign([ast.Subscript()]) | ast.Expr(ast.Call()):
            yield from without_a_term(node)


class Replace(ast.NodeTransformer):
    """Replaces the node at one place, counted in the order of a walk."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def module_from(tree: ast.Module, of: ModuleType, name: str) -> ModuleType:
    """``tree`` run as a module beside the one it was made from."""
    module = ModuleType(name)
    module.__package__ = of.__package__
    sys.modules[name] = module  # where a dataclass looks for the module it is in
    try:
        exec(compile(ast.fix_missing_locations(tree), f"<{name}>", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module


def mutants(
    of: ModuleType, function: str, mutate: Callable[[ast.AST], Iterator[ast.AST]] = without_a_term
) -> Iterator[tuple[str, ModuleType]]:
    """Every mutant of one function of a module, with a description."""
    tree = ast.parse(inspect.getsource(of))
    (target,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    for node in [inner for statement in target.body for inner in ast.walk(statement)]:
        for new in mutate(node):
            was = f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)} -> {ast.unparse(new)}"
            index = list(ast.walk(tree)).index(node)
            twin = copy.deepcopy(tree)
            old = list(ast.walk(twin))[index]
            yield was, module_from(Replace(old, copy.deepcopy(new)).visit(twin), of, f"{of.__name__}_mutant")


def hunt(
    of: ModuleType,
    function: str,
    check: Callable[[ModuleType], bool],
    at_least: int,
    mutate: Callable[[ast.AST], Iterator[ast.AST]] = without_a_term,
) -> None:
    """The original passes ``check``, and each of its mutants fails."""
    assert check(of)
    found = list(mutants(of, function, mutate))
    assert len(found) >= at_least
    assert [was for was, module in found if survives(functools.partial(check, module))] == []


# --- NumPy: the reference and the cells ---------------------------------------------------------------------------


@functools.cache
def solved(
    cell: str, projection: int = 0, resets: bool = False, heads: int = 1, gates_given: bool = False
) -> tuple[Problem, Any, Arrays]:
    """A problem with every feature, the reference's tape of it, and its gradients by finite differences."""
    more = {"resets": resets, "heads": heads, "scalar_inputs": heads > 1, "gates_given": gates_given}
    p = problems.layer_problem(
        cell, steps=3, hidden=4 if heads > 1 else 3, projection=projection, directions=2, ragged=True, **more
    )
    return p, problems.outputs(reference, p, training=True)[1], problems.layer_differences(reference, p)


STAGED = [("multiplicative_lstm",), ("gru_reset_before",)]
GIVEN = ("rnn", 0, False, 1, True)
LAYERS = [("lstm", 2), ("gru", 0, True), ("time_gap", 0, True, 2), ("time_gap",), GIVEN, *STAGED]


@pytest.mark.parametrize(
    ("function", "cases", "at_least"),
    [
        pytest.param("lstm_backward", [("lstm", 0)], 40, marks=pytest.mark.slow),
        ("rnn_backward", [("rnn", 0)], 5),
        pytest.param("layer_backward", LAYERS, 30, marks=pytest.mark.slow),
    ],
)
def test_every_term_of_the_reference(function: str, cases: list[Any], at_least: int) -> None:
    def check(module: ModuleType) -> bool:
        return all(
            agree(problems.gradients(module, p, tape), expected, "differences")
            for p, tape, expected in (solved(*case) for case in cases)
        )

    hunt(reference, function, check, at_least)


@pytest.mark.parametrize(("maths", "cell", "at_least"), [(lstm_by_hand, "lstm", 40), (rnn_by_hand, "rnn", 5)])
def test_every_term_of_the_cells(maths: ModuleType, cell: str, at_least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maths by hand, run on NumPy arrays as a cell of another name. Derived maths: test_language_mutations.py."""
    declared = cells.get(cell)
    mutant = Cell("mutant", declared.gates, declared.states, declared.saved, "mutated_maths")

    def check(module: ModuleType) -> bool:
        monkeypatch.setitem(sys.modules, "mutated_maths", module)
        p, _, expected = solved(cell)
        p = p._replace(cell=mutant)
        _, tape = problems.outputs(reference, p, training=True)
        return agree(problems.gradients(reference, p, tape), expected, "differences")

    hunt(maths, "backward", check, at_least)


# --- the stack of layers ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_of_the_stack() -> None:
    net = gpulstm.nn.Recurrent("time_gap", 2, 3, 2, dropout=0.4, bidirectional=True, dtype="float64", seed=0)
    n = problems.network(net, steps=3, ragged=True)
    options: dict[str, Any] = {"rng": 3, "inputs": {"gap": np.random.default_rng(1).uniform(0.1, 1, (3, 3))}}
    with gpulstm.use_backend("reference"):
        expected = problems.network_differences(n, **options)
        _, _, tape = ops.rnn_forward(net.config, net.params, n.x, n.state, n.lengths, training=True, **options)

    def check(module: ModuleType) -> bool:
        dx, initial, grads = module.rnn_backward(tape, n.dy, n.dstate)
        found = {"x": dx, **{f"state {k}": part for k, part in enumerate(initial)}, **grads}
        return agree(found, expected, "differences")

    hunt(ops, "rnn_backward", check, 2, without_a_statement)
    source = inspect.getsource(ops.rnn_backward)
    for old, new in (
        ("gradient = library.drop(gradient, mask, config.dropout)", "pass"),
        ("tuple(s[own] for s in dstate)", "tuple(0 * s[own] for s in dstate)"),
        ("gradient, initial, of_weights =", "_, initial, of_weights ="),
        ("_inside(config, checks.array(dy", "0 * _inside(config, checks.array(dy"),
        ("initials.insert(0, initial)", "initials.append(initial)"),
        ("reversed(list(enumerate(config.suffixes())))", "enumerate(config.suffixes())"),
    ):
        assert source.count(old) == 1, f"no such line to mutate: {old}"
        tree = ast.parse(inspect.getsource(ops).replace(source, source.replace(old, new)))
        assert not survives(functools.partial(check, module_from(tree, ops, "ops_mutant"))), old


# --- the compiled walk --------------------------------------------------------------------------------------------


@functools.cache
def solved_by_kernels(
    cell: str, projection: int = 0, resets: bool = False, heads: int = 1, gates_given: bool = False
) -> Any:
    """A problem, the kernels' tape of it, and its gradients by the reference."""
    sizes = {"hidden": 9 if heads == 1 else 64 * heads, "inputs": 5, "projection": projection, "heads": heads}
    sizes["gates_given"] = gates_given
    p = problems.layer_problem(cell, steps=4, **sizes, directions=2, ragged=True, resets=resets, seed=2)
    with arrays.poison():
        _, tape = problems.outputs(layer, p, training=True)
    return p, tape, problems.gradients(reference, p, problems.outputs(reference, p, training=True)[1])


WALKS = [("lstm", 0), ("lstm", 3), ("rnn", 0), ("lstm", 0, True, 2), ("gru", 0, True), ("time_gap", 0, True), GIVEN]


def kernels_agree(module: ModuleType = layer) -> bool:
    for p, tape, expected in (solved_by_kernels(*case) for case in WALKS):
        with arrays.poison():
            if not agree(problems.gradients(module, p, tape), expected, "kernel"):
                return False
    return True


@pytest.mark.slow
def test_every_step_of_the_kernels_layer() -> None:
    hunt(layer, "layer_backward", kernels_agree, 8, without_a_statement)


# What is written in sequence_backward.py, and the same without a term where the kernel reads its number: FACTOR is 0,
# NOW is false, ON does not run. Numbers count from 1; 0 is the original.
TERMS = [
    (
        "load(ys, element_address(dh, 0, b, unit), n) + of_y",
        "FACTOR * load(ys, element_address(dh, 0, b, unit), n) + of_y",
    ),
    ("n) + of_y", "n) + FACTOR * of_y"),
    (
        "dh_total = load(ys, element_address(dh, 0, b, unit), n)\n",
        "dh_total = FACTOR * load(ys, element_address(dh, 0, b, unit), n)\n",
    ),
    ("store_gates(cell, da, ", "ON store_gates(cell, da, "),
    ("store_tuple(dprevious, at, dstride)", "ON store_tuple(dprevious, at, dstride)"),
    ("dgates[slot, b, start + valid : start + width] = 0", "ON dgates[slot, b, start + valid : start + width] = 0"),
    ("= dh[0, b, j] + dy[", "= FACTOR * dh[0, b, j] + dy["),
    ("dh[0, b, j] + dy[", "dh[0, b, j] + FACTOR * dy["),
    ("j] if t < lengths[b] else 0", "j] if t < lengths[b] else 0.0 / FACTOR"),
    ("hidden,\n                        False,", "hidden,\n                        not NOW,"),
    ("multiply_panels(\n                        dhidden", "ON multiply_panels(\n                        dhidden"),
    ("dgates[slot, b, start + own", "ON dgates[slot, b, start + own"),
    (
        "lengths[b]:\n                dh[0, b, own.o0 : own.o1] = 0",
        "lengths[b]:\n                ON dh[0, b, own.o0 : own.o1] = 0",
    ),
    (
        "d, t, b):\n                            dh[0, b, own.o0",
        "d, t, b):\n                            ON dh[0, b, own.o0",
    ),
    ("masked > 0 or", "masked > 0 and NOW or"),
    ("or cell.reads_h > 0", "or (cell.reads_h > 0 and NOW)"),
    ("multiply_panels(\n                            dh, ", "ON multiply_panels(\n                            dh, "),
    ("multiply_blocks(cell, dh", "ON multiply_blocks(cell, dh"),
    (
        "store_tuple(load_some_states(cell, ys, at, dstride, 0)",
        "ON store_tuple(load_some_states(cell, ys, at, dstride, 0)",
    ),
    ("stride, 0 if new else lanes(ys)", "stride, 0 if new and NOW else lanes(ys)"),
    ("store_given_gradients(cell, ys", "ON store_given_gradients(cell, ys"),
    ("multiply_rows(dx, ", "ON multiply_rows(dx, "),
    ("count > 1, flat", "count > 1 and NOW, flat"),
    ("(s0 if plan.reverse else steps - s1)", "(s0 if plan.reverse and NOW else steps - s1)"),
    ("first + 2 * batch if plan.reverse else", "first + 2 * batch if plan.reverse and NOW else"),
    ("s0 > 0", "s0 > 0 and NOW"),
]
PLACE = team._MAIN  # bytes from a barrier to where a kernel with TERMS reads which of them is missing


def walk_with_terms() -> ModuleType:
    """sequence_backward.py with a backward in which each of TERMS can be switched off."""
    source = inspect.getsource(sequence_backward)
    for number, (old, new) in enumerate(TERMS, 1):
        assert source.count(old) == 1, f"no such term to mutate: {old}"
        new = new.replace("FACTOR", f"(1.0 if mutant != {number} else 0.0)").replace("NOW", f"mutant != {number}")
        source = source.replace(old, new.replace("ON ", f"if mutant != {number}: "))
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    kernel = functions.pop("backward")
    for node in functions.values():
        node.args.args.insert(0, ast.arg("mutant"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            node.args.insert(0, ast.Name("mutant", ast.Load()))
    kernel.body[1:1] = ast.parse(f"mutant = read(barrier + {PLACE})").body
    last_import = max(k for k, node in enumerate(tree.body) if isinstance(node, ast.ImportFrom))
    tree.body[last_import:last_import] = ast.parse("from gpulstm_kernels.cpu.crew.atomics import read").body
    return module_from(tree, sequence_backward, "sequence_mutant")


@pytest.mark.slow
def test_every_term_of_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(number: int) -> bool:
        """Whether the walk still agrees when it lacks the term of that number."""

        alone = team.new_team([])
        alone[1] = number  # in the place of the thread in which handlers of signals run
        monkeypatch.setattr(thread_pool, "_ALONE", alone)
        return kernels_agree()

    for case in WALKS:
        solved_by_kernels(*case)
    monkeypatch.setattr(layer, "sequence_backward", walk_with_terms())
    with tuning.replaced(backward_rows=10):  # several chunks
        assert without(0)
        assert [old for number, (old, _) in enumerate(TERMS, 1) if without(number)] == []
