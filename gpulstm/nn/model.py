"""What a layer is, and models made of layers.

A layer holds parameters and nothing else. ``layer(x)`` is inference; ``(y, state), pullback = layer.vjp(x)`` keeps
what the gradient needs inside the closure ``pullback``, so calls are re-entrant and a layer may be shared between
threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays, checks, dispatch
from ..watching import Watched, WatchedLayer

if TYPE_CHECKING:
    from typing_extensions import Self

Params = dict[str, np.ndarray]
Pullback = Callable[..., tuple[Any, Any, Params]]


def on_device(params: Params, device: str) -> Params:
    """``params``, NumPy arrays, as arrays on ``device``."""
    return {name: arrays.library(device).from_host(value) for name, value in params.items()}


def unwrap_single(state: tuple[Any, ...]) -> Any:
    """h by itself where there is no other state, as ``torch.nn.RNN`` has it."""
    return state if len(state) > 1 else state[0]


class Layer:
    """Base of all layers: a dict ``params`` of named arrays, and state dicts under torch's names.

    A layer of your own defines :meth:`forward` and :meth:`vjp`, and sets ``has_state`` and ``takes_lengths``.
    """

    params: Params
    has_state = False
    """Whether calls carry a state on: without one, it is ``()`` wherever a state is given or returned."""
    takes_lengths = False
    """Whether ``lengths`` of the sequences make a difference: a layer that takes none refuses them."""

    def __call__(self, x: Any) -> Any:
        """Inference: the output for ``x``; dropout does nothing."""
        return self.forward(x)[0]

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Inference in the form that all layers share: ``y, state``."""
        raise NotImplementedError

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[Any, Any], Pullback]:
        """``(y, state), pullback``: the output as in training, and its vector-Jacobian product.

        ``pullback(dy, dstate=None)`` gives ``dx, dstate0, grads``, ``grads`` with the keys of ``params``.
        """
        raise NotImplementedError

    def watch(self, x: Any, state: Any = None, lengths: Any = None) -> Watched:
        """The output for ``x``, and what happened inside; see :func:`gpulstm.watch`."""
        return Watched(*self.forward(x, state, lengths), {})

    def check_unused(self, state: Any = None, lengths: Any = None, name: str = "state") -> None:
        """Refuse a state (or the gradient of one, by its ``name``) and lengths, for a layer without a use for them.

        Raises:
            ValueError: a state other than None and ``()``, or lengths.
        """
        if state is not None and not (isinstance(state, tuple) and not state):
            raise ValueError(
                f"{name}: expected None or (), since {type(self).__name__} has no state, got {_kind(state)}"
            )
        if lengths is not None:
            raise ValueError(f"lengths: expected None, since {type(self).__name__} takes none, got {_kind(lengths)}")

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


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


class RecurrentLayer(Layer):
    """A layer whose state the caller carries from call to call (``gpulstm.LSTM``, ``gpulstm.RNN``).

    ``y, state = layer(x, state=None, lengths=None)``. State is ``(h, c)`` for an LSTM and ``h`` for an RNN.
    """

    has_state = True
    takes_lengths = True

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Inference: ``y, state``; dropout does nothing."""
        return self.forward(x, state, lengths)

    def watch(self, x: Any, state: Any = None, lengths: Any = None) -> Watched:
        raise TypeError(f"model: expected layers that can be looked at, such as gpulstm.LSTM, got {self!r}")


class Sequential(RecurrentLayer):
    """Layers one after another; itself recurrent, its state a tuple of the states of those layers that have one.

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
        self.recurrent = [i for i, layer in enumerate(layers) if layer.has_state]
        self._with_lengths = [i for i, layer in enumerate(layers) if layer.takes_lengths]
        self.takes_lengths = bool(self._with_lengths)
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

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, tuple[Any, ...]]:
        states, limits = self._states_by_layer(state), self._lengths_by_layer(lengths)
        for i, layer in enumerate(self.layers):
            x, states[i] = layer.forward(x, states[i], limits[i])
        return x, self._recurrent_states(states)

    def watch(self, x: Any, state: Any = None, lengths: Any = None) -> Watched:
        states, limits = self._states_by_layer(state), self._lengths_by_layer(lengths)
        found: dict[str, WatchedLayer] = {}
        for i, layer in enumerate(self.layers):
            inside = layer.watch(x, states[i], limits[i])
            x, states[i] = inside.y, inside.state
            found |= {f"{i}.{name}": one for name, one in inside.items()}
        return Watched(x, self._recurrent_states(states), found)

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[Any, tuple[Any, ...]], Pullback]:
        rng = arrays.library(self.device).generator(rng)
        states, limits = self._states_by_layer(state), self._lengths_by_layer(lengths)
        pullbacks = []
        for i, layer in enumerate(self.layers):
            (x, states[i]), layer_pullback = layer.vjp(x, states[i], limits[i], rng=rng)
            pullbacks.append(layer_pullback)

        def pullback(dy: Any, dstate: Any = None) -> tuple[Any, tuple[Any, ...], Params]:
            dstates = self._states_by_layer(dstate, "dstate")
            grads = {}
            for i in reversed(range(len(pullbacks))):
                dy, dstates[i], layer_grads = pullbacks[i](dy, dstates[i])
                grads.update({f"{i}.{name}": gradient for name, gradient in layer_grads.items()})
            return dy, self._recurrent_states(dstates), {name: grads[name] for name in self.params}

        return (x, self._recurrent_states(states)), pullback

    def _lengths_by_layer(self, lengths: Any) -> list[Any]:
        """What each layer is given as lengths: None where it takes none."""
        if lengths is not None and not self.takes_lengths:
            raise ValueError("lengths: expected None, since no layer of this model takes them")
        spread: list[Any] = [None] * len(self.layers)
        for i in self._with_lengths:
            spread[i] = lengths
        return spread

    def _states_by_layer(self, state: Any, name: str = "state") -> list[Any]:
        """What each layer is given as its state: None where it has none, or where all are None."""
        spread: list[Any] = [None] * len(self.layers)
        if state is None:
            return spread
        if not isinstance(state, (tuple, list)):
            raise TypeError(
                f"{name}: expected None or a tuple, one entry a recurrent layer, got {type(state).__name__}"
            )
        if len(state) != len(self.recurrent):
            raise ValueError(f"{name}: expected {len(self.recurrent)} entries, one a recurrent layer, got {len(state)}")
        for i, part in zip(self.recurrent, state, strict=True):
            spread[i] = part
        return spread

    def _recurrent_states(self, states: list[Any]) -> tuple[Any, ...]:
        """The states of the recurrent layers, of one a layer."""
        return tuple(states[i] for i in self.recurrent)
