"""Mistakes in a cell: each ends in one sentence, which names the cell, the part, what was expected and the line.

A message names the author's line, never one of this package.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from written_cells import function, written

import gpulstm
from gpulstm import cells
from gpulstm_kernels.language import cell as language
from gpulstm_kernels.language.cell import cell

CONDITION = r"a value is no condition, .* expected where\(x, a, b\), maximum or minimum instead of if, and, or, not, "
NUMBER = r"a value is no Python number, .* expected the functions of gpulstm.cells instead of those of math"
TOGETHER = "expected one of the {0} by its name, such as {1}, got all {0} together"
GOOD = "\nreturn x.a * x.b, {'c': c}"


def other_value() -> Any:
    """A value of a cell called leak, which has nothing to do with those that are tried."""
    found: list[Any] = []

    def leak(x: Any, s: Any) -> Any:
        found.append(x.a)
        return x.a * 2, {}

    language.cell(gates="a")(leak)
    return found[0]


OTHER = other_value()

# What is written, the line that is named, and what is said of it. Line 1 is the function's own.
MISTAKES = [
    # values are no conditions and no numbers
    ("if x.a > 0:\n    c = s.c\nelse:\n    c = -s.c" + GOOD, 2, CONDITION),
    ("k = 1\nc = s.c if x.a else x.b" + GOOD, 3, CONDITION),
    ("c = x.a and s.c" + GOOD, 2, CONDITION),
    ("c = x.a or s.c" + GOOD, 2, CONDITION),
    ("c = s.c * (not x.a)" + GOOD, 2, CONDITION),
    ("c = s.c * (x.a < 0)" + GOOD, 2, CONDITION),
    ("c = s.c * (0 <= x.a)" + GOOD, 2, CONDITION),
    ("c = min(x.a, s.c)" + GOOD, 2, CONDITION),
    ("c = max(x.a, 1.0)" + GOOD, 2, CONDITION),
    ("c = sorted([x.a, s.c])[0]" + GOOD, 2, CONDITION),
    ("assert x.a > 0\nc = s.c" + GOOD, 2, CONDITION),
    ("c = where(x.a > 0, s.c, 0.0)" + GOOD, 2, CONDITION),
    ("c = np.where(x.a > 0, x.a, 0)" + GOOD, 2, CONDITION),
    ("c = s.c if x.a == 0 else x.b" + GOOD, 2, CONDITION),
    ("c = s.c if x.a != 0 else x.b" + GOOD, 2, CONDITION),
    ("c = s.c if x.a in (1, 2) else x.b" + GOOD, 2, CONDITION),
    ("c = s.c * (x.a == x.b)" + GOOD, 2, r"\*: expected a value of the cell or a finite number, got False"),
    ("c = math.exp(x.a)" + GOOD, 2, NUMBER),
    ("c = math.floor(x.a)" + GOOD, 2, NUMBER),
    ("c = float(x.a)" + GOOD, 2, NUMBER),
    ("c = int(x.a)" + GOOD, 2, NUMBER),
    ("c = round(x.a)" + GOOD, 2, NUMBER),
    ("c = complex(x.a)" + GOOD, 2, NUMBER),
    ("c = s.c\nfor k in range(x.a):\n    c = c * 2" + GOOD, 3, NUMBER),
    ("c = np.exp(x.a)" + GOOD, 2, "expected .* functions of gpulstm.cells"),
    ("c = np.maximum(x.a, 0)" + GOOD, 2, "expected .* functions of gpulstm.cells"),
    ("c = np.abs(s.c)" + GOOD, 2, "expected .* functions of gpulstm.cells"),
    ("c = np.clip(x.a, 0, 1)" + GOOD, 2, "expected "),  # names a line of NumPy's
    # names
    ("c = x.q" + GOOD, 2, "expected one of the gates that are declared, a, b, got 'q'"),
    ("c = s.q" + GOOD, 2, "expected one of the states that are declared, c, h, got 'q'"),
    ("c = cc" + GOOD, 2, "NameError: name 'cc' is not defined"),
    ("c = gelu(x.a)" + GOOD, 2, "NameError: name 'gelu' is not defined"),
    ("a, b = x\nc = a * s.c" + GOOD, 2, TOGETHER.format("gates", "x.a")),
    ("(c,) = s" + GOOD, 2, TOGETHER.format("states", "s.c")),
    ("x.a = s.c\nc = s.c" + GOOD, 2, "expected new states as the second result, got an assignment to 'a'"),
    (
        "s.c = x.a\nreturn x.a * x.b, {'c': s.c}",
        2,
        "expected new states as the second result, got an assignment to 'c'",
    ),
    ("x.a += 1\nc = s.c" + GOOD, 2, "expected new states as the second result, got an assignment to 'a'"),
    ("c = x['a']" + GOOD, 2, TOGETHER.format("gates", "x.a")),
    ("c = s.c * len(x)" + GOOD, 2, TOGETHER.format("gates", "x.a")),
    ("c = tanh(x)" + GOOD, 2, "tanh: expected a value of the cell or a number, got all gates together"),
    ("c = x.a.sum()" + GOOD, 2, "AttributeError: 'Value' object has no attribute 'sum'"),
    # operands
    ("c = x.a ** 3" + GOOD, 2, r"\*\*: expected the power 2, got 3; "),
    ("c = x.a ** 0.5" + GOOD, 2, r"\*\*: expected the power 2, got 0.5; "),
    ("c = x.a ** x.b" + GOOD, 2, r"\*\*: expected the power 2, got x.b; "),
    ("c = x.a ** 'a'" + GOOD, 2, r"\*\*: expected the power 2, got 'a'; "),
    ("c = x.a ** np.ones(2)" + GOOD, 2, r"\*\*: expected the power 2, got array"),
    ("c = 2 ** x.a" + GOOD, 2, r"\*\*: expected "),
    ("c = s.c + 'a'" + GOOD, 2, r"\+: expected a value of the cell or a finite number, got 'a'"),
    ("c = 'a' * s.c" + GOOD, 2, r"\*: expected a value of the cell or a finite number, got 'a'"),
    ("c = s.c - None" + GOOD, 2, "-: expected a value of the cell or a finite number, got None"),
    ("c = s.c / True" + GOOD, 2, "/: expected a value of the cell or a finite number, got True"),
    ("c = s.c * 1j" + GOOD, 2, r"\*: expected a value of the cell or a finite number, got 1j"),
    ("c = s.c * float('nan')" + GOOD, 2, r"\*: expected a value of the cell or a finite number, got nan"),
    ("c = math.inf - s.c" + GOOD, 2, "-: expected a value of the cell or a finite number, got inf"),
    ("c = s.c * np.float32('nan')" + GOOD, 2, r"\*: expected a value of the cell or a finite number, got .*nan"),
    ("c = s.c * np.ones(3)" + GOOD, 2, r"\*: expected a value of the cell or a finite number, got array\(\["),
    ("c = np.ones(3) * s.c" + GOOD, 2, r"(\*|multiply): expected a value of the cell or a .* got array\(\["),
    ("c = s.c / 0" + GOOD, 2, "/: expected a divisor other than 0"),
    ("c = s.c / (0 * x.a)" + GOOD, 2, "/: expected a divisor other than 0"),
    ("c = s.c * (1 / 0)" + GOOD, 2, "ZeroDivisionError: division by zero"),
    ("c = s.c * log(-1.0)" + GOOD, 2, "ValueError: .*math domain error|ValueError: expected a positive input"),
    ("c = (0 * x.a + 1e308) * 1e308 * s.c" + GOOD, 2, "expected finite numbers, got inf"),
    ("c = maximum(x.a, 'a')" + GOOD, 2, "maximum: expected a value of the cell or a finite number, got 'a'"),
    ("c = where(x.a, 'a', s.c)" + GOOD, 2, "where: expected a value of the cell or a finite number, got 'a'"),
    ("c = where(x.a, math.nan, s.c)" + GOOD, 2, "where: expected a value of the cell or a finite number, got nan"),
    ("c = tanh(x.a, x.b)" + GOOD, 2, r"TypeError: tanh\(\) takes 1 positional argument but 2 were given"),
    ("c = maximum(x.a)" + GOOD, 2, r"TypeError: maximum\(\) missing 1 required positional argument: 'b'"),
    ("c = tanh('a')" + GOOD, 2, "tanh: expected a value of the cell or a number, got 'a'"),
    ("c = named(f=x.a, g=x.b)" + GOOD, 2, r"named: expected one value, as in named\(f=...\)"),
    ("c = named(f=s.c)\nnamed(f=x.a)" + GOOD, 3, "named: expected another name than 'f', which another value has"),
    ("c = s.c + OTHER" + GOOD, 2, r"\+: expected a value of this cell, got one of cell 'leak'"),
    ("c = maximum(s.c, OTHER)" + GOOD, 2, "maximum: expected a value of this cell, got one of cell 'leak'"),
    ("return OTHER, {'c': x.a * x.b}", 1, "h: .*of cell 'leak'"),
    ("c = tanh(OTHER)" + GOOD, 1, "state 'c': .*of cell 'leak'"),
    # helpers and what they raise
    ("def half(v):\n    return v ** 0.5\nc = half(s.c)" + GOOD, 3, r"\*\*: expected the power 2, got 0.5"),
    ("raise KeyError('mine')", 2, "KeyError: 'mine'"),
    ("import a_module_that_is_not_there", 2, "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
    # what is returned
    ("return x.a * x.b * s.c, {}", 1, "expected the new states c, as declared, got one that is missing: 'c'"),
    ("return x.a, {'c': x.b, 'd': s.c}", 1, "expected the new states c, as declared, got one .* no state .*: 'd'"),
    ("return x.a, {'c': x.b, 3: s.c}", 1, "expected the new states c, as declared, got one .* no state .*: 3"),
    ("return 1.0, {'c': x.a * x.b}", 1, "h: expected a value of the cell, got 1.0"),
    ("return 0 * x.a, {'c': x.a * x.b}", 1, "h: expected a value of the cell, got the number 0.0"),
    ("return exp(0 * x.a), {'c': x.a * x.b}", 1, "h: expected a value of the cell, got the n"),
    ("return np.ones(3), {'c': x.a * x.b}", 1, r"h: expected a value of the cell, got array\(\["),
    ("return x.a * x.b, {'c': 0.0}", 1, "state 'c': expected a value of the cell, got 0.0"),
    ("return x.a * x.b, {'c': 0 * s.c + 1}", 1, "state 'c': expected a value of the cell, got the number 1.0"),
    ("return x.a * x.b, {'c': None}", 1, "state 'c': expected a value of the cell, got None"),
    ("return tanh(x.a * x.b)", 1, "expected h and a dictionary of the new states to be returned, got a value of cell"),
    ("tanh(x.a * x.b)", 1, "expected h and a dictionary of the new states to be returned, got None"),
    ("return [x.a * x.b, {'c': s.c}]", 1, r"expected h and a dictionary of the new states to be returned, got \["),
    ("return x.a * x.b, {'c': s.c}, 3", 1, "expected h and a dictionary .* to be returned, got a tuple of 3"),
    ("return x.a * x.b, s.c", 1, "expected h and a dictionary of the new states to be returned, got a tuple of 2"),
    ("return x.a * x.b, s", 1, "expected h and a dictionary of the new states to be returned, got a tuple of 2"),
    ("yield x.a * x.b", 1, "expected h and a dictionary of the new states to be returned, got <generator"),
    ("return tanh(x.a), {'c': s.c}", 1, "gates: expected each to be used, got 'b'"),
]


@pytest.mark.parametrize(("body", "line", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_line(body: str, line: int, message: str) -> None:
    with pytest.raises(cells.CellError) as raised:
        written(body, states="c", OTHER=OTHER)
    assert isinstance(raised.value, ValueError)
    text = str(raised.value)
    assert re.fullmatch(rf"cell 'q': (?:{message}).* \(author\.py, line {line}\)", text), text
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return tanh(x.a), {'c': s.c}", "gates: expected each to be used, got 'b', on which nothing that is returned"),
        ("return s.c, {'c': s.c + 0 * x.a}", "gates: expected each to be used, got 'a', 'b', on which nothing"),
        ("return tanh(x.a) + 0 * x.b, {'c': s.c}", "gates: expected each to be used, got 'b', on which nothing"),
    ],
)
def test_a_gate_that_is_not_used(body: str, message: str) -> None:
    with pytest.raises(cells.CellError, match=f"^cell 'q': {message}"):
        written(body, states="c")


@pytest.mark.parametrize("what", ["tanh('a')", "named(f=x.a, g=x.b)", "named()", "named(f='a')", "abs(None)"])
def test_functions_that_are_given_no_value(what: str) -> None:
    """They cannot know the cell, but its line."""
    with pytest.raises(cells.CellError, match=r": expected .*, got .* \(author.py, line 2\)$"):
        written(f"{what.replace('abs', 'softplus')}\nreturn x.a * x.b, {{}}")
    with pytest.raises(cells.CellError, match=r": expected .*, got .*test_language_errors.py, line \d+\)$"):
        cells.tanh("a")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [("x", r"q\(x\)"), ("x, s, p", r"q\(x, s, p\)"), ("x, *, s", r"q\(x, \*, s\)"), ("", r"q\(\)")],
)
def test_a_function_of_other_arguments(arguments: str, shown: str) -> None:
    expected = (
        rf"cell 'q': expected a function of the gates and the states, q\(x, s\), got {shown} \(author.py, line 1\)"
    )
    with pytest.raises(cells.CellError, match=f"^{expected}$"):
        written("return x.a * x.b, {}", arguments=arguments)


def test_a_function_may_call_its_arguments_what_it_likes() -> None:
    assert written("return y.a * y.b * t, {}", arguments="y, old, t=2") == written("return x.a * x.b * 2, {}")


NAMES = "expected names of ASCII letters, digits and _, which do not begin with _ and are no keywords"
DIFFERENT = "expected gates, states, parameters and inputs of different names beside h"


@pytest.mark.parametrize(
    ("gates", "states", "error", "message"),
    [
        ("", "", ValueError, "gates: expected at least one, got none, nor any of x_gates"),
        ("a a b", "", ValueError, rf"{DIFFERENT}, got a twice"),
        ("a b", "a", ValueError, rf"{DIFFERENT}, got a twice"),
        ("a b", "c c", ValueError, rf"{DIFFERENT}, got c twice"),
        ("h b", "", ValueError, rf"{DIFFERENT}, got h twice"),
        ("a b", "h", ValueError, rf"{DIFFERENT}, got h twice"),
        ("if b", "", ValueError, rf"gates: {NAMES}, got 'if'"),
        ("1a b", "", ValueError, rf"gates: {NAMES}, got '1a'"),
        ("_a b", "", ValueError, rf"gates: {NAMES}, got '_a'"),
        ("a, b", "", ValueError, rf"gates: {NAMES}, got 'a,'"),
        ("é b", "", ValueError, rf"gates: {NAMES}, got 'é'"),
        ("a b", "c-d", ValueError, rf"states: {NAMES}, got 'c-d'"),
        (("a", "b"), "", TypeError, r"gates: expected names with spaces between them, got \('a', 'b'\)"),
        (None, "", TypeError, "gates: expected names with spaces between them, got None"),
        ("a b", None, TypeError, "states: expected names with spaces between them, got None"),
        ("a b", ["c"], TypeError, r"states: expected names with spaces between them, got \['c'\]"),
        (2, "", TypeError, "gates: expected names with spaces between them, got 2"),
    ],
)
def test_a_wrong_declaration(gates: Any, states: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^cell 'q': {message}( \(author\.py, line 1\))?$"):
        written("return x.a * x.b, {}", gates, states)


@pytest.mark.parametrize(
    ("declared", "arguments", "body", "message"),
    [
        ({"x_gates": "a"}, "x, s", "return x.b, {}", "expected one of the gates that are declared, a, got 'b'"),
        ({"gates": "a", "x_gates": "a"}, "x, s", "return x.a, {}", f"{DIFFERENT}, got a twice"),
        ({"gates": "a", "params": "u", "inputs": "u"}, "x, s, p, i", "return x.a, {}", f"{DIFFERENT}, got u twice"),
        ({"h_gates": "a"}, "x, s", "return x.a, {}", "gates: expected at least one, got none, nor any of x_gates"),
        (
            {"gates": "a", "params": "weight_ih"},
            "x, s, p",
            "return x.a, {}",
            "params: expected other names than those of a layer's own parameters, got weight_ih",
        ),
        (
            {"gates": "a", "inputs": "k", "differentiable": "k q"},
            "x, s, i",
            "return x.a * i.k, {}",
            "differentiable: expected names of inputs, k, got q",
        ),
        (
            {"gates": "a", "inputs": "k", "differentiable": "k k"},
            "x, s, i",
            "return x.a * i.k, {}",
            "differentiable: expected each once, got k twice",
        ),
        (
            {"gates": "a", "params": "u"},
            "x, s",
            "return x.a, {}",
            r"expected a function of the gates, the states and the parameters, q\(x, s, p\), got q\(x, s\)",
        ),
        (
            {"gates": "a", "inputs": "k"},
            "x, s, p, i",
            "return x.a, {}",
            r"expected a function of the gates, the states and the inputs, q\(x, s, i\), got q\(x, s, p, i\)",
        ),
        (
            {"gates": "a", "params": "u v"},
            "x, s, p",
            "return x.a * p.u, {}",
            "params: expected each to be used, got 'v'",
        ),
        ({"gates": "a", "inputs": "k"}, "x, s, i", "return x.a, {}", "inputs: expected each to be used, got 'k'"),
        ({"gates": "a", "params": "u"}, "x, s, p", "return p * x.a, {}", "expected one of the parameters by its name"),
    ],
)
def test_wrong_parts(declared: dict[str, str], arguments: str, body: str, message: str) -> None:
    with pytest.raises(cells.CellError, match=rf"^cell 'q': {message}"):
        cell(**declared)(function(body, arguments))


@pytest.mark.parametrize("what", [3, None, "lstm", np.tanh, cells.lstm, type("Q", (), {})])
def test_what_is_no_function(what: Any) -> None:
    with pytest.raises(TypeError, match=r"^cell: expected a function, got "):
        gpulstm.cell(gates="a")(what)


@pytest.mark.parametrize("name", ["<lambda>", "é", "two words"])
def test_a_function_without_a_name(name: str) -> None:
    """A cell is called what its function is called, in C++ too."""
    nameless = function("return x.a, {}")
    nameless.__name__ = name
    with pytest.raises(cells.CellError, match=rf"^cell '{name}': expected a function whose name is of ASCII letters"):
        gpulstm.cell(gates="a")(nameless)


@pytest.mark.parametrize("call", [cells.check, cells.show])
@pytest.mark.parametrize("what", [3, None, np.ones(2)])
def test_what_is_no_cell(call: Any, what: Any) -> None:
    with pytest.raises(TypeError, match="cell: expected "):
        call(what)


def test_a_cell_that_fails_is_not_made_known() -> None:
    with pytest.raises(cells.CellError, match=r"cell 'q': h: expected a value of the cell, got 1\.0"):
        gpulstm.cell(gates="a b")(function("return 1.0, {}"))
    with pytest.raises(ValueError, match="cell: unknown cell 'q'; known cells: "):
        cells.get("q")


def test_what_shows_a_cell_to_its_author() -> None:
    """A print in a cell shows names and not objects."""
    shown: list[str] = []
    written(
        "look(x.a, s.c, x.a * 2, 0 * x.b + 3)\nreturn x.a * x.b, {'c': s.c}",
        states="c",
        look=lambda *values: shown.extend(map(repr, values)),
    )
    assert shown == ["x.a", "s.c", "a value of cell 'q'", "3.0"]


@pytest.mark.parametrize(
    "body",
    [
        "return sum([x.a, x.b]), {}",
        "v = x.a\nv += x.b\nreturn v, {}",
        "h = x.a\nfor k in range(3):\n    h = tanh(h * (k + 1) + x.b)\nreturn h, {}",
        "def leaky(v, slope=0.1):\n    return maximum(v, slope * v)\nreturn leaky(x.a) + leaky(x.b), {}",
        "gates = [getattr(x, name) for name in 'ab']\nreturn gates[0] * gates[1], {}",
        "if 1 < 2:\n    return x.a * x.b, {}",
        "import fractions\nreturn x.a * fractions.Fraction(1, 3) + x.b, {}",
        "return abs(-x.a) + +x.b, {}",
    ],
)
def test_what_python_may_do_in_a_cell(body: str) -> None:
    assert "are within" in cells.check(written(body))
