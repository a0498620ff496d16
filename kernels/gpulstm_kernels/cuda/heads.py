"""Products with weights of blocks on a diagonal, N heads a direction: batches of matrices, one a head.

Elsewhere the U = H/N units of a head lie side by side among the others', of each gate by itself.
"""

from __future__ import annotations

from typing import Any

from ..backend import LayerShape
from .device.runtime import Runtime


def by_head(array: Any, heads: int) -> Any:
    """The view (N, rows, U) of ``array`` (rows, N·U)."""
    rows, columns = array.shape
    return array.reshape(rows, heads, columns // heads).swapaxes(0, 1)


def copy_by_head(runtime: Runtime, shape: LayerShape, apart: Any, together: Any, back: bool = False) -> None:
    """Copy ``together`` (D, B, H) to ``apart`` (D·N, B, U), or ``back``."""
    for d in range(shape.directions):
        one, other = apart[d * shape.heads : (d + 1) * shape.heads], by_head(together[d], shape.heads)
        runtime.copy(*(other, one) if back else (one, other))


def weight_gradient(runtime: Runtime, shape: LayerShape, dgates: Any, before: Any, gradient: Any) -> None:
    """``gradient`` (N, Gh·U, U) of a direction's ``weight_hh``: a batch of products over all steps for each gate.

    ``dgates`` (T·B, ·) has its columns as in :class:`.buffers.Buffers`; ``before`` (T·B, H) is h before each step.
    """
    heads, hidden, units, first = shape.heads, shape.hidden, shape.units_of_head, len(shape.cell.x_gates)
    of_heads = by_head(before, heads)
    into = gradient.reshape(heads, -1, units, units)
    for gate in range(len(shape.cell.gates_of_h)):
        column = (first + gate) * hidden
        of_gate = by_head(dgates[:, column : column + hidden], heads)
        runtime.gemm(of_gate, of_heads, into[:, gate], transpose_a=True, tf32=shape.tf32)
