"""How large a task's model is, before anything of it is made: what a checkpoint must hold, what memory it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .. import checks
from ..config import Config
from ..train.checkpoint import MODEL
from ..train.options import Options
from .base import Shape


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model with one stack of recurrent layers.

    ``layer`` is the number of the stack in its ``nn.Sequential``; ``others`` are the shapes of all other parameters, by
    name. ``fields`` maps those fields of the model's configuration that are sizes, but for ``layers``, to the tensor
    that shows each.
    """

    recurrent: Config
    layer: int
    others: Mapping[str, Shape]
    fields: Mapping[str, str]

    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by name."""
        return {**self.others, **{f"{self.layer}.{name}": shape for name, shape in self.recurrent.shapes().items()}}

    def check_memory(self, settings: Options, device: str) -> None:
        """Refuse a model that this machine cannot hold for a run of ``settings``; however many layers, none is listed.

        Raises:
            ValueError: its parameters alone, on the CPU with their gradients and the optimizer's copies, take more than
                all memory.
        """
        copies = 2 + len(settings.make_optimizer().slots) if device == "cpu" else 1
        size = 4 * copies  # bytes of a float32 and its copies
        others = sum(math.prod(shape) for shape in self.others.values())
        config = self.recurrent
        sizes = (config.hidden_size, config.num_layers, config.input_size)
        checks.fits(config.memory(size) + size * others, "hidden, layers and features of the input", sizes)

    def check_found(self, found: Mapping[str, Shape], path: str) -> dict[str, Shape]:
        """:meth:`shapes`, once each size is that of the shapes ``found`` in a checkpoint; till then no layer is listed.

        Raises:
            ValueError: a size is another; the message names it, as a field of the object at ``path``.
        """
        first = replace(self, recurrent=replace(self.recurrent, num_layers=1)).shapes()
        for name, tensor in self.fields.items():
            if (shape := found.get(tensor)) != first[tensor]:
                raise ValueError(f"{path}.{name}: expects {tensor} of shape {first[tensor]}, but {MODEL} has {shape}")
        layers = self.recurrent.num_layers
        beginning, end = f"{self.layer}.bias_ih_l", "_reverse"
        count = sum(name.startswith(beginning) and not name.endswith(end) for name in found)
        if layers != count:
            raise ValueError(f"{path}.layers: is {layers}, but {MODEL} has {count}")
        return self.shapes()
