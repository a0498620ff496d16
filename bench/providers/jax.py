"""JAX on the CPU: ``lax.scan`` over time under ``jit``, the input projection hoisted out of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..problem import Outputs, Problem, Runner, check_plain


def setup(threads: int) -> None:
    """Nothing: XLA sizes its pool by the process's cores and PJRT_NPROC."""


def forward(params: dict[str, Any], x: Any, h0: Any, c0: Any) -> tuple[Any, Any, Any]:
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


@jax.jit
def forward_backward(params: Any, x: Any, h0: Any, c0: Any, upstream: Any) -> Any:
    result, pullback = jax.vjp(forward, params, x, h0, c0)
    return result, pullback(upstream)


def inference(problem: Problem) -> Runner:
    check_plain(problem.case)
    arguments = jax.device_put((problem.params, problem.x, *problem.state))
    compiled = jax.jit(forward).lower(*arguments).compile()

    def outputs(result: Any) -> Outputs:
        return dict(zip(("y", "h", "c"), map(np.asarray, result), strict=True))

    return lambda: jax.block_until_ready(compiled(*arguments)), outputs


def training(problem: Problem) -> Runner:
    check_plain(problem.case)
    arguments = jax.device_put((problem.params, problem.x, *problem.state))
    upstream = jax.device_put((problem.dy, *problem.dstate))
    compiled = forward_backward.lower(*arguments, upstream).compile()

    def outputs(result: Any) -> Outputs:
        (y, h, c), (grads, dx, dh0, dc0) = result
        named = {"y": y, "h": h, "c": c, "dx": dx, "dh0": dh0, "dc0": dc0}
        named |= {f"d{name}": value for name, value in grads.items()}
        return {name: np.asarray(value) for name, value in named.items()}

    return lambda: jax.block_until_ready(compiled(*arguments, upstream)), outputs
