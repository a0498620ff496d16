"""Sizes that both host sides of the block walk compute with; ``rows.cuh`` has them too."""

from __future__ import annotations

from ....backend import LayerShape
from ..persistent import CHUNK, REGISTERS


def chunks_of(shape: LayerShape) -> int:
    """The chunks of a row of a weight, of a head where there are several."""
    return -(-shape.units_of_head * shape.dtype.itemsize // CHUNK)


def pitch(chunks: int) -> int:
    """Bytes from one sequence's operand of so many chunks to that of the next."""
    return (chunks | 1) * CHUNK


def room(shape: LayerShape, chunks: int) -> int:
    """Registers of a thread, of a block for so many chunks, whose threads are given in steps of 128."""
    threads = 4 * CHUNK // shape.dtype.itemsize * chunks
    return min(REGISTERS, 65536 // (-(-threads // 128) * 128) // 8 * 8)
