"""Layers of pre-activations: x is what its product with ``weight_ih`` would be, and there is no such weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layer_checks
import numpy as np
import problems
import pytest
import torch
from problems import Arrays, Problem
from tape_checks import check_tape
from tolerances import assert_close

import gpulstm
import gpulstm.torch
from gpulstm import arrays, io, nn
from gpulstm_kernels import reference
from gpulstm_kernels.backend import NARROW
from gpulstm_kernels.cpu import layer, tuning

BACKENDS = ["reference", pytest.param("numba_cpu", marks=pytest.mark.slow)]
# Gates of both products, of either one, of x alone; parameters, heads, products inside the step.
CELLS: dict[str, dict[str, Any]] = {
    "lstm": {"bidirectional": True},
    "gru": {"bidirectional": True},
    "slstm": {"heads": 2},
    "mingru": {"bidirectional": True},
    "indrnn": {"bias": False},
    "peephole": {"bias": False},
    "gru_reset_before": {},
}
SHAPES: dict[str, dict[str, Any]] = {
    "odd": {"steps": 7, "batch": 3, "hidden": 33, "ragged": True},
    "even": {"steps": 3, "batch": 8, "hidden": 64, "directions": 2, "bias": False},
    "one unit": {"steps": 1, "batch": 1, "hidden": 1},
    "one step": {"steps": 1, "batch": 2, "hidden": 21, "directions": 2},
    "one sequence": {"steps": 19, "batch": 1, "hidden": 130, "directions": 2},
    "resets": {"steps": 5, "batch": 45, "hidden": 17, "ragged": True, "resets": True, "directions": 2},
}
SPLITS = [(1, "batch"), (3, "batch"), (2, "units")]


def check(p: Problem, label: str) -> None:
    """Within tolerance of the reference, the same bits on any number of threads."""
    expected, first = layer_checks.solved(p), Arrays()
    for count, split in SPLITS:
        with arrays.poison(), problems.threads(count, split):
            found = layer_checks.check(layer, p, "kernel", f"{label}, {count} threads, {split}", expected)
        first = first or found
        for name, value in found.items():
            np.testing.assert_array_equal(value, first[name], f"{label}, {count} threads, {split}: {name}")


def given(x: np.ndarray, params: Arrays) -> np.ndarray:
    """What the products with ``weight_ih`` of each direction give."""
    return np.concatenate([x @ value.T for name, value in params.items() if name.startswith("weight_ih")], axis=-1)


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_has_its_gradients(cell: str) -> None:
    p = problems.layer_problem(cell, hidden=3, steps=3, directions=2, ragged=True, resets=True, gates_given=True)
    if cell == "slstm":  # whose n begins above 0
        p = p._replace(state=(*p.state[:2], np.abs(p.state[2]) + 0.5, p.state[3]))
    _, tape = problems.outputs(reference, p, training=True)
    found = problems.gradients(reference, p, tape)
    for name, value in problems.layer_differences(reference, p).items():
        assert_close(found[name], value, "differences", "float64", name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        pytest.param("lstm", "float32", marks=pytest.mark.slow),
        pytest.param("gru", "float64", marks=pytest.mark.slow),
        pytest.param("mingru", "float32", marks=pytest.mark.slow),
        pytest.param("time_gap", "float32", marks=pytest.mark.slow),
        pytest.param("gru_reset_before", "float32", marks=pytest.mark.slow),
    ],
)
def test_kernels_equal_the_reference(cell: str, dtype: str, shape: str) -> None:
    p = problems.layer_problem(cell, dtype, gates_given=True, **SHAPES[shape])
    check(p, shape)
    check_tape(layer, p)


@pytest.mark.slow
@pytest.mark.parametrize("tuned", [{"fused_from": 1}, {"fused_from": 1 << 62, "chunk_rows": 14}, {"backward_rows": 20}])
def test_steps_in_chunks(tuned: dict[str, int]) -> None:
    with tuning.replaced(**tuned):
        sizes: dict[str, Any] = {"steps": 7, "batch": 7, "hidden": 40, "directions": 2, "resets": True}
        check(problems.layer_problem("gru", "float64", gates_given=True, **sizes), str(tuned))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"heads": 2, "hidden": 256}, {"heads": 3, "hidden": 12}, {"projection": 7}])
def test_heads_and_projections(sizes: dict[str, Any]) -> None:
    p = problems.layer_problem(
        "lstm", "float32", steps=4, batch=9, directions=2, gates_given=True, **{"hidden": 33} | sizes
    )
    check(p, str(sizes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_equals_one_that_multiplies(cell: str, backend: str, tmp_path: Path) -> None:
    whole = nn.Recurrent(cell, 3, 8, seed=0, dtype="float64", **CELLS[cell])
    own = nn.Recurrent(cell, None, 8, seed=1, dtype="float64", **CELLS[cell])
    own.load_state_dict({name: whole.params[name] for name in own.params})
    x = np.random.default_rng(0).standard_normal((5, 4, 3))
    rows, lengths = given(x, whole.params), [5, 1, 0, 3]
    with gpulstm.use_backend(backend):
        (y, _), vjp = whole.vjp(x, lengths=lengths)
        (found, _), pullback = own.vjp(rows, lengths=lengths)
        assert_close(found, y, "kernel", "float64")
        dx, _, grads = vjp(np.cos(y))
        drows, _, own_grads = pullback(np.cos(y))
        assert drows.shape == rows.shape
        parts = np.split(drows, own.config.directions, axis=-1)
        weights = [whole.params[f"weight_ih_l0{end}"] for end in ("", "_reverse")[: len(parts)]]
        assert_close(sum(part @ w for part, w in zip(parts, weights, strict=True)), dx, "kernel", "float64", "dx")
        for name, value in own_grads.items():
            assert_close(value, grads[name], "kernel", "float64", name)
        if own.config.cell.stages == 1:
            io.save_safetensors(own, tmp_path / "layer.safetensors")
            loaded = io.load_safetensors(tmp_path / "layer.safetensors")
            assert loaded.config == own.config
            np.testing.assert_array_equal(loaded(rows, lengths=lengths)[0], own(rows, lengths=lengths)[0])
    assert repr(own).startswith(f"Recurrent({cell!r}, None, 8")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [None, *NARROW])
@pytest.mark.parametrize("cell", ["lstm", "gru", "mingru", "peephole"])
def test_streams(cell: str, kind: str | None, backend: str) -> None:
    net: Any = nn.Recurrent(cell, None, 40, seed=0)
    rows = np.random.default_rng(0).standard_normal((6, 3, net.config.features)).astype("float32")
    resets = np.zeros((6, 3), bool)
    resets[3, 1] = True
    with gpulstm.use_backend("reference"):
        expected, _ = (net if kind is None else nn.quantize(net, kind))(rows, resets=resets)
    with gpulstm.use_backend(backend):
        net = net if kind is None else nn.quantize(net, kind)
        stream = net.stream(3)
        steps = [stream(x, begins).copy() for x, begins in zip(rows, resets, strict=True)]
        # h is rounded as the weights' kind says
        np.testing.assert_allclose(np.stack(steps), expected, atol=1e-6 if kind is None else 5e-3)
        np.testing.assert_allclose(net(rows, resets=resets)[0], expected, atol=1e-6 if kind is None else 5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "mingru"])
def test_of_torch(cell: str, backend: str) -> None:
    own = gpulstm.torch.Recurrent(cell, None, 2, bidirectional=True, dtype=torch.float64)
    whole = gpulstm.torch.Recurrent(cell, 3, 2, bidirectional=True, dtype=torch.float64)
    own.load_state_dict({name: value for name, value in whole.state_dict().items() if name in own.state_dict()})
    x = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = [value for name, value in whole.named_parameters() if name.startswith("weight_ih")]
    rows = torch.cat([x @ weight.mT for weight in weights], -1).detach().requires_grad_()
    with gpulstm.use_backend(backend):
        assert_close(own(rows)[0].detach(), whole(x)[0].detach(), "torch", "float64")
        assert torch.autograd.gradcheck(lambda rows: own(rows)[0], (rows,))
        assert torch.autograd.gradgradcheck(lambda rows: own(rows)[0], (rows,), fast_mode=True)
        both = torch.func.vmap(lambda rows: own(rows)[0])(torch.stack([rows, 2 * rows]))
        assert_close(both[1].detach(), own(2 * rows)[0].detach(), "torch", "float64")
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, \d+\) or \(T, \d+\), got \(3, 2, 3\)"):
        own(x)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("lstm", None, 8, 2), {}, "num_layers: expected 1 without input_size, .*, got 2"),
        (("mingru", None, 8), {"bias": False}, "bias: expected True with cell 'mingru', .*, got False"),
        (("lstm", 0, 8), {}, "input_size: expected an integer >= 1, got 0"),
        (("lstm", None, None), {}, "hidden_size: expected an integer >= 1, got None"),
    ],
)
def test_what_is_refused(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        nn.Recurrent(*arguments, **options)


@pytest.mark.usefixtures("in_numpy")
def test_wrong_calls(tmp_path: Path) -> None:
    net = nn.Recurrent("lstm", None, 8, seed=0)
    assert "python -m bench" not in net.explain(np.zeros((3, 2, 32), "float32"))
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 32\) or \(T, 32\), got \(3, 2, 8\)"):
        net(np.zeros((3, 2, 8), "float32"))
    with pytest.raises(ValueError, match="input_size: expected a number, since Keras has no layers of pre-activations"):
        io.save_keras(net, tmp_path / "layer.weights.h5")
