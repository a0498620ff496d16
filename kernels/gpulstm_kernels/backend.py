"""What a backend is, and :class:`LayerShape`, the one description of a layer's call that all of them are given.

A backend computes one recurrent layer, both directions, over a whole sequence. T steps, B batch, I input features, H
hidden units, P outputs of a direction (H without a projection), D = 1 or 2 directions, Gx and Gh gates of the input's
and of h's product, G both where a cell sums them. All arrays that a backend is given are C-contiguous and aligned
(:func:`gpulstm_kernels.memory.contiguous`), of the shapes that are said here; some may be read-only. No array that it
returns shares memory with them, or with another; a tape may refer to what was given and to ``y``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .cells import Cell

Weights = Sequence[Mapping[str, Any]]
"""A dict for each direction, forward first: ``weight_ih`` (Gx·H, I), rows of the cell's ``gates`` before those of its
``x_gates``; ``weight_hh`` (Gh·H, P), likewise with ``h_gates``, where there are any, or with N heads (N, Gh·H/N, H/N),
of each head its own units' rows and what they read of h; where the layer has them,
``bias_ih`` (Gx·H,) and ``bias_hh`` (Gh·H,), ``weight_hr`` (P, H), of int8 weights ``scale_ih`` and ``scale_hh``; and
each of the cell's parameters, (H,), by its name, and each of its own weights, (H, H), as
``weight_<name>``. Where x holds pre-activations there is no ``weight_ih``."""

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
        resets: whether sequences begin anew within the call.
        heads: blocks on the diagonal of the recurrent weights, which have nothing else: N.
        tf32: whether float32 products may round their factors to TF32 (10 bits of mantissa); the CUDA backends set it.
        gates_given: whether x is what its product with ``weight_ih`` would be, of each direction one after another:
            I = D·Gx·H, of each direction's in the order of that weight's rows.
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
    resets: bool = False
    heads: int = 1
    tf32: bool = False
    gates_given: bool = False

    @classmethod
    def of(cls, cell: Cell, x: Any, weights: Weights, lengths: Any, training: bool, resets: Any = None) -> LayerShape:
        """The shape of a call with these arrays, for callers that have nothing else."""
        (steps, batch, inputs), first = x.shape, weights[0]
        gates_given = "weight_ih" not in first
        rows = inputs // len(weights) if gates_given else first["weight_ih"].shape[0]
        hidden = rows // len(cell.gates_of_x)
        outputs = first["weight_hr"].shape[0] if "weight_hr" in first else hidden
        heads = len(first["weight_hh"]) if "weight_hh" in first and first["weight_hh"].ndim == 3 else 1
        features = training, "bias_ih" in first, "weight_hr" in first, lengths is not None, resets is not None, heads
        narrow = np.dtype(first.get("weight_ih", first.get("weight_hh", x)).dtype)
        sizes = steps, batch, inputs, hidden, outputs, len(weights), np.dtype(x.dtype), narrow
        return cls(cell, *sizes, *features, gates_given=gates_given)

    @property
    def rows(self) -> int:
        """Gates of all units: G·H where the cell sums both products, as many rows as both weights have."""
        return len(self.cell.preactivations) * self.hidden

    @property
    def rows_of_x(self) -> int:
        """Rows of ``weight_ih``: Gx·H."""
        return len(self.cell.gates_of_x) * self.hidden

    @property
    def rows_of_h(self) -> int:
        """Rows of ``weight_hh``: Gh·H."""
        return len(self.cell.gates_of_h) * self.hidden

    @property
    def multiplied(self) -> int:
        """Features of x that ``weight_ih`` is multiplied with: none where they are pre-activations."""
        return 0 if self.gates_given else self.inputs

    @property
    def units_of_head(self) -> int:
        """Units that see each other's h: H/N."""
        return self.hidden // self.heads

    def given_columns(self, direction: int) -> slice:
        """Of the features of x the pre-activations of a direction, where x holds them."""
        return slice(direction * self.rows_of_x, (direction + 1) * self.rows_of_x)

    @property
    def accumulate(self) -> np.dtype:
        """The dtype of sums and carried states: float64 for float64, else float32."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)


class Steps(Protocol):
    """A stack of layers that is stepped in place: ``y = steps(x)`` for x (B, I) and y (B, H).

    ``inputs``, (B, H) or (B, 1) each, and ``resets`` (B,) are those of the step: :meth:`Backend.layer_forward` says
    what they are.
    """

    def __call__(self, x: Any, inputs: Any = None, resets: Any = None) -> Any: ...

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
        self,
        shape: LayerShape,
        x: Any,
        state: States,
        weights: Weights,
        lengths: Any,
        inputs: Any = None,
        resets: Any = None,
    ) -> tuple[Any, States, Any]:
        """One layer over a whole sequence.

        Args:
            shape: of the call.
            x: input (T, B, I), or pre-activations of the input (T, B, D·Gx·H).
            state: the initial one.
            weights: of each direction.
            lengths: steps of each sequence (B,) int64, or None for all T. Past a sequence's length its state no
                longer changes, and y is unspecified (the caller clears it).
            inputs: those of the cell in their order, (N, T, B, W), W being H, or 1 where a row's units share a value;
                None for a cell without any. What lies past a sequence's length is finite.
            resets: (T, B) of bool, where a sequence begins: h and the states before that step are zero, whatever they
                were; None for nowhere. A direction that runs back comes to the same border a step of time later: it
                begins anew before step t where ``resets[t + 1]``. False past a sequence's length.

        Returns:
            y (T, B, D·P), the final state, and in training a tape for :meth:`layer_backward`. No argument must change
            before that call.
        """

    def layer_backward(self, tape: Any, dy: Any, dstate: States) -> tuple[Any, States, list[dict[str, Any]]]:
        """The gradient of :meth:`layer_forward`.

        Args:
            tape: of a forward pass in training; not changed, so that it can be used again.
            dy: gradient of y (T, B, D·P); ignored past a sequence's length.
            dstate: gradients of the final state, shaped like it.

        Returns:
            dx, of the shape of x, the gradients of the initial state, and one dict of gradients for each direction: of
            the weights, and as ``inputs.<name>``, (T, B, W), of the cell's differentiable inputs.
        """

    def tape_layout(self, shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
        """The shape and the name of the dtype of every array of :meth:`tape_arrays`.

        The first is ``ys`` (T+2, B, D·P), whose ``[1:-1]`` is y; what follows is the backend's own. ``steps`` and
        ``batch`` may be symbols: nothing but arithmetic is done with them.
        """

    def tape_arrays(self, tape: Any) -> list[Any]:
        """The arrays that make ``tape``, no two of which overlap, beside the arguments of :meth:`layer_forward`."""

    def tape_of(
        self,
        shape: LayerShape,
        x: Any,
        weights: Weights,
        lengths: Any,
        arrays: Sequence[Any],
        inputs: Any = None,
        resets: Any = None,
    ) -> Any:
        """The tape that :meth:`tape_arrays` took apart; the other arguments are those of :meth:`layer_forward`."""

    def stream(self, shape: LayerShape, layers: Weights) -> Steps | None:
        """A stack of unidirectional ``layers`` to be stepped in place, ``shape`` that of a step of the first.

        None where the backend has no such kernels: then each step is a call of :meth:`layer_forward`.
        """
