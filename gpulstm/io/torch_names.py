"""The names of torch.nn.LSTM's and torch.nn.RNN's parameters: with their shapes they tell a layer's configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import arrays, cells, checks, nn
from ..cells import Cell
from ..config import Config
from .common import Arrays, WeightsError, finite, recurrent

_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)(_reverse)?")
_CELLS = {4: cells.lstm, 1: cells.rnn}


def from_state_dict(
    state: Mapping[str, Any],
    prefix: str = "",
    *,
    batch_first: bool = False,
    dtype: Any = None,
    device: str | None = None,
) -> nn.Recurrent:
    """The layer whose parameters, under ``prefix`` and torch's names, are in ``state``.

    Raises:
        TypeError, ValueError: as :func:`gpulstm.io.load_torch`.
    """
    params = under(state, prefix)
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    config = infer(shapes, prefix, batch_first=batch_first)
    return recurrent(config, params, dtype=dtype, device=device)


def under(state: Mapping[str, Any], prefix: str) -> Arrays:
    """The values under ``prefix`` as finite NumPy arrays, without it; everything else is left out.

    Raises:
        WeightsError: no value there has a name of a recurrent layer, or one there has another.
    """
    if not all(isinstance(name, str) for name in state):
        raise TypeError("state_dict: expected names as keys, got other types too")
    inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not any(_NAME.fullmatch(name) for name in inside):
        found = sorted({name[: match.start()] for name in state if (match := _NAME.search(name))})
        hint = f"the prefixes with one are {found}" if found else f"the names are {sorted(state)[:12]}"
        raise WeightsError(f"prefix: expected one of a recurrent layer, got {prefix!r}; {hint}")
    strange = sorted(name for name in inside if not _NAME.fullmatch(name))
    if strange:
        raise WeightsError(
            f"state_dict: expected torch's names (weight_ih_l0, ...) under prefix {prefix!r}, got {strange[:12]} too"
        )
    return {name: finite(_to_numpy(value, prefix + name), prefix + name) for name, value in inside.items()}


def infer(
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    cell: Cell | None = None,
    *,
    batch_first: bool = False,
    dropout: float = 0.0,
) -> Config:
    """The configuration of the layer whose parameters have these ``shapes``; ``cell`` if it is known already.

    Raises:
        WeightsError: no such layer; the message names the parameter.
    """
    for name, shape in shapes.items():
        if len(shape) != (1 if name.startswith("bias") else 2):
            raise WeightsError(f"{prefix}{name}: expected {'one axis' if 'bias' in name else 'two axes'}, got {shape}")
    for first in ("weight_ih_l0", "weight_hh_l0"):
        if first not in shapes:
            raise WeightsError(
                f"state_dict: {prefix}{first} is missing; got {sorted(prefix + name for name in shapes)}"
            )
    rows, inputs = shapes["weight_ih_l0"]
    proj_size, hidden = shapes.get("weight_hr_l0", (0, shapes["weight_hh_l0"][1]))
    gates, rest = divmod(rows, hidden) if hidden else (0, 0)
    known = _CELLS if cell is None else {len(cell.gates): cell}
    if rest or gates not in known:
        hint = "; three is a GRU, which gpulstm does not have" if gates == 3 and not rest else ""
        raise WeightsError(
            f"{prefix}weight_ih_l0: expected {hidden} rows a gate, "
            f"{' or '.join(f'{n} gates for {of.name}' for n, of in known.items())}, got {rows} rows{hint}"
        )
    matches = [match for name in shapes if (match := _NAME.fullmatch(name))]
    last = max(matches, key=lambda match: int(match[2]))
    if int(last[2]) >= len(shapes):  # a number that is made up must not cost time
        raise WeightsError(f"{prefix}{last[0]}: expected fewer layers than the {len(shapes)} parameters")
    try:
        config = Config(
            known[gates],
            inputs,
            hidden,
            1 + int(last[2]),
            bias="bias_ih_l0" in shapes or "bias_hh_l0" in shapes,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=any(match[3] for match in matches),
            proj_size=proj_size,
        )
    except ValueError as error:
        raise WeightsError(f"{prefix}weight_ih_l0: {error}") from error
    expected = config.shapes()
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or extra:
        raise WeightsError(f"state_dict: under prefix {prefix!r} missing {missing}, unexpected {extra}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise WeightsError(f"{prefix}{name}: expected shape {shape}, got {shapes[name]}")
    return config


def _to_numpy(value: Any, name: str) -> np.ndarray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16, and float32 holds each of its values
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    array = arrays.on_host(value, name)
    if not checks.is_float(array.dtype):
        raise TypeError(f"{name}: expected floating point, got dtype {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
