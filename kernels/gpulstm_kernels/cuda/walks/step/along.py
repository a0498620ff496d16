"""What the step walk's host sides share: which part of an array a step works on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....backend import LayerShape


def of_h(shape: LayerShape) -> slice:
    """Those columns of gates and of their gradients that h's product gives."""
    return slice(len(shape.cell.x_gates) * shape.hidden, shape.rows)


def width(inputs: Any) -> int:
    """How many values a row has of each input."""
    return 0 if inputs is None else inputs.shape[-1]


def along(shape: LayerShape, array: Any, back: bool = False) -> Iterator[Any]:
    """For each step of the walk, the (D, B, ·) of ``array`` (D, T, B, ·) that it works on; None for none.

    The reverse direction is at the other end of time, so both together are a slice with a stride over the rows
    (d, t); an array of one step only serves them all.
    """
    steps, directions = shape.steps, shape.directions
    if array is None:
        yield from [None] * steps
        return
    slots = array.shape[1]
    rows = array.reshape(directions * slots, *array.shape[2:])
    for step in range(steps):
        if slots == 1:
            yield rows
            continue
        first = steps - 1 - step if back else step
        if directions == 1:
            yield rows[first : first + 1]
        else:
            last = 2 * steps - 1 - first  # of the same step, in the reverse direction
            yield rows[first : last + 1 : last - first]
