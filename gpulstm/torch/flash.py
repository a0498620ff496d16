"""``flashrnn``: the function of FlashRNN (Pöppel et al. 2024) over gpulstm's kernels, with its layouts and equations.

Letters of layouts are FlashRNN's: B batch, T steps, G gates, H heads, D units of a head, P the same before the step,
S states. With raw = Wx + R·y + b of the step before, σ the logistic function:

===== ========================================== =================================================================
lstm  gates i f z o, states y c                  c' = σ(f)·c + σ(i)·tanh(z), y = σ(o)·tanh(c')
slstm gates i f z o, states y c n m              m' = i where n is zero everywhere, else max(i, log σ(f) + m);
                                                 f, i = exp(log σ(f) + m - m'), exp(i - m'); c' = f·c + i·tanh(z);
                                                 n' = max(f·n + i, 1); y = σ(o)·c'/n'
gru   Wx r z n, R g r z, b g r z n, state y      y' = σ(z)·y + (1 - σ(z))·tanh(n + σ(r)·g)
elman gate g, state y                            y' = tanh(g)
===== ========================================== =================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell, scans
from gpulstm_kernels.cells.slstm_flashrnn import slstm_flashrnn

from .. import cells, checks, dispatch
from . import bridge, equations
from .autograd import computes_heads
from .stack import run_layer
from .tensors import HALVES, States, check_dense, check_part

BACKENDS = ("vanilla", "vanilla_fwbw", "cuda", "cuda_fused", "triton_fused")
"""FlashRNN's names: of each of them gpulstm's own choice takes the place."""
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_LAYOUTS = {
    "input_shape": ("BTGHD", "TBGHD"),
    "recurrent_shape": ("GHDP", "HGDP", "HPGD", "HPDG"),
    "bias_shape": ("GHD", "HGD", "HDG"),
    "output_shape": ("SBTHD", "SBHTD", "STBHD"),
}
# What a FlashRNNConfig may ask for beside, and how it says that it does not.
_REFUSED = {
    "gradient_recurrent_cut": False,
    "gradient_recurrent_clipval": None,
    "forward_clipval": None,
    "initial_val": 0.0,
    "trainable_r": True,
    "trainable_b": True,
}


class _Function(NamedTuple):
    """A cell of gpulstm's, and how many states, gates of Wx, of R and biases FlashRNN has of it."""

    cell: Cell
    states: int
    of_x: int
    of_h: int
    biases: int


_FUNCTIONS = {
    "lstm": _Function(cells.lstm, 2, 4, 4, 4),
    "gru": _Function(cells.gru, 1, 3, 3, 4),
    "elman": _Function(cells.rnn, 1, 1, 1, 1),
    "slstm": _Function(cells.slstm, 4, 4, 4, 4),
}


def flashrnn(
    Wx: Tensor,
    R: Tensor,
    b: Tensor,
    states: Tensor | None = None,
    function: str = "lstm",
    config: Any = None,
    backend: str | None = None,
    dtype: str | None = None,
    *,
    input_shape: str = "BTGHD",
    recurrent_shape: str = "GHDP",
    bias_shape: str = "GHD",
    output_shape: str = "SBTHD",
    every_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """``every, last = flashrnn(Wx, R, b)``: FlashRNN's function, differentiable; change one import.

    Args:
        Wx: what the input gives to the gates, (B, T, G, H, D).
        R: recurrent weights of each head, (G, H, D, P), P = D.
        b: biases (G, H, D).
        states: the initial ones, (S, B, 1, H, D); None for zeros.
        function: ``"lstm"``, ``"slstm"``, ``"gru"`` or ``"elman"``; their gates and states are in the module.
        config: a ``FlashRNNConfig``, whose function and layouts are taken in the place of these arguments.
        backend: a name of FlashRNN's, in whose place gpulstm chooses, or the name of one of gpulstm's backends.
        dtype: a name of FlashRNN's. What is computed has the dtype of ``Wx`` whatever it is.
        input_shape, recurrent_shape, bias_shape, output_shape: the order of the axes of ``Wx``, ``R``, ``b``, and of
            the states.
        every_state: whether the first result holds all states. The walk keeps y alone: the other states of all steps
            cost a product more and a scan each. False: that result is y, with S = 1.

    Returns:
        The states after every step (S, B, T, H, D), and the last ones (S, B, 1, H, D), laid out as ``output_shape``.

    Raises:
        TypeError: what is no tensor, or of another dtype than ``Wx``.
        ValueError: an unknown function, backend, dtype or layout, a shape or device that does not fit, a config that
            asks for clipping or for what else there is not; the message names the argument.
    """
    layouts = dict(zip(_LAYOUTS, (input_shape, recurrent_shape, bias_shape, output_shape), strict=True))
    if config is not None:
        function, layouts = _configured(config)
    for name, layout in layouts.items():
        checks.choice(layout, name, _LAYOUTS[name])
    known = _FUNCTIONS[checks.choice(function, "function", tuple(_FUNCTIONS))]
    if backend is not None:
        checks.choice(backend, "backend", (*BACKENDS, *dispatch.backends()))
    if dtype is not None:
        checks.choice(dtype, "dtype", _DTYPES)
    checks.flag(every_state, "every_state")
    Wx, R, b, states = _checked(Wx, R, b, states, known, layouts)
    own = backend is not None and backend not in BACKENDS
    with dispatch.use_backend(backend) if own and backend is not None else nullcontext():
        y, last = _layer(known, Wx, R, b, states)
        every = [y, *_carried(known, Wx, R, b, states, y)] if every_state else [y]
    outside = ["SBTHD".index(axis) for axis in layouts["output_shape"]]
    together = torch.stack(every).transpose(1, 2).unflatten(-1, Wx.shape[3:])
    final = torch.stack(last).transpose(1, 2).unflatten(-1, Wx.shape[3:])
    return together.permute(outside), final.permute(outside)


def _configured(config: Any) -> tuple[str, dict[str, str]]:
    """The function and the layouts of a ``FlashRNNConfig``."""
    missing = [name for name in ("function", *_LAYOUTS) if not hasattr(config, name)]
    if missing:
        raise TypeError(f"config: expected None or a FlashRNNConfig, got {checks.shown(config)}")
    for name, usual in _REFUSED.items():
        if getattr(config, name, usual) != usual:
            raise ValueError(f"config: {name}: expected {usual}, got {checks.shown(getattr(config, name))}")
    return config.function, {name: getattr(config, name) for name in _LAYOUTS}


def _checked(
    Wx: Any, R: Any, b: Any, states: Any, known: _Function, layouts: dict[str, str]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Wx (T, B, G, H, D), R (G, H, D, P), b (G, H, D) and states (S, 1, B, H·D)."""
    if not isinstance(Wx, Tensor):
        raise TypeError(f"Wx: expected a tensor, got {type(Wx).__name__}")
    check_dense(Wx, "Wx")
    order = layouts["input_shape"]
    sizes = dict(zip(order, Wx.shape, strict=False))
    expected = ", ".join(str(known.of_x) if axis == "G" else axis for axis in order)
    if Wx.dim() != 5 or sizes["G"] != known.of_x or 0 in (sizes["T"], sizes["H"], sizes["D"]):
        raise ValueError(f"Wx: expected shape ({expected}), none of T, H and D 0, got {tuple(Wx.shape)}")
    sizes |= {"P": sizes["D"], "S": known.states}

    def ordered(tensor: Any, name: str, layout: str, inside: str, **own: int) -> Tensor:
        check_part(tensor, name, Wx, tuple((sizes | own)[axis] for axis in layout))
        permuted: Tensor = tensor.permute([layout.index(axis) for axis in inside])
        return permuted

    R = ordered(R, "R", layouts["recurrent_shape"], "GHDP", G=known.of_h)
    b = ordered(b, "b", layouts["bias_shape"], "GHD", G=known.biases)
    if states is not None:
        states = ordered(states, "states", layouts["output_shape"], "STBHD", T=1).flatten(3)
    return Wx.permute([order.index(axis) for axis in "TBGHD"]), R, b, states


def _layer(known: _Function, Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None) -> tuple[Tensor, States]:
    """y (T, B, H·D), and the final states (1, B, H·D)."""
    cell, inputs, bias_ih = known.cell, None, torch.zeros_like(b)
    if cell is cells.gru:  # whose gates of h are r, z, g here
        R, b, bias_ih = R.roll(-1, 0), b[:3].roll(-1, 0), torch.cat([torch.zeros_like(b[:2]), b[3:]])
    if states is None:
        state = tuple(Wx.new_zeros((known.states, 1, Wx.shape[1], Wx.shape[3] * Wx.shape[4])))
    else:
        state = tuple(states)
        if cell is cells.slstm:
            cell, inputs = slstm_flashrnn, _first(Wx, states)
    key, heads = equations.prepare(cell), R.shape[1]
    if heads == 1:
        weight = R.flatten(0, 2)
    elif computes_heads(bridge.backend_device(Wx.device), key, Wx.dtype):
        weight = R.transpose(0, 1).flatten(1, 2)
    else:
        weight = torch.einsum("ghdp,hk->ghdkp", R, torch.eye(heads, dtype=R.dtype, device=R.device))
        weight = weight.flatten(3).flatten(0, 2)
    weights = [weight, bias_ih.flatten(), b.flatten()]
    return run_layer(key, Wx.flatten(2), state, weights, None, inputs, None, "Wx", True)


def _first(Wx: Tensor, states: Tensor | None) -> Tensor:
    """The input ``first`` (1, T, B, 1) of the sLSTM's cells: 1 at the first step, if n is zero everywhere."""
    steps, batch = Wx.shape[:2]
    begins = Wx.new_ones(()) if states is None else (states[2] == 0).all().to(Wx.dtype)
    return torch.cat([begins.expand(1, 1, batch, 1), Wx.new_zeros((1, steps - 1, batch, 1))], dim=1)


def _carried(known: _Function, Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None, y: Tensor) -> Sequence[Tensor]:
    """The states beside ``y`` after every step, (T, B, H·D) each: with y known at all steps, one product and scans."""
    if known.states == 1:
        return []
    dtype = torch.float32 if y.dtype in HALVES else y.dtype
    with torch.autocast(Wx.device.type, enabled=False):
        if states is None:
            initial = torch.zeros_like(y[:1]).to(dtype).expand(known.states, *y[:1].shape)
        else:
            initial = states.to(dtype)
        before = torch.cat([initial[0], y[:-1].to(dtype)]).unflatten(-1, Wx.shape[3:])
        of_h = torch.einsum("tbhp,ghdp->tbghd", before, R[:3].to(dtype))
        i, f, z = (Wx[:, :, :3].to(dtype) + of_h + b[:3].to(dtype)).flatten(3).unbind(2)
        if known.cell is cells.lstm:
            return [_scan(scans.linear_scan, f.sigmoid(), i.sigmoid() * z.tanh(), initial[1]).to(y.dtype)]
        log_f = torch.nn.functional.logsigmoid(f)
        m = _scan(scans.maximum_scan, i, log_f, initial[3], _first(Wx, states).to(dtype))
        forget, add = (log_f + torch.cat([initial[3], m[:-1]]) - m).exp(), (i - m).exp()
        c = _scan(scans.linear_scan, forget, add * z.tanh(), initial[1])
        n = _scan(scans.floored_scan, forget, add, initial[2])
        return [c.to(y.dtype), n.to(y.dtype), m.to(y.dtype)]


def _scan(cell: Cell, a: Tensor, b: Tensor, initial: Tensor, inputs: Tensor | None = None) -> Tensor:
    """The outputs (T, B, H·D) of a cell of :mod:`gpulstm_kernels.cells.scans`, from ``initial`` (1, B, H·D)."""
    key = equations.prepare(cell)
    return run_layer(key, torch.cat([a, b], dim=-1), (initial,), [], None, inputs, None, "Wx", True)[0]
