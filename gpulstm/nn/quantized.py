"""Recurrent layers with weights in fewer bits: for inference on a CPU, where reading weights is what costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpulstm_kernels import bfloat16
from gpulstm_kernels.backend import NARROW, Backend

from .. import dispatch, ops
from ..config import Config
from .model import Params, Pullback, unwrap_single
from .recurrent import Recurrent
from .stream import Streamed

_MOST = 127  # of int8, so that a row's range is symmetric


class Quantized(Streamed):
    """A recurrent layer with ``weight_ih`` and ``weight_hh`` in bfloat16 or int8; made by :func:`gpulstm.quantize`.

    ``y, state = layer(x, state=None, lengths=None)`` as the layer it was made of, in float32. Weights are rounded,
    and so are x and h before they are multiplied with them. For ``"int8"`` each row of x and h is quantized to 16 bits
    (fewer where a row has more than 516 elements, so that sums fit 32 bits), with an error of at most 1/65534 of the
    row's largest; for ``"bf16"`` x and h are rounded to bfloat16, by at most 2⁻⁸ of a number, on processors with an
    instruction for it (AVX512-BF16), else not at all (and calls of 16 rows a step and more keep a float32 copy of the
    weights). Sums, cells and states are float32. A row of x with an infinity or NaN gives NaN. There is no ``vjp``.

    Attributes:
        config: that of the layer.
        params: ``weight_ih_l0``, ...: for ``"bf16"`` the upper halves of float32 numbers as uint16, rounded to nearest
            even; for ``"int8"`` whole numbers in ±127, to be multiplied with ``scale_ih_l0``, ... (G·H), one a row
            (with heads ``scale_hh_l0`` (heads, G·H/heads)).
            Biases, projections and the cell's own parameters stay float32.
    """

    def __init__(self, layer: Recurrent, kind: str) -> None:
        _check(layer, kind)
        self.config, self.kind, self.params = layer.config, kind, {}
        scales = self.scales(layer.config)
        for name, value in layer.params.items():
            if not np.isfinite(value).all():
                raise ValueError(f"layer: expected finite parameters, got NaN or infinity in {name}")
            if name not in scales:
                self.params[name] = value.copy()
            elif kind == "bf16":
                self.params[name] = bfloat16.rounded(value)
            else:
                self.params[name], self.params[scales[name]] = _to_int8(value)

    @classmethod
    def of(cls, config: Config, kind: str, params: Params) -> Quantized:
        """The layer that has these :attr:`params`, as another one's have been saved."""
        layer = cls.__new__(cls)
        layer.config, layer.kind, layer.params = config, kind, params
        return layer

    @staticmethod
    def scales(config: Config) -> dict[str, str]:
        """The names of the weights that are narrow, and for each that of its scales, which int8 has."""
        own = [parameter for layer in config.parameters for direction in layer for parameter in direction]
        return {full: full.replace("weight", "scale") for role, full, _ in own if role in ("weight_ih", "weight_hh")}

    def __call__(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        inputs: Any = None,
        backend: str | None = None,
    ) -> tuple[np.ndarray, Any]:
        """``y, state``; shapes, and what is raised, as :func:`gpulstm.ops.rnn_forward` says.

        A backend that has no kernels for narrow weights computes with :meth:`widened` ones.
        """
        params = self.params_for(dispatch.select(None, "cpu", backend)[0].module)
        y, final, _ = ops.rnn_forward(self.config, params, x, state, lengths, resets, inputs=inputs, backend=backend)
        return y, unwrap_single(final)

    forward = __call__

    def params_for(self, backend: Backend) -> Params:
        """What ``backend`` takes: the narrow weights, or those widened."""
        shape = self.config.layer_shape(0, 1, 1, np.dtype(np.float32), NARROW[self.kind], False, False)
        return self.params if backend.why_not(shape) is None else self.widened()

    def vjp(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, Any], Pullback]:
        raise TypeError("vjp: a quantized layer is for inference; expected the layer that it was made of")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        raise TypeError(
            "load_state_dict: a quantized layer is made by gpulstm.quantize; load into a layer, then do that"
        )

    def widened(self) -> Params:
        """The parameters of a float32 layer that computes the same."""
        params = {name: self.params[name] for name in self.config.shapes()}
        for name, scale in self.scales(self.config).items():
            narrow = params[name]
            params[name] = bfloat16.widened(narrow) if self.kind == "bf16" else narrow * self.params[scale][..., None]
        return params

    def __repr__(self) -> str:
        c = self.config
        return (
            f"Quantized({c.cell.name}, {c.input_size}, {c.hidden_size}, num_layers={c.num_layers}, kind={self.kind!r})"
        )


def quantize(layer: Recurrent, kind: str) -> Quantized:
    """A copy of ``layer`` for inference on a CPU that keeps its weights in half or a quarter of the memory.

    Args:
        layer: a float32 recurrent layer on the CPU.
        kind: ``"bf16"``: weights in bfloat16, relative rounding error at most 2⁻⁸; ``"int8"``: in 8 bits with a scale
            a row, absolute error at most 1/254 of the row's largest weight, or 6e-39 if that is more.

    Raises:
        TypeError: no recurrent layer.
        ValueError: another kind, a layer that is not float32 or not on the CPU, parameters that are not finite.
    """
    return Quantized(layer, kind)


def _check(layer: Any, kind: Any) -> None:
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected a recurrent layer such as gpulstm.LSTM, got {type(layer).__name__}")
    if not isinstance(kind, str) or kind not in ("bf16", "int8"):
        raise ValueError(f"kind: expected 'bf16' or 'int8', got {kind!r}")
    dtype = next(iter(layer.params.values())).dtype
    if layer.device != "cpu" or dtype != np.float32:
        raise ValueError(f"layer: expected float32 parameters on the CPU, got {dtype} on {layer.device}")


def _to_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers (..., R, K) and the scale of each row (..., R)."""
    largest = np.abs(weight).max(axis=-1)
    # At least the smallest normal number: a scale of fewer bits would put the largest weight beyond 127.
    scale = np.maximum(largest / np.float32(_MOST), np.finfo(np.float32).tiny)
    return np.rint(weight / scale[..., None]).astype(np.int8), scale.astype(np.float32)
