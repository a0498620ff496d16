"""``Recurrent``: a stack of layers of any cell, as a torch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell

from .. import cells
from .. import noise as noises
from ..config import Config
from . import equations
from .stack import Stack
from .tensors import check_dtype


class Recurrent(Stack):
    """A stack of recurrent layers of any cell, with the arguments and names of :class:`gpulstm.nn.Recurrent`::

        layer = Recurrent("time_gap", 64, 256)
        y, (h, c) = layer(x, inputs={"gap": gap})

    Args:
        cell: a cell or the name of a registered one (:mod:`gpulstm.cells`).
        input_size: features I of the input; None where x holds pre-activations (T, B, D·G·H), what products with
            ``weight_ih_l0`` would give, of each direction one after another. Then there is one layer, without that.
        hidden_size: units H of each layer and direction.
        num_layers: layers L.
        bias: whether the gates have ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are (B, T, ·) rather than (T, B, ·); states are not.
        dropout: probability with which a value between two layers is dropped in training.
        bidirectional: a second set of layers runs from the end; outputs are joined, D = 2.
        proj_size: if above 0, h is projected to P = ``proj_size`` features by ``weight_hr``.
        heads: N blocks of units that see each other's h alone: ``weight_hh_l0`` is (N, G·H/N, H/N).
        noise: probabilities of those of the cell's inputs that are drawn, such as ``{"mask": 0.25}``: in training, from
            a seed of torch's generator, at each step or once a sequence, as the cell declares or as
            ``{"mask": (0.25, "sequence")}`` says; in evaluation they have their expectation.
        device, dtype: of the parameters.

    Parameters have the names, shapes and order of ``gpulstm.nn.Recurrent``, and are drawn from ±1/√H. A pickle of a
    module, or of a model that has it, holds the name of the cell's function, no code.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    _words = ("x", "state")

    def __init__(
        self,
        cell: str | Cell,
        input_size: int | None,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        heads: int = 1,
        noise: Mapping[str, Any] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_dtype(dtype)
        sizes = input_size, hidden_size, num_layers
        cell = cells.get(cell)
        settings = noises.settings(cell, noise)
        config = Config(cell, *sizes, bias, batch_first, dropout, bidirectional, proj_size, heads, noise=settings)
        super().__init__()
        self.config, self._noise = config, settings
        # As torch.nn.RNNBase has them.
        self.input_size: Any = config.input_size  # or None
        self.hidden_size, self.num_layers, self._gates_given = config.hidden_size, config.num_layers, input_size is None
        self.bias, self.batch_first, self.bidirectional = config.bias, config.batch_first, config.bidirectional
        self.dropout, self.proj_size = config.dropout, config.proj_size
        self._all_weights = [[full for _, full, _ in own] for layer in config.parameters for own in layer]
        for name, shape in config.shapes().items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()
        self._text = equations.prepare(config.cell)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(dict(state))
        self._text = equations.prepare(cells.get(self.config.cell))  # other cells may be known to this process

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def _features(self) -> int:
        return self.config.features

    def _cell(self) -> Cell:
        return self.config.cell

    def _key(self) -> str:
        return self._text

    def forward(
        self,
        x: Any,
        state: Tensor | Sequence[Tensor] | None = None,
        *,
        lengths: Any = None,
        resets: Tensor | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, Any]:
        """``y, state``, the state being ``h``, or ``(h, c, ...)`` for a cell that carries more.

        Args:
            x: (T, B, I), (B, T, I) with ``batch_first``, (T, I) for one sequence, or a ``PackedSequence``.
            state: the initial h (L·D, B, P), or ``(h, c, ...)``, each other state (L·D, B, H); None for zeros.
            lengths: steps of each sequence (B,), in 0 .. T; None for T. Past them y is zero, and the final state is
                that of the last step. A ``PackedSequence`` has its own.
            resets: bools (T, B), laid out like ``x``: True where a new sequence begins, before whose first step h and
                the states are zero, whatever ``state`` was given. Gradients do not cross it.
            inputs: where the cell declares any, tensors by their names, laid out like ``x``: (T, B) or (T, B, 1), a
                value a step and row, or (T, B, H), one a unit too; of the dtype of ``x``, or bools. Those that the
                cell calls differentiable have a gradient. Each layer and direction is given the same. Noise may be
                left out; what is drawn is another for each layer, and at a step the same for both directions.

        With a ``PackedSequence`` ``resets`` and ``inputs`` are padded, T the longest length, with rows in the order of
        the state's.

        Raises:
            TypeError: what is no tensor, or of another dtype.
            ValueError: a shape, length or device that does not fit, inputs that are missing or left over; the message
                names the argument.
        """
        if len(self.config.cell.states) == 0 and isinstance(state, Tensor):
            state = (state,)
        y, final = self._run(x, state, lengths, resets, inputs)
        return y, final if len(final) > 1 else final[0]

    def extra_repr(self) -> str:
        shown = [repr(self.config.cell.name), str(self.input_size), str(self.hidden_size)]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        defaults |= {"bidirectional": False, "proj_size": 0, "heads": 1}
        shown += [
            f"{name}={getattr(self.config, name)}"
            for name, value in defaults.items()
            if getattr(self.config, name) != value
        ]
        shown += [f"noise={noises.argument(self.config.cell, self._noise)}"] * bool(self._noise)
        return ", ".join(shown)
