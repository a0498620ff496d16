"""In words, which backend computes a call: what :func:`gpulstm.explain` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpulstm_kernels.backend import LayerShape

from . import arrays, dispatch, noise, ops
from .config import Config


def explain(config: Config, params: Mapping[str, np.ndarray], x: Any, backend: str | None = None) -> str:
    """In words: which backend and kernel compute ``x``, why, and why the others do not.

    Raises:
        TypeError, ValueError: as :func:`gpulstm.ops.rnn_forward`.
    """
    like = next(iter(params.values()))
    device, dtype = arrays.device_of(like), ops.dtype_of(params)
    checked, _ = ops.check_input(config, x, dtype, device)
    steps, batch, _ = checked.shape
    matrices = ops.dtype_of_matrices(params, dtype)
    ops.weights_of(config, params, 0, dtype, matrices)
    shape = config.layer_shape(0, steps, batch, dtype, matrices, False, False)
    chosen, why = ops.select_backend(params, shape, device, backend)
    how = chosen.module.describe(shape)
    lines = [f"{chosen.name}: {why}", f"  cell {config.cell.name}, {dtype.name}, first layer: {how}"]
    if config.noise:
        lines.append(f"  noise: {noise.described(config.noise)}; its expectation in inference")
    for name, reason in dispatch.backends().items():
        if name != chosen.name:
            lines.append(f"{name}: not used{_why_not_used(name, reason, shape)}")
    if device == "cpu" and matrices == dtype and (case := _benchmark_case(config, steps, batch, dtype)) is not None:
        lines.append(f"measure it: python -m bench run cpu --case {case}")
    return "\n".join(lines)


def _why_not_used(name: str, reason: str | None, shape: LayerShape) -> str:
    """Why the backend called ``name`` does not compute such a call, where it could not; ``reason``: why not here."""
    if reason is not None:
        return f"; cannot run here: {reason}"
    reason = dispatch.check_backend(name).module.why_not(shape)
    return "" if reason is None else f"; cannot compute this: {reason}"


def _benchmark_case(config: Config, steps: int, batch: int, dtype: np.dtype) -> str | None:
    """Such a call as the benchmark's ``--case`` takes it; None for a cell that others have not."""
    if config.cell.name not in ("lstm", "rnn") or (config.proj_size and config.cell.name != "lstm"):
        return None
    if config.input_size is None:
        return None
    features = {
        "dtype": (dtype.name, "float32"),
        "inputs": (config.input_size, config.hidden_size),
        "cell": (config.cell.name, "lstm"),
        "layers": (config.num_layers, 1),
        "directions": (config.directions, 1),
        "projection": (config.proj_size, 0),
        "bias": (int(config.bias), 1),
        "heads": (config.heads, 1),
    }
    given = [f"{name}={value}" for name, (value, usual) in features.items() if value != usual]
    return ",".join([str(batch), str(steps), str(config.hidden_size), *given])
