"""torch state dicts in and out, and files that hold one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import cells, checks, nn
from .common import check_target, on_host, require
from .safetensors_files import load_safetensors
from .torch_names import from_state_dict


def load_torch(
    source: Any,
    prefix: str = "",
    *,
    cell: str | cells.Cell | None = None,
    batch_first: bool = False,
    dtype: Any = None,
    device: str | None = None,
) -> nn.Recurrent:
    """A layer from a torch state dict, or from a safetensors file that holds one.

    Args:
        source: a dict of torch tensors or NumPy arrays, or the path of a ``.safetensors`` file.
        prefix: what the layer's names begin with, such as ``"encoder.lstm."``; other names are left alone.
        cell: of the layer, or its name, where it is no LSTM, GRU or RNN of tanh: ``"rnn_relu"`` for
            ``nonlinearity="relu"``, whose names and shapes are the same, or a cell whose parameters have other names.
        batch_first: of the layer: a state dict does not say.
        dtype: of the layer. By default that of the weights, and float32 for half types on a CPU (exact).
        device: of the layer.

    Returns:
        ``gpulstm.LSTM``, ``gpulstm.GRU`` or ``gpulstm.RNN``, or ``gpulstm.nn.Recurrent`` for another cell and with
        heads: layers, directions, ``bias``, sizes, ``proj_size`` and ``heads`` follow from names and shapes, and so
        does a cell that is not given, of four gates, three or one.

    Raises:
        ValueError: an unknown cell, no recurrent layer under ``prefix``, names missing or left over, shapes that
            contradict each other or belong to another cell, NaN or infinite values, a pickle (``.pt``, ``.pth``).
        TypeError: a source or value that is none of these.
    """
    checks.text(prefix, "prefix")
    checks.flag(batch_first, "batch_first")
    of = None if cell is None else cells.get(cell)
    check_target(dtype, device)
    if isinstance(source, Mapping):
        return from_state_dict(source, prefix, cell=of, batch_first=batch_first, dtype=dtype, device=device)
    return load_safetensors(source, prefix, cell=of, batch_first=batch_first, dtype=dtype, device=device)


def save_torch(layer: nn.Recurrent, prefix: str = "") -> dict[str, Any]:
    """The parameters of ``layer`` as torch tensors (copies on the CPU) under ``prefix`` and torch's names.

    ``module.load_state_dict(save_torch(layer))``; NumPy arrays under the same names are ``layer.state_dict()``.

    Raises:
        TypeError: ``layer`` is no recurrent layer.
        ValueError: a parameter that is not finite.
        ImportError: torch is not installed.
    """
    if not isinstance(layer, nn.Recurrent):
        raise TypeError(f"layer: expected a recurrent layer such as gpulstm.LSTM, got {type(layer).__name__}")
    checks.text(prefix, "prefix")
    torch = require("torch", "torch")
    return {prefix + name: torch.from_numpy(value.copy()) for name, value in on_host(layer).items()}
