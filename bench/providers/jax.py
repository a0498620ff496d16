"""JAX on the CPU: ``lax.scan`` over time under ``jit``, the input projection hoisted out of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..problem import Outputs, Problem, Runner, check_plain, named


def setup(threads: int) -> None:
    """Nothing: XLA sizes its pool by the process's cores and PJRT_NPROC."""


def gru(params: dict[str, Any], x: Any, h0: Any) -> tuple[Any, Any]:
    """y (T, B, H) and the final h (1, B, H)."""
    projected = x @ params["weight_ih_l0"].T + params["bias_ih_l0"]
    recurrent, bias = params["weight_hh_l0"].T, params["bias_hh_l0"]

    def step(h: Any, gates: Any) -> Any:
        r, z, n = jnp.split(gates, 3, axis=-1)
        of_r, of_z, of_n = jnp.split(h @ recurrent + bias, 3, axis=-1)
        z = jax.nn.sigmoid(z + of_z)
        h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + of_r) * of_n) + z * h
        return h, h

    h, y = jax.lax.scan(step, h0[0], projected)
    return y, h[None]


def lstm(params: dict[str, Any], x: Any, h0: Any, c0: Any) -> tuple[Any, Any, Any]:
    """y (T, B, H) and the final h, c (1, B, H)."""
    projected = x @ params["weight_ih_l0"].T + params["bias_ih_l0"] + params["bias_hh_l0"]
    recurrent = params["weight_hh_l0"].T

    def step(state: Any, gates: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(gates + h @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (h0[0], c0[0]), projected)
    return y, h[None], c[None]


FORWARD: dict[str, Callable[..., Any]] = {"lstm": lstm, "gru": gru}


def forward_backward(forward: Callable[..., Any], upstream: Any, *arguments: Any) -> Any:
    result, pullback = jax.vjp(forward, *arguments)
    return result, pullback(upstream)


def inference(problem: Problem) -> Runner:
    check_plain(problem.case)
    arguments = jax.device_put((problem.params, problem.x, *problem.state))
    compiled = jax.jit(FORWARD[problem.case.cell]).lower(*arguments).compile()

    def outputs(result: Any) -> Outputs:
        y, *final = map(np.asarray, result)
        return {"y": y, **named(problem.case, final)}

    return lambda: jax.block_until_ready(compiled(*arguments)), outputs


def training(problem: Problem) -> Runner:
    check_plain(problem.case)
    arguments = jax.device_put((problem.params, problem.x, *problem.state))
    upstream = jax.device_put((problem.dy, *problem.dstate))
    both = jax.jit(partial(forward_backward, FORWARD[problem.case.cell]))
    compiled = both.lower(upstream, *arguments).compile()

    def outputs(result: Any) -> Outputs:
        (y, *final), (grads, dx, *initial) = result
        found = {"y": y, **named(problem.case, final), "dx": dx, **named(problem.case, initial, "d", "0")}
        found |= {f"d{name}": value for name, value in grads.items()}
        return {name: np.asarray(value) for name, value in found.items()}

    return lambda: jax.block_until_ready(compiled(upstream, *arguments)), outputs
