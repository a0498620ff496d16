"""Layer normalisation (Ba, Kiros and Hinton 2016) inside a step of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..language.operators import row_mean, sqrt

EPSILON = 1e-5  # of torch.nn.LayerNorm


def normalized(values: Sequence[Any]) -> list[Any]:
    """``values``, less the mean of all of them over all units of a row, by their standard deviation."""
    mean = row_mean(sum(values)) / len(values)
    centred = [value - mean for value in values]
    scale = 1 / sqrt(row_mean(sum(value**2 for value in centred)) / len(values) + EPSILON)
    return [value * scale for value in centred]
