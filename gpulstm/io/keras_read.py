"""Keras in: the LSTM, GRU and SimpleRNN layers of an archive or a weights file, Bidirectional ones too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import checks, nn
from ..cells import Cell, gru, lstm, rnn, rnn_relu
from ..config import Config
from . import gate_order
from .common import Arrays, PathLike, WeightsError, check_target, finite, free_name, path_of, recurrent
from .keras_files import Found, found_in

LAYOUTS = ("keras", "cudnn")
_CELLS = {4: lstm, 3: gru, 1: rnn}  # by gates, with the activations that Keras has by default
_LSTM: dict[str, Cell] = {"tanh": lstm}
_GRU: dict[str, Cell] = {"tanh": gru}
_RNN: dict[str, Cell] = {"tanh": rnn, "relu": rnn_relu}
_CLASSES = {  # the cells of a class by their activation
    "LSTM": _LSTM,
    "LSTMCell": _LSTM,
    "CuDNNLSTM": _LSTM,
    "GRU": _GRU,
    "GRUCell": _GRU,
    "SimpleRNN": _RNN,
    "SimpleRNNCell": _RNN,
}
_EXPECTED = "expected LSTM, GRU or SimpleRNN"
_BEFORE = "is not supported; expected True, where the reset gate scales the product of h"


def load_keras(
    path: PathLike,
    *,
    layers: Iterable[str] | None = None,
    layout: str | None = None,
    dtype: Any = None,
    device: str | None = None,
) -> dict[str, nn.Recurrent]:
    """The recurrent layers of a Keras model, by Keras's names of them.

    Args:
        path: a ``.keras`` archive or a ``.weights.h5`` file of Keras 3, or an HDF5 file of Keras 2.
        layers: the names of those that are wanted; None for all of them.
        layout: how kernels lie: ``"keras"``, or ``"cudnn"`` as in a CuDNNLSTM. By default the bias tells: two of
            them (8H) are cuDNN's.
        dtype: of the layers. By default that of the weights, and float32 for float16 on a CPU (exact).
        device: of the layers.

    HDF5 is read by a Python process of its own, since damaged bytes can make its library loop for ever: it is ended
    after 5 seconds, and a second for each further 32 MiB.

    Returns:
        ``gpulstm.LSTM``, ``gpulstm.GRU`` and ``gpulstm.RNN`` with ``batch_first=True``, as Keras takes (B, T, I). A
        Bidirectional is one layer of two directions. They give every step and the states, whatever
        ``return_sequences`` says; Keras's dropout and masks are not theirs. A file of weights alone does not say
        activations, nor ``reset_after`` of a GRU without bias: Keras's defaults are taken.

    Raises:
        ValueError: a file that is cut short, damaged or not Keras's, no recurrent layer in it, a layer that gpulstm
            does not compute (a GRU with ``reset_after=False``, other activations, ``go_backwards``, another
            ``merge_mode``; named, with the reason), weights of another layout or not finite.
        TypeError: an argument of another type.
        ImportError: h5py is not installed.
    """
    path = path_of(path)
    if layout is not None:
        checks.choice(layout, "layout", LAYOUTS)
    chosen = None if layers is None else checks.texts(layers, "layers")
    check_target(dtype, device)
    taken: dict[str, int] = {}  # of an inner model, where names may come again
    found = {free_name(entry.name, taken): entry for entry in found_in(path)}
    if not found:
        raise WeightsError(f"{path}: expected a model with LSTM, GRU or SimpleRNN layers, found none")
    wanted = list(found) if chosen is None else chosen
    if unknown := [name for name in wanted if name not in found]:
        raise WeightsError(f"{path}: layers: expected some of {list(found)}, got {unknown}")
    loaded = {}
    for name in wanted:
        try:
            loaded[name] = _layer(found[name], layout, dtype, device)
        except ValueError as error:
            raise WeightsError(f"{path}: layer {name!r}: {error}") from error
    return loaded


def _layer(found: Found, layout: str | None, dtype: Any, device: str | None) -> nn.Recurrent:
    if found.why_not:
        raise WeightsError(f"{found.why_not} is not supported; {_EXPECTED}")
    words = [] if found.words is None else _checked(found.words, len(found.weights))
    for entry, _ in words:
        if entry.get("class_name") == "CuDNNLSTM":
            if layout == "keras":
                raise WeightsError("layout: expected 'cudnn' for a CuDNNLSTM, got 'keras'")
            layout = "cudnn"
    kernel, recurrent_kernel = _matrices(found.weights[0])
    hidden = recurrent_kernel.shape[0]
    gates, rest = divmod(recurrent_kernel.shape[1], hidden)
    if rest or gates not in _CELLS:
        raise WeightsError(
            f"recurrent kernel: expected shape (H, 4H) for an LSTM, (H, 3H) for a GRU or (H, H) for a SimpleRNN, got "
            f"{recurrent_kernel.shape}"
        )
    cell = words[0][1] if words else _CELLS[gates]
    for entry, of in words:
        if of is not cell:
            raise WeightsError(f"expected one cell in both directions, got {cell.name} and {of.name}")
        if len(of.gates_of_x) != gates:
            raise WeightsError(f"{entry['class_name']}: expected weights of its own, got {gates} gates a unit")
    config = Config(
        cell,
        kernel.shape[0],
        hidden,
        bias=len(found.weights[0]) == 3,
        batch_first=not any(entry["config"].get("time_major") for entry, _ in words),
        bidirectional=len(found.weights) == 2,
    )
    params: Arrays = {}
    for end, weights in zip(config.suffixes()[0], found.weights, strict=True):
        if len(weights) != len(found.weights[0]):
            raise WeightsError("bias: expected one in both directions or in none")
        params |= {name + end: value for name, value in _torch_names(weights, cell, hidden, layout).items()}
    return recurrent(config, params, dtype=dtype, device=device)


def _matrices(weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if len(weights) not in (2, 3):
        raise WeightsError(f"expected a kernel, a recurrent kernel and maybe a bias, got {len(weights)} weights")
    for name, value in zip(("kernel", "recurrent kernel"), weights, strict=False):
        if value.ndim != 2 or value.size == 0:
            raise WeightsError(f"{name}: expected two axes, none of them empty, got shape {value.shape}")
    return weights[0], weights[1]


def _torch_names(weights: list[np.ndarray], cell: Cell, hidden: int, layout: str | None) -> Arrays:
    """One direction's weights as gpulstm has them."""
    kernel, recurrent_kernel = _matrices(weights)
    order = gate_order.KERAS[cell.name]
    rows = len(order) * hidden
    for name, value in zip(("kernel", "recurrent kernel", "bias"), weights, strict=False):
        finite(value, name)
    if kernel.shape[1] != rows or recurrent_kernel.shape != (hidden, rows):
        raise WeightsError(
            f"kernel: expected shapes (I, {rows}) and ({hidden}, {rows}), got {kernel.shape} and "
            f"{recurrent_kernel.shape}"
        )
    bias = weights[2] if len(weights) == 3 else None
    single = bias is not None and bias.shape == (rows,)
    if bias is not None and not single and bias.size != 2 * rows:
        raise WeightsError(f"bias: expected shape ({rows},), or two of them, got {bias.shape}")
    if cell is gru and bias is not None and single:
        raise WeightsError(
            f"bias: expected shape (2, {rows}), as of reset_after = True, got {bias.shape}; False {_BEFORE}"
        )
    if layout is None:
        layout = "cudnn" if bias is not None and bias.shape == (2 * rows,) else "keras"
    if layout == "cudnn" and (cell is not lstm or single):
        found = f"a bias of shape ({rows},)" if single else f"a cell {cell.name!r}"
        raise WeightsError(f"layout: 'cudnn' is an LSTM's, with two biases ({2 * rows},); got {found}")
    if layout == "cudnn":
        matrices = [gate_order.from_cudnn(value, len(order)) for value in (kernel, recurrent_kernel)]
    else:
        matrices = [np.ascontiguousarray(value.T) for value in (kernel, recurrent_kernel)]
    params = dict(zip(("weight_ih", "weight_hh"), matrices, strict=True))
    if bias is not None:
        params["bias_ih"], params["bias_hh"] = (bias, np.zeros_like(bias)) if single else bias.reshape(2, rows)
    return {name: gate_order.reordered(value, order, gate_order.TORCH[cell.name]) for name, value in params.items()}


_Direction = tuple[dict[str, Any], Cell]  # its entry in the configuration, and what it computes


def _checked(words: dict[str, Any], directions: int) -> list[_Direction]:
    """A layer's directions, if gpulstm computes what their entries say."""
    if directions == 1:
        return [_direction(words, backwards=False)]
    if words.get("class_name") != "Bidirectional":
        raise WeightsError(f"{words.get('class_name')} is not supported; expected Bidirectional")
    config = _config(words)
    if config.get("merge_mode", "concat") != "concat":
        raise WeightsError(f"merge_mode = {config['merge_mode']!r} is not supported; expected 'concat'")
    entries = [_direction(config.get("layer"), backwards=False)]
    if "backward_layer" in config:
        entries.append(_direction(config["backward_layer"], backwards=True))
    return entries


def _direction(words: Any, *, backwards: bool) -> _Direction:
    config = _config(words)
    cell = _cell(config.get("cell") if words.get("class_name") == "RNN" else words)  # an RNN is one of one cell
    if bool(config.get("go_backwards", False)) != backwards:
        raise WeightsError(f"go_backwards = {config.get('go_backwards')} is not supported here; expected {backwards}")
    return words, cell


def _cell(words: Any) -> Cell:
    """The cell that an entry is of."""
    config, name = _config(words), words.get("class_name")
    if name not in tuple(_CLASSES) or words.get("registered_name") not in (None, name):
        raise WeightsError(f"{words.get('registered_name') or name} is not supported; {_EXPECTED}")
    activation = _activation(config, "activation", tuple(_CLASSES[name]))
    _activation(config, "recurrent_activation", ("sigmoid",))
    cell = _CLASSES[name][activation]
    if cell is gru and config.get("reset_after", False) is not True:  # the first versions had no other
        raise WeightsError(f"reset_after = {config.get('reset_after', False)!r} {_BEFORE}")
    return cell


def _activation(config: dict[str, Any], key: str, known: tuple[str, ...]) -> str:
    value = config.get(key, known[0])
    value = value.get("config", value) if isinstance(value, dict) else value
    if value not in known:
        raise WeightsError(f"{key} = {value!r} is not supported; expected {' or '.join(map(repr, known))}")
    return str(value)


def _config(words: Any) -> dict[str, Any]:
    config = words.get("config") if isinstance(words, dict) else None
    if not isinstance(config, dict):
        raise WeightsError(f"configuration: expected a layer's class_name and config, got {str(words)[:80]}")
    return config
