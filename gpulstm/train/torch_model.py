"""Torch modules in our training loop: parameters in torch's memory, gradients from its autograd.

What needs a graph (attention, convolution, fusion of inputs, memory) is a torch module over the layers of
:mod:`gpulstm.torch`. :class:`TorchModel` gives it what a :class:`gpulstm.train.Trainer` asks of a model, so that
optimizers, clipping, schedules, checkpoints and resuming are those of every other task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .. import arrays, checks
from ..data.batch import Batch

_STATE = ("state", "hx")  # what forward may call the state that it is given; hx is torch.nn.LSTM's word
_FLOATS = (torch.float32, torch.float64)


class TorchModel:
    """A torch module as what a :class:`gpulstm.train.Trainer` trains::

        class Count(gpulstm.train.Task):
            def __init__(self):
                self.model = TorchModel(Module(), lambda y, batch: torch.nn.functional.mse_loss(y, batch["targets"]))
                ...
            def loss(self, output, batch):
                return self.model.loss(output, batch)

    ``forward`` of the module is called with tensors over the memory of what :meth:`gpulstm.train.Task.inputs` gives: an
    array; a tuple of several; or a dict, by the names of its arguments. It returns a tensor, or several in a tuple or
    dict. Where it has an argument ``state`` (or ``hx``) it returns output and state, and is given the state of the
    batch before, from which no gradient comes; where it has an argument ``lengths``, those of the batch (B,), int64.

    The parameters that take a gradient now are trained, under their names in the module; one that several parts share
    has the first of its names. One that a batch makes no use of has a gradient of zeros. ``grad`` of all of them is the
    model's own. Others are left alone. Checkpoints hold the module's state dict: buffers too, and every name of what
    is shared.

    Training is done in the modes that the module is in, so that parts which were put into evaluation stay there; a
    module that is in evaluation as a whole is put into training. What it draws follows from ``rng`` alone: torch's
    generator is seeded from it for the call, and is after it as it was before. One thread at a time. Over several
    processes a module in ``DistributedDataParallel`` is trained, by each on its share of the batches, with the
    checkpoints of one.

    Args:
        module: on the CPU, float32 or float64.
        loss: what :meth:`loss` minimises: ``loss(output, batch)`` gives a tensor with one element. Arrays of ``batch``
            are tensors.
        threads: how many of torch's own threads compute, None for as many as torch uses now. Where most of the work
            is that of gpulstm's layers one is best: torch's wait for work in a loop, on the cores that ours need.

    Raises:
        TypeError: no module, a loss that is no function, parameters or buffers of another dtype, a state dict that
            holds anything but tensors, or threads that are no integer.
        ValueError: nothing takes a gradient, a tensor on another device, one without a shape yet, or one in the state
            dict that is not finite; a loss with parameters of its own; threads below 1.
    """

    device = "cpu"

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[[Any, Batch], Tensor] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module, got {checks.shown(module)}")
        for name, value in [*module.named_parameters(), *module.state_dict().items()]:
            _check(name, value)
        self.module = module
        self._trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not self._trained:
            raise ValueError(f"module: expected parameters that take a gradient, got {type(module).__name__} with none")
        self._loss = checks.function(loss, "loss")
        if isinstance(loss, torch.nn.Module) and any(value.requires_grad for value in loss.parameters()):
            raise ValueError(f"loss: expected one without parameters, which belong to module, got {checks.shown(loss)}")
        self._threads = None if threads is None else checks.integer(threads, "threads")
        taken = inspect.signature(module.forward).parameters
        self._state = next((name for name in _STATE if name in taken), None)
        self.has_state, self.takes_lengths = self._state is not None, "lengths" in taken

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The trained parameters by name, in torch's own memory."""
        return {name: value.detach().numpy() for name, value in self._trained.items()}

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        """Inference: the output for ``x`` as NumPy's arrays, and the state where the module has one."""
        y, final = self.forward(x, state, lengths)
        return (y, final) if self.has_state else y

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Inference, in evaluation mode: output and state, which is () where the module has none."""
        modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        try:
            with self._on_threads(), torch.no_grad():
                y, final = self._called(x, state, lengths)
        finally:
            for part, training in modes:
                part.training = training
        return _arrays(y), _arrays(final)

    def vjp(
        self, x: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[Any, Any], Callable[[Any], tuple[None, None, dict[str, np.ndarray]]]]:
        """``(y, state), pullback``: output and state as in training, as NumPy's arrays, and the gradients.

        ``pullback(dy)`` takes arrays as those of ``y``, None for a part without a gradient, and is called once. It
        gives what a layer's does, ``dx, dstate0, grads``; the first two are None, since training has no use for them.

        Raises:
            ValueError, TypeError: a state or lengths that the module does not take, an output that depends on no
                trained parameter or, from ``pullback``, a gradient of another shape.
        """
        if not self.module.training:
            self.module.train()
        with self._on_threads(), seeded(rng), torch.enable_grad():
            y, final = self._called(x, state, lengths)
        outputs = _leaves(y)
        if not any(_takes_gradient(output) for output in outputs):
            raise ValueError("module: expected an output that depends on parameters which take a gradient, got none")

        def pullback(dy: Any) -> tuple[None, None, dict[str, np.ndarray]]:
            given = _leaves(_tensors(dy))
            shapes = [[None if value is None else tuple(value.shape) for value in of] for of in (outputs, given)]
            if len(outputs) != len(given) or any(b not in (a, None) for a, b in zip(*shapes, strict=True)):
                raise ValueError(f"dy: expected arrays of shapes {shapes[0]}, as the output, got {shapes[1]}")
            pairs = [(a, b) for a, b in zip(outputs, given, strict=True) if _takes_gradient(a) and b is not None]
            for parameter in self._trained.values():
                parameter.grad = None
            with self._on_threads():
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
            return None, None, self._gradients()

        return (_arrays(y), _arrays(final)), pullback

    def loss(self, output: Any, batch: Batch) -> tuple[float, Any]:
        """The loss of ``output``, what :meth:`vjp` gave for ``batch``, and its gradient, for a task's ``loss``.

        Raises:
            TypeError: the model was made without a loss, or the loss gives anything but a tensor with one element.
            ValueError: it does not depend on the output.
        """
        if self._loss is None:
            raise TypeError("loss: expected a function, which TorchModel was made without")
        given = _tensors(output)
        leaves = [part.requires_grad_() for part in _leaves(given) if part is not None and part.is_floating_point()]
        with torch.enable_grad():
            value = self._loss(given, replace(batch, arrays=_tensors(batch.arrays)))
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = tuple(value.shape) if isinstance(value, Tensor) else checks.shown(value)
            raise TypeError(f"loss: expected a tensor with one element, got {shown}")
        if not value.requires_grad:
            raise ValueError("loss: expected a value that depends on the output, got one that does not")
        gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        found = {id(leaf): gradient for leaf, gradient in zip(leaves, gradients, strict=True)}
        return value.item(), _arrays(_mapped(lambda part: found.get(id(part)), given))

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the module's state dict."""
        return {name: np.array(value.detach().numpy(), order="C") for name, value in self.module.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy ``state_dict`` into the module; nothing changes if any entry does not fit.

        Raises:
            ValueError: keys missing or left over, a shape that differs, values that are not finite, or two names of one
                parameter with other values each.
            TypeError: a value of another kind of number.
        """
        checks.named(state_dict, "state_dict")
        own = self.module.state_dict()
        missing, extra = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
        if missing or extra:
            kind = type(self.module).__name__
            raise ValueError(
                f"state_dict: keys do not fit {kind}: missing {missing}, unexpected {extra}; expected {sorted(own)}"
            )
        loaded: dict[str, np.ndarray] = {}
        first: dict[Any, str] = {}
        for name, target in own.items():
            value, dtype = arrays.on_host(state_dict[name], f"state_dict[{name!r}]"), target.detach().numpy().dtype
            if value.shape != tuple(target.shape):
                raise ValueError(f"state_dict[{name!r}]: expected shape {tuple(target.shape)}, got {value.shape}")
            if value.dtype.kind != dtype.kind:
                raise TypeError(f"state_dict[{name!r}]: expected dtype {dtype}, got {value.dtype}")
            with np.errstate(over="ignore"):  # a float64 may be infinite as a float32: refused below
                loaded[name] = value.astype(dtype, copy=False)
            if not np.isfinite(loaded[name]).all():
                raise ValueError(f"state_dict[{name!r}]: holds NaN or infinite values; expected finite ones")
            other = first.setdefault((target.data_ptr(), target.shape, target.stride()), name)
            if not np.array_equal(loaded[name], loaded[other]):
                raise ValueError(f"state_dict[{name!r}]: expected the values of {other!r}, which is the same tensor")
        self.module.load_state_dict(_tensors(loaded))

    @contextmanager
    def _on_threads(self) -> Iterator[None]:
        """While it lasts, torch computes on as many threads as were asked for."""
        before = torch.get_num_threads()
        if self._threads in (None, before):
            yield
            return
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _called(self, x: Any, state: Any, lengths: Any) -> tuple[Any, Any]:
        """What the module makes of ``x``: output and state, of tensors."""
        kind = type(self.module).__name__
        given: dict[str, Any] = {}
        if self._state is not None:
            given[self._state] = _tensors(state)
        elif state is not None and not (isinstance(state, tuple) and not state):
            raise ValueError(f"state: expected None or (), since {kind} has no state, got {type(state).__name__}")
        if self.takes_lengths:
            given["lengths"] = None if lengths is None else _lengths(lengths)
        elif lengths is not None:
            raise ValueError(f"lengths: expected None, since {kind} takes none, got {type(lengths).__name__}")
        arguments = _tensors(x)
        if isinstance(arguments, dict):
            result = self.module(**arguments, **given)
        else:
            result = self.module(*(arguments if isinstance(arguments, tuple) else (arguments,)), **given)
        result = _mapped(_checked, result)
        if self._state is None:
            return result, ()
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"module: expected output and state of {kind}, whose forward takes {self._state}")
        return result

    def _gradients(self) -> dict[str, np.ndarray]:
        """What autograd has left in ``grad``; no two of them share memory, so that each can be scaled in place."""
        found, seen = {}, set()
        for name, parameter in self._trained.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                gradient = torch.zeros_like(parameter, requires_grad=False)
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            memory = gradient.untyped_storage().data_ptr()
            gradient = gradient.clone() if memory in seen else gradient  # of a sum of two, both are views of one
            seen.add(memory)
            found[name] = gradient.numpy()
        return found


@contextmanager
def seeded(rng: Any) -> Iterator[None]:
    """While it lasts, torch draws on the CPU what follows from ``rng``: a generator, an int or None (see arrays)."""
    seed = int(arrays.generator(rng).integers(2**63))
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _check(name: str, value: Any) -> None:
    """Refuse what a checkpoint cannot hold or a step of ours cannot update."""
    if not isinstance(value, Tensor):
        raise TypeError(f"module: expected a state dict of tensors, got {checks.shown(value)} as {name!r}")
    if is_lazy(value):
        raise ValueError(f"module: expected parameters that have a shape, got {name!r}, which a first call makes")
    if value.device.type != "cpu" or value.layout is not torch.strided:
        raise ValueError(
            f"module: expected dense tensors on the CPU, where alone TorchModel trains, got {name!r}, "
            f"{value.layout} on {value.device}"
        )
    if value.is_complex() or (value.is_floating_point() and value.dtype not in _FLOATS):
        raise TypeError(f"module: expected float32 or float64, got {name!r} of {value.dtype}")
    if not torch.isfinite(value).all():
        raise ValueError(
            f"module: expected finite values, got NaN or infinite ones in {name!r}; a buffer that is made anew with "
            "the module need not be in its state dict (persistent=False)"
        )


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Nested tuples, lists and dicts with each part replaced by what ``function`` makes of it, None by None."""
    if isinstance(value, Mapping):
        return {name: _mapped(function, part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(function, part) for part in value)
    return None if value is None else function(value)


def _leaves(value: Any) -> list[Any]:
    """The parts of nested tuples and dicts; those of a dict in the order of their names."""
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in _leaves(value[name])]
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]


def _takes_gradient(output: Tensor | None) -> bool:
    return output is not None and output.requires_grad


def _checked(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"module: expected an output of tensors, got {checks.shown(output)}")
    return output


def _lengths(value: Any) -> Tensor:
    return torch.from_numpy(checks.integers(np.asarray(value), "lengths").astype(np.int64))


def _tensors(value: Any) -> Any:
    """Arrays as tensors over the same memory; what torch cannot look at, such as read-only memory, is copied."""
    return _mapped(
        lambda part: torch.from_numpy(np.require(arrays.to_numpy(part, "x"), requirements=["C", "W"])), value
    )


def _arrays(value: Any) -> Any:
    """Tensors as arrays over the same memory."""
    return _mapped(lambda part: part.detach().numpy(), value)
