"""One step at a time: a recurrent layer that carries its own state, for input that arrives as it is needed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpulstm_kernels.backend import Backend
from gpulstm_kernels.memory import contiguous

from .. import arrays, checks, dispatch, noise, ops
from ..config import Config
from .model import Params, RecurrentLayer, unwrap_single


class Streamed(RecurrentLayer):
    """A layer of one cell, described by ``config``, that can be stepped."""

    config: Config

    def params_for(self, backend: Backend) -> Params:
        """What ``backend`` takes."""
        return self.params

    def stream(self, batch_size: int = 1, state: Any = None) -> Stream:
        """This layer one step at a time; see :class:`gpulstm.nn.Stream` for the arguments and what is raised."""
        return Stream(self, batch_size, state)


class Stream:
    """Steps ``layer`` on one input after another: ``y = stream(x)``, for a cell that declares inputs
    ``y = stream(x, inputs={name: value})``; made by ``layer.stream(batch_size, state)``.

    On the CPU a step without a projection allocates nothing: the output and the states live in the stream's own
    buffers. It reads float parameters in place, so a change in place acts from the next step on. A stream is a
    state: use it from one thread at a time.

    Args:
        layer: a unidirectional recurrent layer.
        batch_size: rows B that are stepped together.
        state: as for the layer, (L, B, ·) each; None for zeros.

    Raises:
        TypeError: ``batch_size`` or a state of the wrong type or dtype.
        ValueError: a bidirectional layer (its reverse direction starts at the end), a size or shape that does not fit,
            more rows than memory holds, on the CPU a float parameter that is not C-contiguous and aligned.
    """

    def __init__(self, layer: Streamed, batch_size: int = 1, state: Any = None) -> None:
        if not isinstance(layer, Streamed):
            raise TypeError(f"layer: expected a recurrent layer such as gpulstm.LSTM, got {type(layer).__name__}")
        config = layer.config
        if config.bidirectional:
            raise ValueError("layer: expected a unidirectional layer, got a bidirectional one, which starts at the end")
        self._config, self._device = config, layer.device
        self._batch = checks.integer(batch_size, "batch_size")
        self._shape = (self._batch, config.features)
        self._declares = config.cell.inputs
        self._drawn = len(config.noise) == len(self._declares)  # so that nothing need be given
        self._shapes_of_inputs = (self._batch,), (self._batch, 1), (self._batch, config.hidden_size)
        self._params = dict(layer.params_for(dispatch.select(None, self._device)[0].module))
        self._dtype = ops.dtype_of(self._params)
        library = arrays.library(self._device)
        self._expected = noise.expectations(config.cell, config.noise, (self._batch,), self._dtype, library)
        held = sum(math.prod(shape) for shape in config.state_shapes(self._batch)) * self._dtype.itemsize
        checks.fits(held, "batch_size", self._batch)
        shape, layers = ops.stack_to_step(config, self._params, self._batch)
        backend = ops.select_backend(self._params, shape, self._device)[0].module  # the first may lack the cell
        self._kernels = backend.stream(shape, layers)
        if self._kernels is not None and next(iter(self._params.values())).dtype == self._dtype:
            self._check_no_copies()
        self.reset(state)

    def _check_no_copies(self) -> None:
        """Float parameters are read in place: there may be no copy of one, which would not change with it."""
        for name, value in self._params.items():
            array = arrays.to_numpy(value, name)
            if contiguous(array) is not array:
                raise ValueError(
                    f"layer: expected C-contiguous, aligned parameters, which a stream reads in place: {name}"
                )

    def reset(self, state: Any = None) -> None:
        """Go on from ``state``, as for the layer; None for zeros."""
        given = ops.check_state("state", self._config, state, self._batch, False, self._dtype, self._device)
        if self._kernels is None:
            self._state = tuple(arrays.library(self._device).copy(part) for part in given)
        else:
            self._kernels.set_state(given)

    @property
    def state(self) -> Any:
        """A copy of the state, in the layer's form: (h, c) of (L, B, ·) each, or h alone."""
        parts = self._state if self._kernels is None else self._kernels.get_state()
        copies = tuple(arrays.library(self._device).copy(part) for part in parts)
        return unwrap_single(copies)

    def __call__(self, x: Any, resets: Any = None, *, inputs: Any = None) -> Any:
        """The output (B, P) for one input (B, I). The array may be written again two steps later: copy what you keep.

        On the CPU, without a projection, it is the stream's own h, and therefore read-only.

        Args:
            x: one input (B, I).
            resets: bools (B,): True for a row that begins a sequence with this step, before which its h and states
                are zero, whatever they were; None for no row.
            inputs: where the cell declares any, a dict of arrays by their names: (B,) or (B, 1), a value a row, or
                (B, H), one a unit too; of the layer's dtype, or bools, which are 1 and 0. Each layer is given the same.
                Noise that is left out has its expectation.

        Raises:
            TypeError, ValueError: ``x`` is no array of the layer's dtype and of that shape, ``resets`` are no bools or
                have another shape, or inputs are missing or left over, of another dtype or shape; the state is as
                before.
        """
        if resets is not None:
            resets = self._check_resets(resets)
        if inputs is not None or self._declares:
            inputs = self._check_inputs(inputs)
        if self._kernels is None:
            x = checks.array(x, "x", self._dtype, self._shape, device=self._device)
            return self._call_layers(x, resets, inputs)
        flags = x.flags if type(x) is np.ndarray else None
        well = flags is not None and flags.c_contiguous and flags.aligned
        if not well or x.dtype is not self._dtype or x.shape != self._shape:
            x = contiguous(checks.array(x, "x", self._dtype, self._shape))
        return self._kernels(x, inputs, resets)

    # What lies well is taken at once, since checks take longer than a small step. Other arrays are checked as if they
    # were for the steps of one sequence, which have one axis too.

    def _check_resets(self, resets: Any) -> np.ndarray:
        """(B,) of bool."""
        if type(resets) is np.ndarray and resets.dtype == np.bool_ and resets.shape == (self._batch,):
            return resets
        return ops.check_resets(self._config, resets, ops.Layout(self._batch, 1, True), None)[:, 0]

    def _check_inputs(self, inputs: Any) -> list[Any]:
        """(B, 1) or (B, H) of each of the cell's inputs."""
        if self._declares and inputs is None and self._drawn:
            return list(self._expected.values())
        if self._declares and type(inputs) is dict and inputs.keys() == set(self._declares):
            values = [inputs[name] for name in self._declares]
            if all(map(self._is_well, values)):
                return [value[:, None] if value.ndim == 1 else value for value in values]
        layout = ops.Layout(self._batch, 1, True)
        values = ops.check_inputs(self._config, inputs, layout, None, self._dtype, self._device)
        pairs = zip(self._declares, values, strict=True)
        return [self._expected[name] if value is None else value[:, 0] for name, value in pairs]

    def _is_well(self, value: Any) -> bool:
        return type(value) is np.ndarray and value.dtype is self._dtype and value.shape in self._shapes_of_inputs

    def _call_layers(self, x: Any, resets: Any, inputs: Any) -> Any:
        """A step as a sequence of one, of arguments that are checked."""
        time = 1 if self._config.batch_first else 0
        if resets is not None:
            resets = _with_axis(resets, time)
        if inputs is not None:
            inputs = {name: _with_axis(value, time) for name, value in zip(self._declares, inputs, strict=True)}
        x = _with_axis(x, time)
        y, self._state, _ = ops.rnn_forward(self._config, self._params, x, self._state, None, resets, inputs=inputs)
        return y[:, 0] if time else y[0]


def _with_axis(array: Any, axis: int) -> Any:
    return array[:, None] if axis else array[None]
