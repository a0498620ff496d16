"""Noise that a module draws for its cell's inputs: one operator, which compiled and captured graphs hold.

``gpulstm::noise``
    two words of seed (2,) int32, the number of what is drawn, how many parts of :data:`gpulstm.arrays.random.PARTS` are
    a hit, the values of a hit and of a miss, whether all steps are as the first, T, B, H and the dtype. Gives
    (T, B, H) on the seed's device, as :func:`gpulstm.arrays.random.noise` says: what ``gpulstm.nn`` draws of such
    words.

The seed comes from torch's generator of that device, so that ``torch.manual_seed`` repeats it, and a CUDA graph draws
another at each replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpulstm_kernels.cells import Cell

from .. import arrays
from ..arrays.random import PARTS, CounterGenerator
from ..noise import Setting
from . import bridge
from .operator import library
from .tensors import HALVES

library.define(
    "noise(Tensor seed, int stream, int below, float hit, float miss, bool once, SymInt steps, SymInt batch, "
    "SymInt units, ScalarType dtype) -> Tensor",
    tags=[torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded],
)
_draw = torch.ops.gpulstm.noise.default


def _noise(
    seed: Tensor,
    stream: int,
    below: int,
    hit: float,
    miss: float,
    once: bool,
    steps: int,
    batch: int,
    units: int,
    dtype: torch.dtype,
) -> Tensor:
    drawn = torch.empty((steps, batch, units), dtype=dtype, device=seed.device)
    with bridge.on_stream_of(seed):
        (words,), (target,) = bridge.to_arrays([seed]), bridge.to_arrays([drawn])
        own = arrays.library(bridge.backend_device(seed.device))
        own.draw_noise(target, CounterGenerator(words.view(np.uint32)), stream, below, hit, miss, once)
    return drawn


library.impl("noise", _noise, "CompositeExplicitAutograd")


@torch.library.register_fake("gpulstm::noise", lib=library)
def _noise_shape(seed: Tensor, *arguments: Any) -> Tensor:
    *_, steps, batch, units, dtype = arguments
    return seed.new_empty((steps, batch, units), dtype=dtype)


def _noise_vmap(info: Any, in_dims: tuple[Any, ...], seed: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    return torch.stack([_draw(one, *arguments) for one in seed.unbind(in_dims[0])]), 0


torch.library.register_vmap("gpulstm::noise", _noise_vmap, lib=library)


def of_layers(
    cell: Cell,
    settings: Sequence[Setting],
    values: Sequence[Tensor | None],
    x: Tensor,
    hidden: int,
    layers: int,
    training: bool,
) -> list[Tensor]:
    """The inputs (N, T, B, W) of each of ``layers``.

    Args:
        cell: what declares them.
        settings: what noise is like.
        values: of the inputs in their order those that a call gives, (T, B, W) each, W being H or 1; None for noise.
        x: the layer's input (T, B, I).
        hidden: H.
        layers: how many.
        training: whether noise is drawn, for each layer anew; else it is what it is on average.
    """
    of, (steps, batch, _) = {one.input: one for one in settings}, x.shape
    if not training or all(value is not None for value in values):
        given = [
            x.new_full((steps, batch, 1), of[name].expectation) if value is None else value
            for name, value in zip(cell.inputs, values, strict=True)
        ]
        return [_together(given, hidden)] * layers
    seed = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=x.device)
    dtype = torch.float32 if x.device.type == "cpu" and x.dtype in HALVES else x.dtype
    found = []
    for layer in range(layers):
        parts = []
        for k, (name, value) in enumerate(zip(cell.inputs, values, strict=True)):
            if value is None:
                one, stream = of[name], layer * len(values) + k
                below, once = round(one.p * PARTS), one.each == "sequence"
                value = _draw(seed, stream, below, *one.values, once, steps, batch, hidden, dtype)
            parts.append(value.to(dtype))
        found.append(_together(parts, hidden))
    return found


def _together(values: Sequence[Tensor], hidden: int) -> Tensor:
    """(N, T, B, W) of (T, B, W) each: W is 1 where none has a value for each of the ``hidden`` units."""
    if len(values) == 1:
        return values[0].unsqueeze(0)
    width = hidden if any(value.shape[-1] == hidden for value in values) else 1
    return torch.stack([value.expand(*value.shape[:2], width) for value in values])
