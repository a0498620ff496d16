"""What a layer is, and models made of layers.

A layer holds parameters and nothing else. ``layer(x)`` is inference; ``y, vjp = layer.vjp(x)`` keeps what the
gradient needs inside the closure ``vjp``, so calls are re-entrant and a layer may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays, checks, dispatch

if TYPE_CHECKING:
    from typing_extensions import Self

Params = dict[str, np.ndarray]


def on_device(params: Params, device: str) -> Params:
    """``params``, NumPy arrays, as arrays on ``device``."""
    return {name: arrays.library(device).from_host(value) for name, value in params.items()}


class Layer:
    """Base of all layers: a dict ``params`` of named arrays, and state dicts under torch's names."""

    params: Params
    takes_lengths = False  # whether calls have an argument ``lengths``

    def __call__(self, x: Any) -> Any:
        """Inference: the output for ``x``; dropout does nothing."""
        raise NotImplementedError

    def vjp(self, x: Any, *, rng: Any = None) -> tuple[Any, Callable[..., Any]]:
        """``y, pullback``; ``pullback(dy)`` gives ``dx, grads`` with the keys of ``params``."""
        raise NotImplementedError

    @property
    def device(self) -> str:
        """Where the parameters live: ``"cpu"`` or ``"cuda"``."""
        return arrays.device_of(next(iter(self.params.values()), None))

    def to(self: Self, device: str) -> Self:
        """This layer, once its parameters live on ``device``.

        Raises:
            ValueError: no such device, or one that does not compute in the dtype of the parameters.
            BackendUnavailable: no backend for it runs here; the message says why.
        """
        device = dispatch.check_device(device)
        if self.params and device != self.device:
            for value in self.params.values():
                checks.dtype(value.dtype, device)
            host = {name: arrays.on_host(value, name) for name, value in self.params.items()}
            self.params = on_device(host, device)
        return self

    def state_dict(self) -> Params:
        """A copy of every parameter, under torch's names."""
        return {name: arrays.library(arrays.device_of(value)).copy(value) for name, value in self.params.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy ``state_dict`` into the parameters; nothing changes if any entry does not fit.

        Raises:
            ValueError: keys missing or left over, a shape that differs, or values that are not finite.
            TypeError: a value that is no floating-point array.
        """
        checks.named(state_dict, "state_dict")
        missing = sorted(self.params.keys() - state_dict.keys())
        extra = sorted(state_dict.keys() - self.params.keys())
        if missing or extra:
            raise ValueError(
                f"state_dict: keys do not fit {type(self).__name__}: missing {missing}, unexpected {extra}; "
                f"expected {sorted(self.params)}"
            )
        loaded = {}
        for name, parameter in self.params.items():
            value = arrays.on_host(state_dict[name], name)
            if not checks.is_float(value.dtype):
                raise TypeError(f"state_dict[{name!r}]: expected floating point, got dtype {value.dtype}")
            if value.shape != parameter.shape:
                raise ValueError(f"state_dict[{name!r}]: expected shape {parameter.shape}, got {value.shape}")
            with np.errstate(over="ignore"):  # a float64 may be infinite as a float32: refused below
                value = value.astype(parameter.dtype, copy=False)
            if not np.isfinite(value).all():
                raise ValueError(f"state_dict[{name!r}]: holds NaN or infinite values; expected finite ones")
            loaded[name] = value
        for name, value in loaded.items():
            arrays.library(arrays.device_of(self.params[name])).assign(self.params[name], value)


class Recurrent(Layer):
    """A layer whose state the caller carries from call to call (``gpulstm.LSTM``, ``gpulstm.RNN``).

    ``y, state = layer(x, state=None, lengths=None)``;
    ``(y, state), pullback = layer.vjp(x, state=None, lengths=None, rng=None)``;
    ``dx, dstate, grads = pullback(dy, dstate=None)``. State is ``(h, c)`` for an LSTM and ``h`` for an RNN.
    """

    takes_lengths = True


class Sequential(Recurrent):
    """Layers one after another; itself recurrent, its state a tuple of the states of its recurrent layers.

    ``params`` holds the layers' own arrays under ``"<position>.<name>"``, so stepping them steps the layers.
    ``lengths`` goes to the layers that take it, ``rng`` (one generator) to all of them in order. The
    pullback's dx is None where the first layer takes ids.

    Raises:
        ValueError: no layers, a layer with parameters that appears twice, a state that has not one entry a
            recurrent layer, lengths where no layer takes them.
        TypeError: a layer that is none, a state that is no tuple or list.
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("layers: expected at least one layer, got none")
        seen: set[int] = set()
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers: expected gpulstm layers, got {type(layer).__name__} at position {position}")
            if layer.params and id(layer) in seen:
                raise ValueError(
                    f"layers: expected each once, got the {type(layer).__name__} at position {position} again"
                )
            seen.add(id(layer))
        self.layers = layers
        self.recurrent = [i for i, layer in enumerate(layers) if isinstance(layer, Recurrent)]
        self.takes_lengths = any(layer.takes_lengths for layer in layers)
        self._gather()

    def _gather(self) -> None:
        self.params = {
            f"{i}.{name}": value for i, layer in enumerate(self.layers) for name, value in layer.params.items()
        }

    def to(self: Self, device: str) -> Self:
        for layer in self.layers:
            layer.to(device)
        self._gather()
        return self

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, tuple[Any, ...]]:
        final = []
        for layer, options in zip(self.layers, self._options(state, lengths), strict=True):
            x = layer(x, **options)
            if isinstance(layer, Recurrent):
                x, layer_state = x
                final.append(layer_state)
        return x, tuple(final)

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, rng: Any = None
    ) -> tuple[tuple[Any, tuple[Any, ...]], Callable[..., tuple[Any, tuple[Any, ...], Params]]]:
        rng = arrays.library(self.device).generator(rng)
        final, pullbacks = [], []
        for layer, options in zip(self.layers, self._options(state, lengths), strict=True):
            x, layer_pullback = layer.vjp(x, rng=rng, **options)
            pullbacks.append(layer_pullback)
            if isinstance(layer, Recurrent):
                x, layer_state = x
                final.append(layer_state)

        def pullback(dy: Any, dstate: Any = None) -> tuple[Any, tuple[Any, ...], Params]:
            upstream = self._per_layer(dstate, "dstate")
            downstream: list[Any] = [None] * len(self.layers)
            grads = {}
            for i in reversed(range(len(self.layers))):
                if i in upstream:
                    dy, downstream[i], layer_grads = pullbacks[i](dy, upstream[i])
                else:
                    dy, layer_grads = pullbacks[i](dy)
                grads.update({f"{i}.{name}": gradient for name, gradient in layer_grads.items()})
            return (
                dy,
                tuple(downstream[i] for i in self.recurrent),
                {name: grads[name] for name in self.params},
            )

        return (x, tuple(final)), pullback

    def _options(self, state: Any, lengths: Any) -> list[dict[str, Any]]:
        """The keyword arguments of each layer's call."""
        if lengths is not None and not self.takes_lengths:
            raise ValueError("lengths: expected None, since no layer of this model takes them")
        states = self._per_layer(state, "state")
        return [
            ({"state": states[i]} if i in states else {}) | ({"lengths": lengths} if layer.takes_lengths else {})
            for i, layer in enumerate(self.layers)
        ]

    def _per_layer(self, state: Any, name: str) -> dict[int, Any]:
        """``state`` as a dict from the positions of the recurrent layers."""
        if state is None:
            return dict.fromkeys(self.recurrent)
        if not isinstance(state, (tuple, list)):
            raise TypeError(
                f"{name}: expected None or a tuple, one entry a recurrent layer, got {type(state).__name__}"
            )
        if len(state) != len(self.recurrent):
            raise ValueError(f"{name}: expected {len(self.recurrent)} entries, one a recurrent layer, got {len(state)}")
        return dict(zip(self.recurrent, state, strict=True))
