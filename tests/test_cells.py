"""Cells that are declared here alone run on every backend: adding a cell touches no walk."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
from tolerances import assert_close

from gpulstm import arrays, cells, nn, use_backend
from gpulstm_kernels import reference
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cpu import layer
from gpulstm_kernels.cpu.codegen import compilation
from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.source import source_text as cuda_source

COUPLED = Cell("coupled", gates=("i", "g", "o"), states=("c",), saved=3, maths="coupled_cell")
MINIMAL = Cell("minimal", gates=("f", "g"), states=("a", "b"), saved=2, maths="minimal_cell")


@pytest.fixture(autouse=True)
def _own_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(cells, "_cells", dict(cells._cells))
    cells.register(COUPLED)
    cells.register(MINIMAL)


@pytest.mark.slow  # for kernels that no other test has
@pytest.mark.parametrize("cell", [COUPLED, MINIMAL], ids=lambda cell: cell.name)
def test_gradients_on_every_backend(cell: Cell) -> None:
    """Reference against finite differences, kernels against the reference."""
    for options in ({"directions": 2, "ragged": True}, {"projection": 2, "ragged": True}):
        p = problems.layer_problem(cell, hidden=5, **options)
        _, tape = problems.outputs(reference, p, training=True)
        found, expected = problems.gradients(reference, p, tape), problems.layer_differences(reference, p)
        for name in expected:
            assert_close(found[name], expected[name], "differences", "float64", name)
    for hidden in (3, 9, 33, 70):
        p = problems.layer_problem(cell, hidden=hidden, projection=hidden // 3, directions=2, ragged=True)
        truth = layer_checks.solved(p)
        for count, split in ((1, "batch"), (3, "batch"), (2, "units")):
            with arrays.poison(), problems.threads(count, split):
                layer_checks.check(layer, p, "kernel", f"hidden {hidden}, {count} threads, {split}", truth)


@pytest.mark.slow
def test_layers_of_a_registered_cell() -> None:
    net = nn.Recurrent("coupled", 3, 5, 2, bidirectional=True, proj_size=2, dtype="float64", seed=0, init="recommended")
    assert net.params["weight_ih_l0"].shape == (15, 3)
    n = problems.network(net, ragged=True)
    results = {}
    for backend in ("reference", "numba_cpu"):
        with use_backend(backend):
            results[backend] = problems.network_gradients(n)
            assert "cell coupled, float64" in net.explain(n.x)
    for name, expected in results["reference"].items():
        assert_close(results["numba_cpu"][name], expected, "kernel", "float64", name)


def test_states_of_any_number() -> None:
    """Three parts for a cell that carries two states beside h; one array for a cell with none."""
    net = nn.Recurrent("minimal", 3, 5, dtype="float64", seed=0)
    x = np.ones((2, 4, 3))
    _, state = net(x, backend="reference")
    assert [part.shape for part in state] == [(1, 4, 5)] * 3
    y, _ = net(x, state, backend="reference")
    assert np.abs(y - net(x, backend="reference")[0]).max() > 1e-3
    with pytest.raises(TypeError, match=r"state: expected \(state h, state a, state b\), got 2 parts"):
        net(x, state[:2])
    assert net(x, (None, state[1], None), backend="reference")[0].shape == (2, 4, 5)


def test_forget_bias_is_found_by_the_gates_name() -> None:
    """The recommended initialisation opens a gate called f, and leaves a cell without one alone."""
    minimal = nn.Recurrent("minimal", 3, 5, init="recommended", seed=0).params["bias_ih_l0"]
    np.testing.assert_array_equal(minimal, [1] * 5 + [0] * 5)
    assert not nn.Recurrent("coupled", 3, 5, init="recommended", seed=0).params["bias_ih_l0"].any()


def test_names() -> None:
    assert cells.register(COUPLED) is cells.get("coupled")  # the same again is no conflict
    with pytest.raises(ValueError, match=r"cell: the name 'coupled' is taken by Cell\(name='coupled'"):
        cells.register(replace(MINIMAL, name="coupled"))
    with pytest.raises(ValueError, match="cell: 'none': gates: expected at least one, got none, nor any of x_gates"):
        cells.register(Cell("none", gates=(), states=(), saved=0, maths="coupled_cell"))
    with pytest.raises(
        ValueError, match=r"cell: unknown cell 'grv'; known cells: cifg, coupled, .*gru, .*lstm, .*rnn, rnn_relu"
    ):
        nn.Recurrent("grv", 3, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"saved": -1}, ValueError, r"cell: 'new': saved: expected an integer >= 0, got -1"),
        ({"saved": 1.5}, TypeError, r"cell: 'new': saved: expected an integer >= 0, got 1.5"),
        ({"gates": "igo"}, TypeError, r"cell: 'new': gates: expected a tuple of names, got 'igo'"),
        ({"gates": ("i", 2)}, TypeError, r"cell: 'new': gates: expected a tuple of names, got \('i', 2\)"),
        ({"states": ["c"]}, TypeError, r"cell: 'new': states: expected a tuple of names, got \['c'\]"),
        (
            {"gates": ("i", "g", "i")},
            ValueError,
            "gates, states, parameters and inputs of different names beside h, got i twice",
        ),
        ({"states": ("c", "c")}, ValueError, "got c twice"),
        ({"states": ("g",)}, ValueError, "got g twice"),
        ({"states": ("h",)}, ValueError, "got h twice"),
        (
            {"params": ("weight_ih",)},
            ValueError,
            "cell: 'new': params: expected other names than those of a layer's own",
        ),
        ({"differentiable": ("k",)}, ValueError, "differentiable: expected names of inputs, none, got k"),
        ({"maths": None}, TypeError, r"cell: maths: expected a name, got None"),
    ],
)
def test_declarations_that_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cells.register(replace(COUPLED, **{"name": "new"} | change))


def test_what_is_no_cell() -> None:
    with pytest.raises(TypeError, match=r"cell: expected a gpulstm.cells.Cell, got 'lstm'"):
        cells.register("lstm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cell: unknown cell \[\]; known cells"):
        cells.get([])  # type: ignore[arg-type]


TRIED = Cell("tried", gates=("a", "b"), states=("s",), saved=1, maths="tried_cell")
GOOD = """
def forward(gates, states):
    a, b = gates
    return a * b, (a,), (b,)

def backward(dh, dstates, h, saved, states, previous):
    return (dh, dh), dstates
"""


def tried(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, like: Cell = TRIED) -> Cell:
    """A registered cell, declared as ``like``, whose maths is ``text``."""
    (folder / f"{like.maths}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, like.maths, raising=False)
    compilation._cell_type.cache_clear()
    return cells.register(like)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(a,), (b,)", "(a,), (a, b)", "forward: saved: expected a tuple of 1, as declared, got a tuple of 2"),
        ("(a,), (b,)", "(a,), ()", "forward: saved: expected a tuple of 1, as declared, got a tuple of 0"),
        ("(a,), (b,)", "(a,), b", r"forward: saved: expected a tuple of 1, as declared, got an array \(2, 3\)"),
        ("(a,), (b,)", "(a, b), (b,)", "forward: states: expected a tuple of 1, as declared, got a tuple of 2"),
        ("(a,), (b,)", "(), (b,)", "forward: states: expected a tuple of 1, as declared, got a tuple of 0"),
        ("a * b, (a,), (b,)", "a * b, (a,)", r"forward: expected forward\(gates, states\) -> h, .*got a tuple of 2"),
        ("a * b, (", "1.0, (", "forward: h: expected values of the gates' shape, got 1.0"),
        ("(b,)", "(2.0,)", "forward: saved: expected values of the gates' shape, got 2.0"),
        ("a, b = gates", "(a,) = gates", r"for NumPy arrays, len\(gates\) = 2, len\(states\) = 1, got ValueError: too"),
        ("forward(gates, states)", "forward(gates)", r"expected forward\(gates, states\) -> .*got TypeError: forward"),
        ("a * b", "a * c", "got NameError: name 'c' is not defined"),
        ("(dh, dh), dstates", "(dh, dh, dh), dstates", "backward: dgates: expected a tuple of 2, as declared, got a"),
        (
            "(dh, dh), dstates",
            "(dh,), dstates",
            "backward: dgates: expected a tuple of 2, as declared, got a tuple of 1",
        ),
        (
            "(dh, dh), dstates",
            "(dh, dh), ()",
            "backward: dprevious: expected a tuple of 1, as declared, got a tuple of 0",
        ),
        ("(dh, dh), dstates", "(dh, dh), None", "backward: dprevious: expected a tuple of 1, as declared, got None"),
        (
            "(dh, dh), dstates",
            "dh",
            r"backward: expected backward\(dh, dstates, .*\) -> dgates, dprevious, got an array",
        ),
        ("def backward", "def gradient", r"backward: expected a function backward\(dh, dstates, h, .*, got None"),
        ("def forward", "forward = 5; def f".replace("; ", "\n"), "forward: expected a function forward.*, got 5"),
    ],
)
def test_maths_of_other_counts_than_declared_never_runs(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels would write past their memory, or read what nobody wrote."""
    tried(GOOD.replace(old, new, 1), tmp_path, monkeypatch)
    net, x = nn.Recurrent("tried", 3, 5, seed=0), np.ones((2, 2, 3), np.float32)
    for backend in ("numba_cpu", "reference"):
        with use_backend(backend):
            for call in (net, net.vjp, lambda x: net.stream(2)(x[0])):
                with pytest.raises(ValueError, match=f"^cell: 'tried': tried_cell.*{message}"):
                    call(x)


@pytest.mark.parametrize(
    ("new", "got"),
    [
        ("abs(a) * b", r"got abs\(Vector\(float32, \d+\)\)"),
        ("a * b ** 2", r"got pow\(Vector\(float32, \d+\), Literal\[int\]\(2\)\)"),
        ("helper(a) * b", "got Untyped global name 'helper': .*"),
    ],
)
def test_maths_without_code_for_the_cpu(new: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names the operation and its line, where Numba has a hundred."""
    tried(GOOD.replace("a * b", new) + "\ndef helper(x):\n    return x\n", tmp_path, monkeypatch)
    net, x = nn.Recurrent("tried", 3, 5, seed=0), np.ones((1, 1, 3), np.float32)
    assert net(x, backend="reference")[0].shape == (1, 1, 5)
    with pytest.raises(ValueError, match=rf"^cell: 'tried': tried_cell.forward: .*{got} \(File .*, line 4\)$"):
        net(x, backend="numba_cpu")


def test_maths_that_works_in_place_changes_nobody_elses_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To kernels ``c += i`` makes a new number; the reference passes arrays, which its tape holds too."""
    text = Path(importlib.import_module("coupled_cell").__file__ or "").read_text(encoding="utf-8")
    for old, new in (("c = (1.0 - i) * c + i * g", "c *= 1.0 - i; c += i * g"), ("dc = dc + dh", "dc += dh")):
        assert old in text
        text = text.replace(old, new)
    in_place = tried(text, tmp_path, monkeypatch, replace(COUPLED, name="in_place", maths="in_place_cell"))
    p = problems.layer_problem(COUPLED, ragged=True, directions=2)
    results = []
    for cell in (COUPLED, in_place):
        found, tape = problems.outputs(reference, p._replace(cell=cell), training=True)
        results += [found | problems.gradients(reference, p, tape) for _ in range(2)]
    for result in results[1:]:
        for name, expected in results[0].items():
            np.testing.assert_array_equal(result[name], expected, name)


def test_the_cuda_struct_has_the_declared_counts() -> None:
    """An assertion in the C++ text, so that a struct of other counts does not compile."""
    text = cuda_source(Kernel("walks/step/kernels", "step_forward", (np.dtype("float32"), cells.lstm, True, 4)))
    expected = "LstmCell::gates == 4 && LstmCell::states == 1 && LstmCell::saved == 4"
    assert f'\nstatic_assert({expected}, "LstmCell: other counts than the cell declares");\n' in text


def test_declaring_a_cell_imports_nothing() -> None:
    cells.register(Cell("later", gates=("a",), states=(), saved=0, maths="a_module_that_is_not_there"))
    net = nn.Recurrent("later", 3, 5)
    message = (
        "cell: 'later': maths: expected a module that can be imported, got 'a_module_that_is_not_there': No module"
    )
    for backend in ("numba_cpu", "reference"):
        with pytest.raises(ValueError, match=message):
            net(np.ones((2, 2, 3), np.float32), backend=backend)


def test_an_edited_cell_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk cache is keyed on the cell's type: its name holds a digest of declaration and maths."""
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Path(importlib.import_module("coupled_cell").__file__ or "").read_text(encoding="utf-8")
    module = tmp_path / "edited_cell.py"
    cell = replace(COUPLED, name="edited", maths="edited_cell")

    def type_name(text: str, declared: Cell) -> str:
        module.write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "edited_cell", raising=False)
        importlib.invalidate_caches()
        return compilation._cell_type.__wrapped__(declared).name

    first = type_name(source, cell)
    assert first.startswith("Cell(edited, ")
    assert type_name(source, cell) == first
    assert type_name(source.replace("(1.0 - i) * c", "(2.0 - i) * c"), cell) != first
    assert type_name(source, replace(cell, gates=("i", "o", "g"))) != first
    monkeypatch.delitem(sys.modules, "edited_cell")
