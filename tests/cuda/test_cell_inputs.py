"""Cells with more than gates and states, by the public door on a device: as by the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_network import compare, moved, numbers

from gpulstm import arrays, nn, use_backend

SIZES = {"input_size": 3, "hidden_size": 6, "num_layers": 2, "bidirectional": True}


def both(cell: str, **options: Any) -> tuple[Any, Any]:
    here, there = nn.Recurrent(cell, **SIZES, **options, seed=1), nn.Recurrent(cell, **SIZES, **options, device="cuda")
    there.load_state_dict(here.state_dict())
    return here, there


def check(runtime: Any, cell: str, inputs: dict[str, np.ndarray], batch_first: bool = False, heads: int = 1) -> None:
    here, there = both(cell, batch_first=batch_first, heads=heads)
    x, lengths = numbers((4, 5, 3)), None if batch_first else [4, 0, 2, 3, 1]
    resets = np.random.default_rng(2).uniform(size=(4, 5)) < 0.3
    (y, state), vjp = here.vjp(x, None, lengths, resets, inputs=inputs or None, backend="reference")
    on_device: Any = {name: moved(runtime, value) for name, value in inputs.items()}
    (device_y, device_state), device_vjp = there.vjp(moved(runtime, x), None, lengths, resets, inputs=on_device or None)
    compare(runtime, (device_y, device_state), (y, state), "outputs")
    dy = numbers(y.shape, 1)
    compare(runtime, device_vjp(moved(runtime, dy)), vjp(dy), "gradients")


@pytest.mark.parametrize("cell", ["gru", "peephole", "indrnn", "minlstm", "multiplicative_lstm", "layer_norm_gru"])
def test_a_cell_without_inputs(runtime: Any, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")
    check(runtime, cell, {})


@pytest.mark.parametrize("walk", ["step", "block", "grid"])
@pytest.mark.parametrize("heads", [2, 6])
def test_heads(runtime: Any, heads: int, walk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", walk)
    check(runtime, "gru", {}, heads=heads)


@pytest.mark.parametrize("cell", ["multiplicative_lstm", "layer_norm_gru"])
def test_stages_in_one_block(runtime: Any, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "block")
    check(runtime, cell, {})


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 6)])
def test_a_differentiable_input(
    runtime: Any, shape: tuple[int, ...], batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")
    check(runtime, "time_gap", {"gap": np.abs(numbers(shape))}, batch_first)


def test_bools_and_inputs_of_both_widths(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULSTM_WALK", "step")
    drawn = np.random.default_rng(0).uniform(size=(4, 5, 6))
    check(runtime, "zoneout", {"keep_c": drawn < 0.3, "keep_h": drawn[:, :, 0] < 0.5})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_arrays_of_inputs_need(runtime: Any, device: str) -> None:
    library = arrays.library(device)
    parts = [numbers((2, 3, 1)), numbers((2, 3, 4), 1)]
    there = [library.from_host(part) if device == "cuda" else part for part in parts]
    stacked = library.to_host(library.stack(there))
    np.testing.assert_array_equal(stacked, [np.broadcast_to(parts[0], (2, 3, 4)), parts[1]])
    np.testing.assert_array_equal(library.to_host(library.stack(there[1:])), parts[1][None])
    np.testing.assert_array_equal(library.to_host(library.add(there[1], there[1])), 2 * parts[1])
    total = library.to_host(library.sum_features(there[1]))
    np.testing.assert_allclose(total, parts[1].sum(axis=2, keepdims=True), rtol=1e-6)
    bools = parts[1] > 0
    given = library.numbers(library.from_host(bools) if device == "cuda" else bools, np.float32)
    np.testing.assert_array_equal(library.to_host(given), bools.astype(np.float32))


@pytest.mark.parametrize("each", ["step", "sequence"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_noise_has_the_bits_of_the_cpu(runtime: Any, dtype: str, each: str) -> None:
    own, there = arrays.library("cpu"), arrays.library("cuda")
    for shape in ((1, 1, 1), (3, 5, 6), (2, 3, 8)):
        expected, found = np.empty(shape, dtype), there.zeros((2, *shape), dtype)
        given = 9, round(0.3 * 2**24), 0.0, float(np.float32(1 / 0.7)), each == "sequence"
        with use_backend("reference"):
            own.draw_noise(expected, own.counter(4), *given)
        there.draw_noise(found[1], there.counter(4), *given)
        np.testing.assert_array_equal(there.to_host(found)[1], expected)
        assert not there.to_host(found)[0].any()


def test_a_layer_that_draws_noise(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one seed the same masks as on the CPU, and so the same outputs and gradients."""
    monkeypatch.setenv("GPULSTM_WALK", "step")
    here, there = both("zoneout", noise={"keep_c": 0.4, "keep_h": (0.2, "sequence")})
    x = numbers((4, 5, 3))
    (y, state), vjp = here.vjp(x, rng=3, backend="reference")
    (device_y, device_state), device_vjp = there.vjp(moved(runtime, x), rng=3)
    compare(runtime, (device_y, device_state), (y, state), "outputs")
    dy = numbers(y.shape, 1)
    compare(runtime, device_vjp(moved(runtime, dy)), vjp(dy), "gradients")
    compare(runtime, there(moved(runtime, x)), here(x, backend="reference"), "inference")
