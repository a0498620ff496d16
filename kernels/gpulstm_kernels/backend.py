"""What a backend is, and :class:`LayerShape`, the one description of a layer's call that all of them are given.

A backend computes one recurrent layer, both directions, over a whole sequence. T steps, B batch, I input features, H
hidden units, P outputs of a direction (H without a projection), D = 1 or 2 directions, G gates. All arrays that a
backend is given are C-contiguous and aligned (:func:`gpulstm_kernels.memory.contiguous`), of the shapes that are said
here; some may be read-only. No array that it returns shares memory with them, or with another; a tape may refer to what
was given and to ``y``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .cells import Cell

Weights = Sequence[Mapping[str, Any]]
"""A dict for each direction, forward first: ``weight_ih`` (G·H, I), ``weight_hh`` (G·H, P); where the layer has them,
``bias_ih`` and ``bias_hh`` (G·H,), ``weight_hr`` (P, H), and of int8 weights ``scale_ih`` and ``scale_hh`` (G·H,)."""

States = tuple[Any, ...]
"""h (D, B, P), then each state that the cell carries, (D, B, H)."""


NARROW: dict[str, np.dtype] = {"bf16": np.dtype(np.uint16), "int8": np.dtype(np.int8)}
"""The kinds of :func:`gpulstm.quantize`, and how their weights are stored; biases and projections stay float32."""


class LayerShape(NamedTuple):
    """Sizes and features of one call of one layer.

    Attributes:
        cell: which cell.
        steps, batch, inputs, hidden, outputs, directions: T, B, I, H, P, D.
        dtype: of x, states, outputs and gradients.
        weights: dtype of ``weight_ih`` and ``weight_hh``: ``dtype``, or a narrow one of quantized weights.
        training: whether backward will be called.
        bias: whether the gates have biases.
        projected: whether h is projected from H to P features.
        ragged: whether sequences have lengths of their own.
        tf32: whether float32 products may round their factors to TF32 (10 bits of mantissa); the CUDA backends set it.
    """

    cell: Cell
    steps: int
    batch: int
    inputs: int
    hidden: int
    outputs: int
    directions: int
    dtype: np.dtype
    weights: np.dtype
    training: bool
    bias: bool
    projected: bool
    ragged: bool
    tf32: bool = False

    @classmethod
    def of(cls, cell: Cell, x: Any, weights: Weights, lengths: Any, training: bool) -> LayerShape:
        """The shape of a call with these arrays, for callers that have nothing else."""
        (steps, batch, inputs), first = x.shape, weights[0]
        rows, outputs = first["weight_hh"].shape
        hidden = rows // len(cell.gates)
        features = training, "bias_ih" in first, "weight_hr" in first, lengths is not None
        narrow = np.dtype(first["weight_hh"].dtype)
        return cls(cell, steps, batch, inputs, hidden, outputs, len(weights), np.dtype(x.dtype), narrow, *features)

    @property
    def rows(self) -> int:
        """Rows of the weights: G·H."""
        return len(self.cell.gates) * self.hidden

    @property
    def accumulate(self) -> np.dtype:
        """The dtype of sums and carried states: float64 for float64, else float32."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)


class Steps(Protocol):
    """A stack of layers that is stepped in place: ``y = steps(x)`` for x (B, I) and y (B, H)."""

    def __call__(self, x: Any) -> Any: ...

    def set_state(self, state: States) -> None:
        """Go on from h and each carried state, (L, B, H) each."""

    def get_state(self) -> States:
        """A copy of h and each carried state, (L, B, H) each."""


class Backend(Protocol):
    """A module or an object that computes layers. :mod:`gpulstm_kernels.reference` is the one to read first.

    A framework with an autograd of its own keeps arrays, not tapes: :meth:`tape_arrays` takes a tape apart without
    copying the large ones, :meth:`tape_of` puts it together again, and :meth:`tape_layout` says beforehand what the
    arrays will be.
    """

    def why_not(self, shape: LayerShape) -> str | None:
        """In words, why this backend cannot compute such a call here; None where it can."""

    def describe(self, shape: LayerShape) -> str:
        """In words, how :meth:`layer_forward` would compute such a call."""

    def layer_forward(
        self, shape: LayerShape, x: Any, state: States, weights: Weights, lengths: Any
    ) -> tuple[Any, States, Any]:
        """One layer over a whole sequence.

        Args:
            shape: of the call.
            x: input (T, B, I).
            state: the initial one.
            weights: of each direction.
            lengths: steps of each sequence (B,) int64, or None for all T. Past a sequence's length its state no
                longer changes, and y is unspecified (the caller clears it).

        Returns:
            y (T, B, D·P), the final state, and in training a tape for :meth:`layer_backward`. Weights and x must not
            change before that call.
        """

    def layer_backward(self, tape: Any, dy: Any, dstate: States) -> tuple[Any, States, list[dict[str, Any]]]:
        """The gradient of :meth:`layer_forward`.

        Args:
            tape: of a forward pass in training; not changed, so that it can be used again.
            dy: gradient of y (T, B, D·P); ignored past a sequence's length.
            dstate: gradients of the final state, shaped like it.

        Returns:
            dx (T, B, I), the gradients of the initial state, and one dict of gradients for each direction.
        """

    def tape_layout(self, shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
        """The shape and the name of the dtype of every array of :meth:`tape_arrays`.

        The first is ``ys`` (T+2, B, D·P), whose ``[1:-1]`` is y; what follows is the backend's own. ``steps`` and
        ``batch`` may be symbols: nothing but arithmetic is done with them.
        """

    def tape_arrays(self, tape: Any) -> list[Any]:
        """The arrays that make ``tape``, no two of which overlap, beside the arguments of :meth:`layer_forward`."""

    def tape_of(self, shape: LayerShape, x: Any, weights: Weights, lengths: Any, arrays: Sequence[Any]) -> Any:
        """The tape that :meth:`tape_arrays` took apart; the other arguments are those of :meth:`layer_forward`."""

    def stream(self, shape: LayerShape, layers: Weights) -> Steps | None:
        """A stack of unidirectional ``layers`` to be stepped in place, ``shape`` that of a step of the first.

        None where the backend has no such kernels: then each step is a call of :meth:`layer_forward`.
        """
