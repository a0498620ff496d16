"""The cells that gpulstm has, as loops in torch, written from the papers: what they compute, and by autograd gradients.

``loop(step, x, state, weights, inputs, resets)`` for one direction, x (T, B, I) -> y (T, B, H), final state. ``inputs``
are by name, (T, B, 1 or H); ``resets`` (T, B). Tests hold cells to these loops, and the benchmark times them: so the
input's product is one for the whole sequence, as a loop written for speed has it, and a step is given its rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Weights, Weights], State]


def of_x(x: Tensor, w: Weights) -> Tensor:
    """The input's product, of all steps: (T, B, rows)."""
    return torch.nn.functional.linear(x, w["weight_ih"], w.get("bias_ih"))


def _of_h(h: Tensor, w: Weights) -> Tensor:
    """h's product (B, rows), gate by gate; weights of heads are (N, rows/N, H/N), those of one by gate."""
    weight = w["weight_hh"]
    if weight.ndim == 2:
        return torch.nn.functional.linear(h, weight, w.get("bias_hh"))
    heads, rows, units = weight.shape
    by_head = torch.bmm(h.view(-1, heads, units).transpose(0, 1), weight.transpose(1, 2))  # (N, B, rows/N)
    product = by_head.view(heads, -1, rows // units, units).permute(1, 2, 0, 3).reshape(len(h), -1)
    return product + w["bias_hh"] if "bias_hh" in w else product


def _summed(x: Tensor, h: Tensor, w: Weights, gates: int) -> Any:
    return (x + _of_h(h, w)).chunk(gates, dim=1)


def lstm(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, f, g, o = _summed(x, h, w, 4)
    c = f.sigmoid() * c + a.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def rnn(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    (a,) = _summed(x, state[0], w, 1)
    return (a.tanh(),)


def rnn_relu(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    (a,) = _summed(x, state[0], w, 1)
    return (a.relu(),)


def cifg(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, g, o = _summed(x, h, w, 3)
    c = (1 - a.sigmoid()) * c + a.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    (h,) = state
    r, z, n = x.chunk(3, dim=1)
    rh, zh, nh = _of_h(h, w).chunk(3, dim=1)
    n = (n + (r + rh).sigmoid() * nh).tanh()
    z = (z + zh).sigmoid()
    return ((1 - z) * n + z * h,)


def peephole(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, f, g, o = _summed(x, h, w, 4)
    new = (f + w["p_f"] * c).sigmoid() * c + (a + w["p_i"] * c).sigmoid() * g.tanh()
    return (o + w["p_o"] * new).sigmoid() * new.tanh(), new


def indrnn(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    return ((x + w["u"] * state[0]).relu(),)


def mingru(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    z, n = x.chunk(2, dim=1)
    return ((1 - z.sigmoid()) * state[0] + z.sigmoid() * n,)


def minlstm(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    a, f, n = x.chunk(3, dim=1)
    a, f = a.sigmoid(), f.sigmoid()
    return (f / (f + a) * state[0] + a / (f + a) * n,)


def slstm(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c, n, m = state
    a, f, z, o = _summed(x, h, w, 4)
    kept = torch.nn.functional.logsigmoid(f) + m
    m = torch.where(n > 0, torch.maximum(a, kept), a)
    f, a = (kept - m).exp(), (a - m).exp()
    c, n = f * c + a * z.tanh(), torch.clamp(f * n + a, min=1.0)
    return o.sigmoid() * c / n, c, n, m


def zoneout(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, f, g, o = _summed(x, h, w, 4)
    new = f.sigmoid() * c + a.sigmoid() * g.tanh()
    h = i["keep_h"] * h + (1 - i["keep_h"]) * (o.sigmoid() * new.tanh())
    return h, i["keep_c"] * c + (1 - i["keep_c"]) * new


def recurrent_dropout(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, f, g, o = _summed(x, h, w, 4)
    c = f.sigmoid() * c + a.sigmoid() * (g.tanh() * i["mask"])
    return o.sigmoid() * c.tanh(), c


def time_gap(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, f, g, o = _summed(x, h, w, 4)
    c = (-(w["w_gap"] * i["gap"] + w["b_gap"]).clamp(min=0)).exp() * c
    c = f.sigmoid() * c + a.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _product(v: Tensor, w: Weights, name: str) -> Tensor:
    return v @ w[f"weight_{name}"].T


def gru_reset_before(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    (h,) = state
    r, z, n = x.chunk(3, dim=1)
    rh, zh = _of_h(h, w).chunk(2, dim=1)
    r, z = (r + rh).sigmoid(), (z + zh).sigmoid()
    return ((1 - z) * (n + _product(r * h, w, "u")).tanh() + z * h,)


def multiplicative_lstm(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    a, f, g, o, m = x.chunk(5, dim=1)
    m = m * _of_h(h, w)
    a, f, g, o = (gate + _product(m, w, f"u_{name}") for name, gate in zip("ifgo", (a, f, g, o), strict=True))
    c = f.sigmoid() * c + a.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _layer_norm(x: Tensor, w: Weights, gain: list[str], shift: list[str]) -> Tensor:
    """torch's own, over all that ``x`` (B, ·) has; gains and shifts by name, one after another."""
    weight, bias = (torch.cat([w[name] for name in names]) if names else None for names in (gain, shift))
    return torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias, eps=1e-5)


def variational_dropout(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    h = i["mask"] * h
    a, f, g, o = (gate + _product(h, w, f"u_{name}") for name, gate in zip("ifgo", x.chunk(4, dim=1), strict=True))
    c = f.sigmoid() * c + a.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def layer_norm_lstm(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    of_x = _layer_norm(x, w, [f"gain_x_{gate}" for gate in "ifgo"], [f"shift_{gate}" for gate in "ifgo"])
    of_h = _layer_norm(_of_h(h, w), w, [f"gain_h_{gate}" for gate in "ifgo"], [])
    a, f, g, o = (of_x + of_h).chunk(4, dim=1)
    c = f.sigmoid() * c + a.sigmoid() * g.tanh()
    return o.sigmoid() * _layer_norm(c, w, ["gain_c"], ["shift_c"]).tanh(), c


def layer_norm_lstm_by_gate(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    h, c = state
    gates = zip("ifgo", _summed(x, h, w, 4), strict=True)
    a, f, g, o = (_layer_norm(gate, w, [f"gain_{name}"], [f"shift_{name}"]) for name, gate in gates)
    c = _layer_norm(f.sigmoid() * c + a.sigmoid() * g.tanh(), w, ["gain_c"], ["shift_c"])
    return o.sigmoid() * c.tanh(), c


def layer_norm_gru(x: Tensor, state: State, w: Weights, i: Weights) -> State:
    (h,) = state
    size = h.shape[1]
    parts = {"x": x, "h": _of_h(h, w)}
    rz, n = {}, {}
    for of, gates in parts.items():
        names = [[f"{kind}_{of}_{gate}" for gate in "rz"] for kind in ("gain", "shift")]
        rz[of] = _layer_norm(gates[:, : 2 * size], w, *names)
        n[of] = _layer_norm(gates[:, 2 * size :], w, [f"gain_{of}_n"], [f"shift_{of}_n"])
    r, z = (rz["x"] + rz["h"]).sigmoid().chunk(2, dim=1)
    return ((1 - z) * (n["x"] + r * n["h"]).tanh() + z * h,)


CELLS: dict[str, Step] = {
    step.__name__: step
    for step in (
        cifg,
        gru,
        gru_reset_before,
        indrnn,
        layer_norm_gru,
        layer_norm_lstm,
        layer_norm_lstm_by_gate,
        lstm,
        mingru,
        minlstm,
        multiplicative_lstm,
        peephole,
        recurrent_dropout,
        rnn,
        rnn_relu,
        slstm,
        time_gap,
        variational_dropout,
        zoneout,
    )
}


def loop(
    step: Step, x: Tensor, state: State, weights: Weights, inputs: Weights, resets: Tensor | None = None
) -> tuple[Tensor, State]:
    """A whole sequence of one direction and one layer."""
    ys = []
    given = {name: value.unbind() for name, value in inputs.items()}
    for t, row in enumerate(of_x(x, weights).unbind()):  # the gradient of a row by index were as large as all of them
        if resets is not None:
            state = tuple(torch.where(resets[t][:, None], torch.zeros_like(part), part) for part in state)
        state = step(row, state, weights, {name: values[t] for name, values in given.items()})
        ys.append(state[0])
    return torch.stack(ys), state
