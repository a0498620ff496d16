"""Layers on a device that run backwards, come from files and go to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_network import OPTIONS, compare, moved, numbers, pair

import gpulstm
from gpulstm import io, nn


@pytest.mark.parametrize("options", ["deep", "batch first"])
@pytest.mark.parametrize("lengths", [None, [3, 1, 4]])
def test_reversed(runtime: Any, options: str, lengths: list[int] | None) -> None:
    here, there = (nn.Reversed(layer) for layer in pair(OPTIONS[options]))
    shape = (3, 4, 5) if options == "batch first" else (4, 3, 5)
    x, dy = numbers(shape), numbers((*shape[:2], 12), 1)
    (y, state), pullback = here.vjp(x, lengths=lengths)
    (y_there, state_there), pullback_there = there.vjp(moved(runtime, x), lengths=lengths)
    compare(runtime, (y_there, state_there), (y, state), "output")
    compare(runtime, pullback_there(moved(runtime, dy)), pullback(dy), "gradient")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_files(runtime: Any, dtype: str, tmp_path: Path) -> None:
    """Half types are widened on the way out, and are themselves again on the way in."""
    layer = gpulstm.LSTM(5, 8, dtype=dtype, device="cuda", seed=0)
    io.save_safetensors(layer, tmp_path / "m.safetensors")
    back = io.load_safetensors(tmp_path / "m.safetensors", dtype=dtype, device="cuda")
    assert back.device == "cuda"
    for name, value in layer.params.items():
        assert back.params[name].dtype == value.dtype
        np.testing.assert_array_equal(runtime.to_host(back.params[name]), runtime.to_host(value))
    assert io.load_safetensors(tmp_path / "m.safetensors").params["weight_hh_l0"].dtype == np.float32
    host = {name: runtime.to_host(value) for name, value in layer.params.items()}
    loaded = io.load_torch(host, device="cuda")
    assert loaded.params["weight_hh_l0"].dtype == host["weight_hh_l0"].dtype
