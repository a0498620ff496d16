"""gpulstm's kernels as JAX functions: differentiable, and at home in ``jax.jit``, ``jax.grad`` and ``jax.vmap``.

    import gpulstm.jax
    y, (h, c) = gpulstm.jax.lstm(params, x)
    grads = jax.grad(lambda p: gpulstm.jax.lstm(p, x)[0].sum())(params)

``params`` is a dict of arrays under torch's names (``weight_ih_l0``, ...), as ``gpulstm.LSTM(...).params`` or a state
dict has them; its shapes tell the number of layers and directions, and the sizes.

The kernels run on the host through ``jax.pure_callback``. The gradient is exact, through ``jax.custom_vjp``; since JAX
keeps arrays and not a tape from the forward to the backward pass, backward computes the forward pass again. ``vmap``
runs one call after another: a batch axis of x is faster. There is no forward mode (``jax.jvp``) and no second
derivative. Arrays on a GPU are refused: each call would carry everything to the host and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from . import arrays, cells, checks, ops
from .config import Config, StateLayout
from .io.common import require
from .io.torch_names import infer

jax = require("jax", "jax")

__all__ = ["lstm", "rnn"]


def lstm(
    params: Mapping[str, Any], x: Any, state: Any = None, lengths: Any = None, *, batch_first: bool = False
) -> tuple[Any, tuple[Any, Any]]:
    """``y, (h, c)`` of an LSTM, as :class:`gpulstm.LSTM` computes them.

    Args:
        params: arrays under torch's names, all of one dtype, float32 or float64.
        x: (T, B, I), (B, T, I) with ``batch_first``, or one sequence (T, I), of the dtype of ``params``.
        state: initial ``(h, c)``, (L·D, B, P) and (L·D, B, H), without B for one sequence; None for zeros.
        lengths: steps of each sequence, integers (B,) in 0 .. T; None for T. Past them y is zero. Under ``jit``
            their values are looked at when the function runs.

    Returns:
        y (T, B, D·P), laid out like x, and the final states. Gradients go to ``params``, ``x`` and ``state``.

    Raises:
        ValueError: names or shapes that do not fit, arrays on a GPU, lengths out of range (under ``jit`` JAX wraps that
            in an error of its own).
        TypeError: a dtype that is not that of ``params``, or is no integer for ``lengths``.
    """
    return _call(cells.lstm, params, x, state, lengths, batch_first)


def rnn(
    params: Mapping[str, Any], x: Any, state: Any = None, lengths: Any = None, *, batch_first: bool = False
) -> tuple[Any, Any]:
    """``y, h`` of an RNN of tanh, as :class:`gpulstm.RNN` computes them; ``state`` is h. Otherwise as :func:`lstm`."""
    y, (h,) = _call(cells.rnn, params, x, None if state is None else (state,), lengths, batch_first)
    return y, h


def _call(cell: cells.Cell, params: Any, x: Any, state: Any, lengths: Any, batch_first: bool) -> Any:
    """The checks that need no values, so that errors are raised where the function is called or traced."""
    if not isinstance(params, Mapping) or not params:
        raise TypeError(f"params: expected a dict of arrays under torch's names, got {type(params).__name__}")
    given = {name: _array(value, name) for name, value in checks.named(params, "params").items()}
    x = _array(x, "x")
    config = infer({name: value.shape for name, value in given.items()}, "", cell, batch_first=batch_first)
    dtype = checks.dtype(next(iter(given.values())).dtype)
    for name, value in given.items():
        checks.array(_stand_in(value), name, dtype, config.shapes()[name])
    checks.array(_stand_in(x), "x", dtype, *config.input_shapes)
    if lengths is not None:
        lengths = _array(lengths, "lengths")
        sizes = dict(zip(config.input_shapes[0 if x.ndim == 3 else 1], x.shape, strict=True))
        traced = isinstance(lengths, jax.core.Tracer)
        checks.lengths(_stand_in(lengths) if traced else np.asarray(lengths), sizes.get("B", 1), sizes["T"])
    if state is not None:
        layout = _state_layout(config, x.shape)
        parts = ops.state_parts(state, len(layout), "state", f"({', '.join(label for label, _ in layout)})")
        state = tuple(_array(part, f"state {label}") for (label, _), part in zip(layout, parts, strict=True))
        for (label, shape), part in zip(layout, state, strict=True):
            checks.array(_stand_in(part), f"state {label}", dtype, shape)
    return _run(config, given, x, state, lengths)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(config: Config, params: Any, x: Any, state: Any, lengths: Any) -> Any:
    outputs = (*x.shape[:-1], config.directions * config.output_size)
    shapes = (outputs, *[shape for _, shape in _state_layout(config, x.shape)])
    y, *final = _on_host(
        partial(_forward, config), [_like(shape, x.dtype) for shape in shapes], params, x, state, lengths
    )
    return y, tuple(final)


def _run_forward(config: Config, params: Any, x: Any, state: Any, lengths: Any) -> Any:
    return _run(config, params, x, state, lengths), (params, x, state, lengths)


def _run_backward(config: Config, residuals: Any, upstream: Any) -> Any:
    params, x, state, lengths = residuals
    shapes = [_like(shape, x.dtype) for shape in (x.shape, *[of for _, of in _state_layout(config, x.shape)])]
    of_params = {name: _like(value.shape, value.dtype) for name, value in params.items()}
    dx, *initial, grads = _on_host(partial(_backward, config), [*shapes, of_params], *residuals, *upstream)
    of_lengths = None if lengths is None else np.zeros(lengths.shape, jax.dtypes.float0)
    return grads, dx, None if state is None else tuple(initial), of_lengths


_run.defvjp(_run_forward, _run_backward)


def _on_host(function: Any, shapes: Any, *arguments: Any) -> Any:
    return jax.pure_callback(function, shapes, *arguments, vmap_method="sequential")


def _forward(config: Config, params: Any, x: Any, state: Any, lengths: Any) -> list[np.ndarray]:
    params, x, state, lengths = jax.tree.map(np.asarray, (params, x, state, lengths))
    y, final, _ = ops.rnn_forward(config, params, x, state, lengths)
    return [y, *final]


def _backward(config: Config, params: Any, x: Any, state: Any, lengths: Any, dy: Any, dstate: Any) -> list[Any]:
    params, x, state, lengths, dy, dstate = jax.tree.map(np.asarray, (params, x, state, lengths, dy, dstate))
    _, _, tape = ops.rnn_forward(config, params, x, state, lengths, training=True)
    assert tape is not None
    dx, initial, grads = ops.rnn_backward(tape, dy, dstate)
    return [dx, *initial, grads]


def _state_layout(config: Config, shape: tuple[int, ...]) -> StateLayout:
    """See :meth:`gpulstm.config.Config.state_layout`, for an x of this shape."""
    return config.state_layout(() if len(shape) == 2 else (shape[0 if config.batch_first else 1],))


def _like(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _stand_in(value: Any) -> np.ndarray:
    """Ones of the shape and dtype of ``value``, which may be a tracer; they take no memory."""
    return np.broadcast_to(np.ones((), value.dtype), value.shape)


def _array(value: Any, name: str) -> Any:
    """``value`` as a JAX array on a CPU, or a tracer where the CPU is the default."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"{name}: expected a JAX or NumPy array, got {type(value).__name__}")
    if isinstance(value, np.ndarray):
        value = arrays.to_numpy(value, name)  # refuses a masked one
        try:
            return jax.numpy.asarray(value)
        except TypeError as error:
            raise TypeError(f"{name}: expected an array that JAX takes, got dtype {value.dtype}: {error}") from error
    if isinstance(value, jax.core.Tracer):
        platforms = {(jax.config.jax_default_device or jax.devices()[0]).platform}
    else:
        platforms = {device.platform for device in value.devices()}
    if platforms != {"cpu"}:
        raise ValueError(
            f"{name}: expected an array on a CPU, got one on {', '.join(sorted(platforms))}; the kernels that JAX "
            f"calls run on the host (on a GPU, hand the array to gpulstm.LSTM(..., device='cuda') through DLPack)"
        )
    return value
