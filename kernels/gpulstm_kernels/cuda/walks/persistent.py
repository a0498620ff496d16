"""What the host sides of the persistent walks share; their kernels share ``persistent.cuh`` and ``tile.cuh``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...backend import LayerShape
from ...cells import Cell
from ..buffers import Buffers
from ..device.runtime import Device

# tile.cuh has the same two.
COLUMNS = 8  # sequences a tile
CHUNK = 64  # bytes of a row that a slice is cut into
REGISTERS = 255  # of a thread, at most
_MANY = 8  # gates: each one beyond takes _OF_GATE registers more, since compilers then keep more sums apart
_OF_GATE = 20
_OF_RESETS = 6  # registers: a pointer, and flags of two sequences
_OF_HEADS = 5  # registers: the first unit of a head, its direction, and how far its own units reach


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
    if not shape.cell.gates_of_h:
        return "it is for products with weight_hh, and the cell has none"
    if shape.dtype == np.float64:
        return "it has no float64"
    if device.capability < 80 and (shape.tf32 or shape.dtype.name == "bfloat16"):
        kind = "TF32" if shape.tf32 else "bfloat16"
        return f"tensor cores multiply {kind} from compute capability 8.0 on, this is {device.capability / 10}"
    return None


def registers_of_cell(shape: LayerShape, backward: bool) -> int:
    """Registers of a lane for what a cell keeps from step to step, and for what is fetched before a step's product.

    As ``persistent.cuh`` has it: of two sequences, but for parameters and biases.
    """
    cell = shape.cell
    many = max(0, len(cell.preactivations) - _MANY)
    registers = len(cell.params) + 2 * len(cell.inputs) + _OF_RESETS * shape.resets + _OF_GATE * many
    registers += _OF_HEADS * (shape.heads > 1)
    if backward:  # dh, h and its gradient from the output; of a state the gradient, and its values around the step
        return registers + 6 + 2 * cell.reads_h + 6 * len(cell.states) + 2 * cell.saved
    return registers + len(cell.preactivations) + 2 * (len(cell.gates_of_x) + len(cell.states))


def values_of_a_unit(cell: Cell) -> int:
    """The most values that an array of a call holds for a unit and step of a direction."""
    row = len(cell.preactivations) + len(cell.params) + len(cell.differentiable)
    return max(1, row, cell.saved, len(cell.states), len(cell.inputs))


def input_width(buffers: Buffers) -> int:
    """Values of a row of the inputs: one for all units, or one a unit; 0 without inputs."""
    return 0 if buffers.inputs is None else buffers.inputs.shape[-1]


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
