"""Inputs of a cell that a layer draws: the masks of zoneout, recurrent dropout and variational dropout.

In training they are drawn by counter (:func:`gpulstm.arrays.random.noise`) from a seed: what is drawn for a layer's
input at a step, row and unit follows from that place and the seed, on every backend and however many threads there are.
In inference they have their expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpulstm_kernels.cells import SPANS, Cell, Noise

from . import arrays, checks
from .arrays.random import PARTS, CounterGenerator


class Setting(NamedTuple):
    """What a layer draws for one input: as :class:`gpulstm_kernels.cells.Noise` says, with this probability p."""

    input: str
    distribution: str
    each: str
    p: float

    @property
    def expectation(self) -> float:
        return self.p if self.distribution == "bernoulli" else 1.0

    @property
    def values(self) -> tuple[float, float]:
        """What is drawn with probability p, and else; rounded to float32, as every backend has it."""
        return (1.0, 0.0) if self.distribution == "bernoulli" else (0.0, float(np.float32(1 / (1 - self.p))))


def settings(cell: Cell, noise: Any) -> tuple[Setting, ...]:
    """A layer's argument ``noise``, in the order in which ``cell`` declares its inputs; None for nothing drawn.

    Raises:
        TypeError: it is no dict, or a probability no number.
        ValueError: an input that is no noise, a probability out of range, or neither ``"step"`` nor ``"sequence"``.
    """
    if noise is None:
        return ()
    declared = {one.input: one for one in cell.noise}
    found = {}
    for name, value in checks.named(noise, "noise", "probabilities").items():
        if name not in declared:
            known = f"{', '.join(declared)}, which cell {cell.name!r} declares as noise"
            none = f"None, since cell {cell.name!r} declares no noise"
            raise ValueError(f"noise: expected {known if declared else none}, got {name!r}")
        found[name] = _setting(declared[name], value)
    return tuple(found[name] for name in cell.inputs if name in found)


def _setting(noise: Noise, value: Any) -> Setting:
    label, each = f"noise[{noise.input!r}]", noise.each
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{label}: expected a probability, or one with 'step' or 'sequence', got {value!r}")
        value, each = value[0], checks.choice(value[1], label, SPANS)
    p = checks.real(value, label, "[0, 1]" if noise.distribution == "bernoulli" else "[0, 1)")
    return Setting(noise.input, noise.distribution, each, p)


def argument(cell: Cell, settings: Sequence[Setting]) -> dict[str, Any]:
    """The argument that :func:`settings` makes these of."""
    usual = {one.input: one.each for one in cell.noise}
    return {one.input: one.p if one.each == usual[one.input] else (one.p, one.each) for one in settings}


def described(settings: Sequence[Setting]) -> str:
    """In words, for people."""
    return ", ".join(f"{one.input} {one.distribution} with p = {one.p:g} a {one.each}" for one in settings)


def expectations(
    cell: Cell, settings: Sequence[Setting], rows: tuple[int, ...], dtype: np.dtype, library: arrays.Arrays
) -> dict[str, Any]:
    """(*rows, 1) of each input that is drawn, by name."""
    return {one.input: library.from_host(np.full((*rows, 1), one.expectation, dtype)) for one in settings}


class Source(NamedTuple):
    """Where the layers of one call draw from: words of seed, and the number of the first one's first input."""

    counter: CounterGenerator
    first: int


def source(cell: Cell, layers: int, rng: Any, library: arrays.Arrays) -> Source:
    """The next of :meth:`gpulstm.arrays.Arrays.counter`, for so many layers."""
    counter = library.counter(rng)
    first = counter.draws
    counter.draws += layers * len(cell.inputs)
    return Source(counter, first)


def draw(
    cell: Cell,
    settings: Sequence[Setting],
    values: Sequence[Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    source: Source,
    layer: int,
    library: arrays.Arrays,
) -> Any:
    """All inputs of one layer, (N, T, B, H) with ``shape`` (T, B, H): ``values`` (T, B, H or 1), drawn where None."""
    of = {one.input: one for one in settings}
    together = library.empty((len(values), *shape), dtype)
    for k, (name, value) in enumerate(zip(cell.inputs, values, strict=True)):
        if value is not None:
            library.spread(together[k], value)
            continue
        one, stream = of[name], source.first + layer * len(values) + k
        library.draw_noise(
            together[k], source.counter, stream, round(one.p * PARTS), *one.values, one.each == "sequence"
        )
    return together
