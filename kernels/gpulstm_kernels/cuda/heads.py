"""Products with weights of blocks on a diagonal, N heads a direction: batches of matrices, one a head.

Elsewhere the U = H/N units of a head lie side by side among the others', of each gate by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def add_product(runtime: Runtime, shape: LayerShape, h: Any, weight: Any, gates: Any) -> None:
    """Add to ``gates`` (D, B, Gh·H), gate by gate, h (D, B, H) times ``weight`` (D, N, Gh·U, U): a batch of products
    for each gate of each direction."""
    for of_gates, of_h, block in _blocks(shape, gates, h, weight):
        runtime.gemm(of_h, block, of_gates, transpose_b=True, accumulate=True, tf32=shape.tf32)


def add_gradient(runtime: Runtime, shape: LayerShape, dgates: Any, weight: Any, dh: Any) -> None:
    """Add to ``dh`` (D, B, H) what ``dgates`` (D, B, Gh·H) give it through :func:`add_product`, one gate after the
    other."""
    for of_gates, of_h, block in _blocks(shape, dgates, dh, weight):
        runtime.gemm(of_gates, block, of_h, accumulate=True, tf32=shape.tf32)


def _blocks(shape: LayerShape, gates: Any, h: Any, weight: Any) -> Iterator[tuple[Any, Any, Any]]:
    """For each direction and gate of h views by head: (N, B, U) of ``gates`` and of ``h``, and (N, U, U) of ``weight``.

    Of two directions' heads together, and of a head's gates, h and gates have no one stride.
    """
    heads, hidden, units = shape.heads, shape.hidden, shape.units_of_head
    for d in range(shape.directions):
        of_h, blocks = by_head(h[d], heads), weight[d].reshape(heads, -1, units, units)
        for gate in range(len(shape.cell.gates_of_h)):
            yield by_head(gates[d][:, gate * hidden : (gate + 1) * hidden], heads), of_h, blocks[:, gate]


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
