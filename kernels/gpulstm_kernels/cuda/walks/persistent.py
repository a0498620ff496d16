"""What the host sides of the persistent walks share; their kernels share ``persistent.cuh`` and ``tile.cuh``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...backend import LayerShape
from ..device.runtime import Device

# tile.cuh has the same two.
COLUMNS = 8  # sequences a tile
CHUNK = 64  # bytes of a row that a slice is cut into


@dataclass(frozen=True)
class Plan:
    """How a persistent walk would be launched.

    Attributes:
        threads: a block.
        grid: blocks along x, y, z.
        shared: bytes of dynamic shared memory a block.
    """

    threads: int
    grid: tuple[int, int, int]
    shared: int


def cannot_persist(device: Device, shape: LayerShape) -> str | None:
    """In words, why no persistent walk computes this kind of layer on ``device``; None where one may."""
    if shape.projected:
        return "it has no projection"
    if shape.dtype == np.float64:
        return "it has no float64"
    if device.capability < 80 and (shape.tf32 or shape.dtype.name == "bfloat16"):
        kind = "TF32" if shape.tf32 else "bfloat16"
        return f"tensor cores multiply {kind} from compute capability 8.0 on, this is {device.capability / 10}"
    return None


def reason_in(found: Plan | str) -> str | None:
    """In words, why no plan was found; None where one was."""
    return found if isinstance(found, str) else None


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def planned(found: AnyPlan | str, walk: str) -> AnyPlan:
    """The plan of ``walk``, where there is one.

    Raises:
        ValueError: what was found says why there is none.
    """
    if isinstance(found, str):
        raise ValueError(f"walk: {walk!r} cannot walk this: {found}")
    return found
