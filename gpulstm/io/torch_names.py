"""The names of the parameters of torch.nn.LSTM, GRU and RNN: with their shapes they tell a layer's configuration.

A cell's own parameters have names of the same form, such as ``p_i_l0_reverse``.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import arrays, cells, checks, nn
from .. import noise as noises
from ..cells import Cell
from ..config import Config
from .common import Arrays, WeightsError, finite, recurrent

_CELLS = {4: cells.lstm, 3: cells.gru, 1: cells.rnn}
_ROLES = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")


def _pattern(roles: Iterable[str]) -> re.Pattern[str]:
    """A parameter's name: what it is, its layer, its direction."""
    return re.compile(rf"({'|'.join(map(re.escape, roles))})_l(\d+)(_reverse)?")


_NAME = _pattern(_ROLES)


def from_state_dict(
    state: Mapping[str, Any],
    prefix: str = "",
    *,
    cell: Cell | None = None,
    batch_first: bool = False,
    dtype: Any = None,
    device: str | None = None,
) -> nn.Recurrent:
    """The layer whose parameters, under ``prefix`` and torch's names, are in ``state``; of ``cell``, if that is known.

    Raises:
        TypeError, ValueError: as :func:`gpulstm.io.load_torch`.
    """
    params = under(state, prefix, cell)
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    config = infer(shapes, prefix, cell, batch_first=batch_first)
    return recurrent(config, params, dtype=dtype, device=device)


def under(state: Mapping[str, Any], prefix: str, cell: Cell | None = None) -> Arrays:
    """The values under ``prefix`` as finite NumPy arrays, without it; everything else is left out.

    Raises:
        WeightsError: no value there has a name of a recurrent layer, or one there has another.
    """
    if not all(isinstance(name, str) for name in state):
        raise TypeError("state_dict: expected names as keys, got other types too")
    inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    known = _NAME if cell is None else _pattern(_ROLES + cell.own)
    if not any(known.fullmatch(name) for name in inside):
        found = sorted({name[: match.start()] for name in state if (match := _NAME.search(name))})
        hint = f"the prefixes with one are {found}" if found else f"the names are {sorted(state)[:12]}"
        raise WeightsError(f"prefix: expected one of a recurrent layer, got {prefix!r}; {hint}")
    strange = sorted(name for name in inside if not known.fullmatch(name))
    if strange:
        own = "" if cell is None else "".join(f", {name}_l0" for name in cell.own)
        hint = "; parameters of a cell's own need cell=..." if cell is None else ""
        raise WeightsError(
            f"state_dict: expected torch's names (weight_ih_l0, ...{own}) under prefix {prefix!r}, got {strange[:12]} "
            f"too{hint}"
        )
    return {name: finite(_to_numpy(value, prefix + name), prefix + name) for name, value in inside.items()}


def infer(
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    cell: Cell | None = None,
    *,
    batch_first: bool = False,
    dropout: float = 0.0,
    weight_dropout: float = 0.0,
    gates_given: bool = False,
    noise: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of the layer whose parameters have these ``shapes``; ``cell`` if it is known already.

    ``gates_given``: whether it is a layer without ``weight_ih``, of a known cell.

    Raises:
        WeightsError: no such layer; the message names the parameter.
    """
    known = _CELLS if cell is None else {len(cell.gates_of_x): cell}
    pattern = _NAME if cell is None else _pattern(_ROLES + cell.own)
    matches = [match for name in shapes if (match := pattern.fullmatch(name))]
    for match in matches:
        _check_axes(match, shapes[match[0]], prefix, () if cell is None else cell.params)
    multiplied = cell is None or bool(cell.gates_of_h)  # h is, by recurrent weights
    checks.flag(gates_given, "gates_given")
    for first in (*["weight_ih_l0"] * (not gates_given), *["weight_hh_l0"] * multiplied):
        if first not in shapes:
            raise WeightsError(
                f"state_dict: {prefix}{first} is missing; got {sorted(prefix + name for name in shapes)}"
            )
    n = next(iter(known))
    rows, inputs = (n * _units_of_given(shapes, known[n]), None) if gates_given else shapes["weight_ih_l0"]
    heads, hidden = 1, rows // n
    if multiplied:
        *blocks, _, hidden = shapes["weight_hh_l0"]
        heads = blocks[0] if blocks else 1
    proj_size, hidden = shapes.get("weight_hr_l0", (0, heads * hidden))
    gates, rest = divmod(rows, hidden) if hidden else (0, 0)
    if rest or gates not in known:
        raise WeightsError(
            f"{prefix}weight_ih_l0: expected {hidden} rows a gate, "
            f"{' or '.join(f'{n} gates for {of.name}' for n, of in known.items())}, got {rows} rows"
        )
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
            weight_dropout=weight_dropout,
            bidirectional=any(match[3] for match in matches),
            proj_size=proj_size,
            heads=heads,
            noise=noises.settings(known[gates], noise),
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


def _units_of_given(shapes: Mapping[str, tuple[int, ...]], cell: Cell) -> int:
    """H of a layer without ``weight_ih``; 0 where no name says so."""
    if "weight_hr_l0" in shapes:
        return shapes["weight_hr_l0"][1]
    if cell.gates_of_h:
        return shapes["weight_hh_l0"][-1] * math.prod(shapes["weight_hh_l0"][:-2])
    of_params = [n for name in cell.params for n in shapes.get(f"{name}_l0", ())]
    of_bias = [n // len(cell.gates_of_x) for n in shapes.get("bias_ih_l0", ())]
    return next(iter([*of_params, *of_bias]), 0)


def _check_axes(match: re.Match[str], shape: tuple[int, ...], prefix: str, vectors: tuple[str, ...]) -> None:
    """Refuse a parameter that has another number of axes; recurrent weights with heads have three, ``vectors`` one."""
    matrix = match[1].startswith("weight") and match[1] not in vectors
    if len(shape) != (2 if matrix else 1) and not (match[1] == "weight_hh" and len(shape) == 3):
        raise WeightsError(f"{prefix}{match[0]}: expected {'two axes' if matrix else 'one axis'}, got {shape}")


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
