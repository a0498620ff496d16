"""The shape of a recurrent network: its sizes, its parameters' names and shapes, its states, the memory it takes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from gpulstm_kernels.backend import LayerShape

from . import checks
from .cells import Cell
from .noise import Setting

StateLayout = list[tuple[str, tuple[int, ...]]]
"""The name and the shape of h and of each carried state."""

_ARRAY = 512  # bytes that an array takes beside its numbers, with its name in a dict


@dataclass(frozen=True)
class Config:
    """The shape of a recurrent network, with the arguments and names of ``torch.nn.LSTM``.

    Without ``input_size`` x holds pre-activations (T, B, D·Gx·H), what products of the input with a ``weight_ih`` would
    give, in the order of its rows: gates before x_gates, of each direction one after another.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a size below 1, more than one layer without ``input_size``, or then no parameter at all; dropout or
            ``weight_dropout`` outside [0, 1), ``proj_size`` not below ``hidden_size``, or a projection for a cell that
            reads h other than through a product or has no recurrent product; ``heads`` that do not divide
            ``hidden_size``, or more than one for a cell without recurrent product or with a projection; unknown cell.
    """

    cell: Cell
    input_size: int | None
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    heads: int = 1
    weight_dropout: float = 0.0
    noise: tuple[Setting, ...] = ()
    """Of :func:`gpulstm.noise.settings`."""

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers"):
            if name != "input_size" or self.input_size is not None:
                checks.integer(getattr(self, name), name)
        checks.integer(self.proj_size, "proj_size", 0)
        checks.real(self.dropout, "dropout", "[0, 1)")
        for name in ("bias", "batch_first", "bidirectional"):
            checks.flag(getattr(self, name), name)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size: expected less than hidden_size = {self.hidden_size}, got {self.proj_size}")
        if self.proj_size and (self.cell.reads_h or self.cell.stages > 1 or not self.cell.gates_of_h):
            why = "reads h unit by unit" if self.cell.reads_h else "has no recurrent product"
            why = "has stages" if self.cell.stages > 1 else why
            raise ValueError(f"proj_size: expected 0 for cell {self.cell.name!r}, which {why}, got {self.proj_size}")
        checks.integer(self.heads, "heads")
        checks.real(self.weight_dropout, "weight_dropout", "[0, 1)")
        if self.weight_dropout and not self.cell.gates_of_h:
            why = f"cell {self.cell.name!r}, which has no recurrent weights"
            raise ValueError(f"weight_dropout: expected 0 with {why}, got {self.weight_dropout}")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads: expected a divisor of hidden_size = {self.hidden_size}, got {self.heads}")
        if self.heads > 1 and (self.proj_size or not self.cell.gates_of_h):
            why = "a projection" if self.proj_size else f"cell {self.cell.name!r}, which has no recurrent product"
            raise ValueError(f"heads: expected 1 with {why}, got {self.heads}")
        if self.input_size is None and self.num_layers > 1:
            why = "where x holds the pre-activations of one layer"
            raise ValueError(f"num_layers: expected 1 without input_size, {why}, got {self.num_layers}")
        if self.input_size is None and not self.parameters[0][0]:  # of one layer: others may be too many to list
            why = f"cell {self.cell.name!r}, a layer of which has no other parameter without input_size"
            raise ValueError(f"bias: expected True with {why}, got False")

    def memory(self, itemsize: int) -> int:
        """Bytes that the parameters take, of ``itemsize`` bytes a number; however many layers, none is listed."""

        def size(layers: int) -> int:
            shapes = replace(self, num_layers=layers).shapes().values()
            return sum(math.prod(shape) * itemsize + _ARRAY for shape in shapes)

        first = size(1)
        return first if self.num_layers == 1 else first + (self.num_layers - 1) * (size(2) - first)

    def check_memory(self, itemsize: int) -> None:
        """Refuse sizes whose parameters, of ``itemsize`` bytes a number, this machine cannot hold."""
        sizes = self.input_size, self.hidden_size, self.num_layers
        checks.fits(self.memory(itemsize), "input_size, hidden_size, num_layers", sizes)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of h in one direction: the projection's where there is one."""
        return self.proj_size or self.hidden_size

    @property
    def features(self) -> int:
        """Of x: inputs, or pre-activations where there is no ``input_size``."""
        if self.input_size is None:
            return self.directions * len(self.cell.gates_of_x) * self.hidden_size
        return self.input_size

    @functools.cached_property
    def input_shapes(self) -> tuple[checks.Shape, checks.Shape]:
        """The shapes of x: of a batch, and of one sequence."""
        outer = ("B", "T") if self.batch_first else ("T", "B")
        return (*outer, self.features), ("T", self.features)

    def suffixes(self) -> list[list[str]]:
        """For each layer, what its directions' parameter names end in."""
        ends = ["", "_reverse"][: self.directions]
        return [[f"_l{layer}{end}" for end in ends] for layer in range(self.num_layers)]

    @functools.cached_property
    def parameters(self) -> list[list[list[tuple[str, str, tuple[int, ...]]]]]:
        """For each layer and direction its parameters, in torch's order: (name in it, torch's name, shape)."""
        cell, hidden, inputs = self.cell, self.hidden_size, self.features
        rows = {"ih": len(cell.gates_of_x) * hidden, "hh": len(cell.gates_of_h) * hidden}
        products = [name for name in rows if rows[name]]
        layers = []
        for ends in self.suffixes():
            own: dict[str, tuple[int, ...]] = {}
            own |= {f"weight_{n}": (rows[n], inputs if n == "ih" else self.output_size) for n in products}
            if self.heads > 1:
                own["weight_hh"] = (self.heads, rows["hh"] // self.heads, hidden // self.heads)
            if self.input_size is None:
                del own["weight_ih"]
            if self.bias:
                own |= {f"bias_{n}": (rows[n],) for n in products}
            if self.proj_size:
                own["weight_hr"] = (self.proj_size, hidden)
            own |= dict.fromkeys(cell.params, (hidden,))
            own |= {f"weight_{name}": (hidden, hidden) for name in cell.weights}
            layers.append([[(name, name + end, shape) for name, shape in own.items()] for end in ends])
            inputs = self.output_size * self.directions
        return layers

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, under torch's names and in torch's order."""
        return {name: shape for layer in self.parameters for own in layer for _, name, shape in own}

    def layer_shape(
        self,
        layer: int,
        steps: int,
        batch: int,
        dtype: np.dtype,
        weights: np.dtype,
        training: bool,
        ragged: bool,
        resets: bool = False,
    ) -> LayerShape:
        """Of a call of one layer; ``weights`` is the dtype of its matrices, which quantized ones have of their own."""
        # By position and without properties, which every call of a network would pay: names make this twice as slow.
        outputs, directions = self.proj_size or self.hidden_size, 2 if self.bidirectional else 1
        inputs = outputs * directions if layer else self.input_size or self.features
        return LayerShape(
            self.cell,
            steps,
            batch,
            inputs,
            self.hidden_size,
            outputs,
            directions,
            dtype,
            weights,
            training,
            self.bias,
            self.proj_size > 0,
            ragged,
            resets,
            self.heads,
            False,
            self.input_size is None,
        )

    def state_layout(self, rows: tuple[int, ...]) -> StateLayout:
        """The name and the shape of h and of each carried state; ``rows`` is (B,), or () for one sequence."""
        leading = (self.num_layers * self.directions, *rows)
        return state_layout(self.cell, leading, self.proj_size or self.hidden_size, self.hidden_size)

    def state_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """The shapes of h and of each carried state."""
        return [shape for _, shape in self.state_layout((batch,))]


def state_layout(cell: Cell, leading: tuple[int, ...], outputs: int, hidden: int) -> StateLayout:
    """The name and the shape of h (P = ``outputs`` features) and of each carried state (H = ``hidden``).

    ``leading`` are the axes that all have in common, before the features.
    """
    carried = (*leading, hidden)
    return [("h", (*leading, outputs)), *[(name, carried) for name in cell.states]]
