"""Cells whose step products and means cut into stages, on the CPU's kernels against the reference."""

from __future__ import annotations

from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
import stage_corners
from problems import Arrays
from tape_checks import check_tape

import gpulstm
from gpulstm import arrays, cells, nn
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cpu import layer
from gpulstm_kernels.language import derive
from gpulstm_kernels.language.cell import cell
from gpulstm_kernels.language.stages import schedule

SHIPPED = (
    "gru_reset_before",
    "layer_norm_gru",
    "layer_norm_lstm",
    "layer_norm_lstm_by_gate",
    "multiplicative_lstm",
    "variational_dropout",
)
SHAPES: dict[str, dict[str, Any]] = {
    "one of each": {"steps": 1, "batch": 1, "inputs": 1, "hidden": 1},
    "odd": {"steps": 5, "batch": 7, "inputs": 3, "hidden": 33, "ragged": True},
    "both directions": {"steps": 4, "batch": 35, "inputs": 2, "hidden": 19, "directions": 2, "ragged": True},
    "no bias": {"steps": 3, "batch": 3, "inputs": 5, "hidden": 32, "bias": False},
}
HEADS = {"steps": 4, "batch": 7, "inputs": 3, "hidden": 15, "heads": 5, "directions": 2, "ragged": True}


@cell(gates="a", states="c", params="u", inputs="k", differentiable="k", weights="w v")
def everything(x: Any, s: Any, p: Any, i: Any) -> Any:
    """All parts at once: products of a product and of what is in memory, means of means, inputs, h."""
    first = cells.product("w", s.h)
    c = 0.5 * s.c + cells.tanh(x.a + first * i.k)
    second = cells.product("v", cells.tanh(first + p.u * c))
    mean = cells.row_mean(second * second)
    return cells.tanh(second - cells.row_mean(c * mean) + i.k), {"c": c}


# Each takes several kernels, which take seconds: one stands for the others by default, two in float64.
QUICK = ("gru_reset_before", "float32")
COMPILED = [
    *((name, "float32") for name in SHIPPED),
    *((name, "float64") for name in ("gru_reset_before", "layer_norm_lstm_by_gate")),
]
CASES = [pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow) for case in COMPILED]


def _check(cell: str | Cell, dtype: str, options: dict[str, Any]) -> None:
    """Within tolerance, and the same bits on any number of threads, from poisoned buffers."""
    p = problems.layer_problem(cell, dtype, **options)
    expected, first = layer_checks.solved(p), Arrays()
    for count in (1, 2, 3):
        with arrays.poison(), problems.threads(count):
            found = layer_checks.check(layer, p, "kernel", f"{count} threads", expected)
        first = first or found
        for name, value in found.items():
            np.testing.assert_array_equal(value, first[name], name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_equals_the_reference(name: str, dtype: str, shape: str) -> None:
    _check(name, dtype, SHAPES[shape])


@pytest.mark.slow
@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize(("name", "dtype"), [case for case in COMPILED if cells.get(case[0]).gates_of_h])
def test_heads(name: str, dtype: str, resets: bool) -> None:
    """The recurrent weights are blocks; a cell's own are not."""
    _check(name, dtype, HEADS | {"resets": resets})


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["odd", "both directions"])
@pytest.mark.parametrize(("name", "dtype"), COMPILED)
def test_sequences_that_begin_within(name: str, dtype: str, shape: str) -> None:
    _check(name, dtype, SHAPES[shape] | {"resets": True})


@pytest.mark.slow
@pytest.mark.parametrize("scalar", [False, True], ids=["units", "rows"])
@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64"])
def test_everything_at_once(dtype: str, shape: str, resets: bool, scalar: bool) -> None:
    _check(everything, dtype, SHAPES[shape] | {"resets": resets, "scalar_inputs": scalar})


def test_everything_is_right_in_the_reference() -> None:
    assert "gradients of a, c, h, u, k, w, v are within" in cells.check(everything)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_tape_travels_as_arrays(name: str, dtype: str) -> None:
    for options in ({"hidden": 7}, {"hidden": 19, "directions": 2, "ragged": True, "batch": 20}):
        check_tape(layer, problems.layer_problem(name, dtype, **options))


@pytest.mark.slow
def test_a_stack_of_layers_and_its_explanation() -> None:
    """Layers, directions and dropout are the stack's own, whatever the cell."""
    net = nn.Recurrent("gru_reset_before", 3, 5, 2, bidirectional=True, dropout=0.5, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype("float32")
    assert "numba_cpu" in gpulstm.explain(net, x)
    assert "staged sequence walk, 2 stages a step" in gpulstm.explain(net, x)
    y, h = net(x)
    expected, last = net(x, backend="reference")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h, last, rtol=1e-5, atol=1e-6)
    (y, _), pullback = net.vjp(x, rng=1)
    (expected, _), reference = net.vjp(x, rng=1, backend="reference")
    for found, right in zip(pullback(y)[2].items(), reference(y)[2].items(), strict=True):
        np.testing.assert_allclose(found[1], right[1], rtol=1e-4, atol=1e-5, err_msg=found[0])


@pytest.mark.slow
@pytest.mark.parametrize("corner", stage_corners.FEW, ids=lambda corner: corner.name)
def test_where_a_step_may_be_cut_wrongly(corner: Cell) -> None:
    layer_checks.check(layer, problems.layer_problem(corner, hidden=5, ragged=True), "kernel", corner.name)


@pytest.mark.parametrize("wrong", ["doubled", "dropped", "of the operand"])
@pytest.mark.parametrize("operator", ["product", "row_mean"])
def test_a_wrong_rule_is_found(operator: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = derive.RULES[operator]
    mutants: dict[str, Any] = {
        "doubled": lambda d, y, a: (derive.add(*right(d, y, a) * 2),),
        "dropped": lambda d, y, a: (d.trace.number(0.0),),
        "of the operand": lambda d, y, a: (d,),
    }
    monkeypatch.setitem(derive.RULES, operator, mutants[wrong])
    with pytest.raises(cells.CellError, match=r"gradient of .* along a random direction"):
        cells.check(cell(gates="a", states="c", params="u", inputs="k", weights="w v")(everything.function))


# --- how a step is cut --------------------------------------------------------------------------------------------


def test_stages_of_known_cells() -> None:
    """Counted by hand: of the layer-norm LSTM mean, deviation, those of c, and what is left."""
    assert {name: cells.get(name).stages for name in ("lstm", *SHIPPED)} == {
        "lstm": 1,
        "gru_reset_before": 2,
        "layer_norm_gru": 3,
        "layer_norm_lstm": 5,
        "layer_norm_lstm_by_gate": 5,
        "multiplicative_lstm": 2,
        "variational_dropout": 2,
    }


def test_what_is_cheap_is_computed_again_and_the_rest_kept() -> None:
    @cell(gates="a")
    def kept(x: Any, s: Any) -> Any:
        dear, cheap = cells.tanh(x.a), x.a + 1
        mean = cells.row_mean(dear)
        return mean * dear + mean * cheap, {}

    d = kept.derivation
    plan = schedule((), [d.h], d.gates)
    assert [[value.operator for value in stage.stores] for stage in plan.stages] == [["tanh"], []]
    assert [value.operator for value in plan.slots] == ["tanh"]
    assert "add" in [value.operator for value in plan.stages[1].values]
    assert "tanh" not in [value.operator for value in plan.stages[1].values]


@pytest.mark.parametrize(
    ("body", "declared", "message"),
    [
        ("return product('u', x.a), {}", {}, "product: expected one of the weights that are declared, none, got 'u'"),
        ("return product('u', 1.0) + x.a, {}", {"weights": "u"}, r"product: expected a value of the cell, got 1\.0"),
        (
            "return product(x.a, 'u'), {}",
            {"weights": "u"},
            "product: expected a value of the cell or a number, got 'u'",
        ),
        ("return product('v', x.a), {}", {"weights": "u"}, "declared, u, got 'v'"),
        ("return x.a, {}", {"weights": "u"}, "weights: expected each to be used in a product, got 'u'"),
        ("return product('ih', x.a), {}", {"weights": "ih"}, "weights: expected other names than ih, hh and hr"),
        ("return product('u', x.a), {}", {"weights": "u u"}, "weights: expected each once, got u twice"),
        ("return x.a, {}", {"weights": "u", "params": "weight_u"}, "layer's own parameters, got weight_u"),
        ("return row_mean('x') + x.a, {}", {}, "row_mean: expected a value of the cell or a number, got 'x'"),
    ],
)
def test_wrong_products(body: str, declared: dict[str, str], message: str) -> None:
    from written_cells import function

    with pytest.raises(cells.CellError, match=rf"cell 'q': .*{message}"):
        cell(gates="a", **declared)(function(body))
