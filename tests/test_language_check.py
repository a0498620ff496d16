"""What authors see of a cell: that it is checked, and what was derived of it. Nothing is compiled."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from written_cells import shown, written

from gpulstm import cells
from gpulstm_kernels.cells import Cell


def test_check_says_what_was_found() -> None:
    number = r"\d(\.\d)?(e-\d\d)?"
    expected = (
        rf"cell 'lstm': gradients of i, f, g, o, c are within {number} of finite differences; finite at 0 and where a "
        rf"gate is ±30; float32 within {number} of float64"
    )
    assert re.fullmatch(expected, cells.check(cells.lstm))


COUPLED = Path(__file__).with_name("coupled_cell.py").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(g - c_previous)", "(g + c_previous)", "gradient of gate 'i': expected .*, as finite differences give, got "),
        ("dc * i * (1.0 - g * g)", "dc * i * (1.0 - g)", "gradient of gate 'g': expected .*differences give, got"),
        ("dh * tanh_c * o *", "dh * o *", "gradient of gate 'o': expected .*, as finite differences give, got "),
        ("(dc * (1.0 - i),)", "(dc,)", "gradient of state 'c': expected .*, as finite differences give, got "),
        ("dc = dc + dh * o", "dc = dh * o", "gradient of gate 'i': expected .*, as finite differences give, got "),
        ("(1.0 - tanh_c * tanh_c)", "1.0", "gradient of gate 'i': expected .*, as finite differences give, got "),
        ("(di, dg, do)", "(di, do, dg)", "gradient of gate 'g': expected .*, as finite differences give, got "),
        (
            "return o * tanh(c)",
            "return o * tanh(c) + 0.0 * (c / c)",
            r"h: .* where everything is 0 \(float32\), got nan",
        ),
        (
            "(c,), (i, g, o)",
            "(c,), (i, g, o * (c / c))",
            r"saved value 2: .* where everything is 0 \(float32\), got nan",
        ),
        (
            "i * (1.0 - i)\n",
            "i * (1.0 - i) ** 2 / (1.0 - i)\n",
            r"gradient of 'i': expected finite values where gate 'i' is 30 and the others are 0 \(float32\), got nan",
        ),
        ("return o * tanh(c)", "return o * tanh(c) * ONE", "h: expected float32, as given, got float64"),
        ("(c,), (i, g, o)", "(c * ONE,), (i, g, o)", "state 'c': expected float32, as given, got float64"),
        ("(c,), (i, g, o)", "(c,), (i, g * ONE, o)", "saved value 1: expected float32, as given, got float64"),
        ("(dc * (1.0 - i),)", "(dc * (1.0 - i) * ONE,)", "gradient of 'c': expected float32, as given, got float64"),
        (
            "+ i * g",
            "+ i * g + 1e120 * c * c",
            "c: expected finite values, got .* after 3 steps from zero, at gates",
        ),
    ],
)
def test_check_finds_mistakes_by_hand(old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COUPLED.count(old) == 1
    module = ModuleType("wrong_cell")
    module.__dict__["ONE"] = np.float64(1)
    exec(COUPLED.replace(old, new), vars(module))
    monkeypatch.setitem(sys.modules, "wrong_cell", module)
    with pytest.raises(cells.CellError, match=f"^cell 'wrong': {message}"):
        cells.check(Cell("wrong", gates=("i", "g", "o"), states=("c",), saved=3, maths="wrong_cell"))


def test_check_takes_a_cell_by_hand() -> None:
    found = cells.check(Cell("coupled", gates=("i", "g", "o"), states=("c",), saved=3, maths="coupled_cell"))
    assert found.startswith("cell 'coupled': gradients of i, g, o, c are within ")


def test_check_finds_mistakes_where_states_stay_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("decay_cell")
    exec(
        "def forward(gates, states): return gates[0] + states[0], (gates[0] * states[0],), (gates[0],)\n"
        "def backward(dh, dstates, h, saved, states, previous):\n"
        "    return (dh + 5.0 * dstates[0] * previous[0],), (dh + dstates[0] * saved[0],)\n",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, "decay_cell", module)
    with pytest.raises(cells.CellError, match="gradient of gate 'a'"):
        cells.check(Cell("decay", gates=("a",), states=("c",), saved=1, maths="decay_cell"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x.a * x.b, {'c': s.c / s.c}", "c: expected finite values, got nan after 1 steps from zero, at gates"),
        ("v = x.a + s.c\nreturn x.b, {'c': v / v}", r"state 'c': .* where everything is 0 \(float32\), got nan"),
        ("return sqrt(x.a ** 2) * x.b, {'c': s.c}", r"gradient of 'a': .* where everything is 0 \(float32\), got nan"),
        ("return log(x.a) * x.b, {'c': s.c}", "h: expected finite values, got nan after 1 steps from zero"),
        (
            "return x.a / x.b, {'c': s.c}",
            r"h: expected finite values where everything is 0 \(float32\), got nan",
        ),
        ("return x.b, {'c': exp(s.c * x.a + 40)}", "c: expected finite values, got inf after 2 steps from zero"),
        ("return exp(x.a * 4) * x.b, {'c': s.c}", r"h: .* gate 'a' is 30 and the others are 0 \(float32\), got nan"),
    ],
)
def test_check_finds_what_is_not_finite(body: str, message: str) -> None:
    with pytest.raises(cells.CellError, match=f"^cell 'q': {message}"):
        cells.check(written(body, states="c"))


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    cells.show(written("c = sigmoid(x.a) * s.c + x.b\nreturn tanh(c), {'c': c}", states="c"))
    assert (
        capsys.readouterr().out
        == '''saved, a unit and step: 1
  saved_0 = sigmoid(x.a)

"""What is derived of the cell 'q'."""

from gpulstm_kernels.cells.activations import sigmoid, tanh


def forward(gates, states):
    (x_a, x_b,) = gates
    (old_c,) = states
    v0 = sigmoid(x_a)
    v1 = x_b + (old_c * v0)
    return tanh(v1), (v1,), (v0,)


def backward(dh, dstates, h, saved, states, previous):
    (saved_0,) = saved
    (new_c,) = states
    (old_c,) = previous
    (dnew_c,) = dstates
    v0 = dnew_c + (dh * (1.0 - (h * h)))
    return (((saved_0 * (old_c * v0)) * (1.0 - saved_0)), v0,), ((saved_0 * v0),)

'''
    )
    cells.show(cells.rnn)
    assert capsys.readouterr().out.startswith('saved, a unit and step: nothing\n\n"""What is derived of')
    with pytest.raises(
        cells.CellError, match="cell 'c': expected one that is derived of its forward, got maths written by"
    ):
        cells.show(Cell("c", ("a",), (), 0, "coupled_cell"))


def test_show_of_a_cell_with_much_that_is_shared() -> None:
    assert len(shown(written("v = x.a\nfor _ in range(12): v = tanh(v) * softplus(v) + x.b\nreturn v, {}"))) < 10_000
