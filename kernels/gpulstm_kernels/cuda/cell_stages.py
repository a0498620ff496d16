"""What the host side knows of a cell's stages: launches, the products between them and their weights, and sizes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..backend import LayerShape
from ..cells import Cell
from ..language.cell import TracedCell
from ..language.device_stages import DeviceStep, backward_step, forward_step, operand_numbers, products_of
from ..language.stage_code import Language, saved_of_row
from .device.runtime import Runtime


class Run(NamedTuple):
    """Stages with nothing but means between them: the number of the first, whether any means are taken, and the
    products that are made behind the last."""

    first: int
    by_row: bool
    products: tuple[int, ...]


class Pass(NamedTuple):
    """A step, or its gradient: values of a unit that are kept from stage to stage, means of a row, and its runs."""

    slots: int
    means: int
    runs: tuple[Run, ...]


class Stages(NamedTuple):
    """Of a cell: the weight and the operand of each product, saved values that a row's units share, both passes."""

    weights: tuple[str, ...]
    operands: tuple[int, ...]
    saved_of_row: int
    forward: Pass
    backward: Pass

    @property
    def distinct(self) -> int:
        """How many operands there are, each counted once."""
        return len(set(self.operands))


_NO_STAGES = Stages((), (), 0, Pass(0, 0, ()), Pass(0, 0, ()))


@functools.cache
def stages_of(cell: Cell) -> Stages:
    """Those of ``cell``; empty where it works unit by unit."""
    if cell.stages == 1 or not isinstance(cell, TracedCell):
        return _NO_STAGES
    nothing = Language(repr, repr, lambda name, text: "")

    def no_text(kind: str, number: int = 0) -> str:
        return ""

    forward = forward_step(cell, no_text, no_text, nothing, training=True)
    backward = backward_step(cell, no_text, no_text, nothing)
    weights = tuple(str(value.detail) for value in products_of(cell))
    numbers = tuple(operand_numbers(cell))
    return Stages(weights, numbers, len(saved_of_row(cell)), _pass(forward), _pass(backward))


def _pass(of: DeviceStep) -> Pass:
    runs, first = [], 0
    for stage, products in enumerate(of.products):
        if products or stage + 1 == len(of.products):
            runs.append(Run(first, any(of.means[first : stage + 1]), tuple(products)))
            first = stage + 1
    return Pass(of.slots, sum(of.means), tuple(runs))


def stacked_weights(runtime: Runtime, shape: LayerShape, weights: Sequence[Mapping[str, Any]]) -> Any:
    """The weights of the cell's own products, one below the other (D, their number · H, H)."""
    names, hidden = stages_of(shape.cell).weights, shape.hidden
    whole = runtime.empty((len(weights), len(names) * hidden, hidden), shape.dtype)
    for target, w in zip(whole, weights, strict=True):
        for k, name in enumerate(names):
            runtime.copy(target[k * hidden : (k + 1) * hidden], w[f"weight_{name}"])
    return whole


def weight_gradients(
    runtime: Runtime, shape: LayerShape, dproducts: Any, operands: Any, grad: Mapping[str, Any]
) -> None:
    """Fill the gradients of those weights, from (T, B, ·) of the gradients of the products and of what they are of."""
    count, hidden, stages = shape.steps * shape.batch, shape.hidden, stages_of(shape.cell)
    dproducts, operands = dproducts.reshape(count, -1), operands.reshape(count, -1)
    for k, (name, operand) in enumerate(zip(stages.weights, stages.operands, strict=True)):
        gradient = dproducts[:, k * hidden : (k + 1) * hidden]
        of = operands[:, operand * hidden : (operand + 1) * hidden]
        again = name in stages.weights[:k]
        runtime.gemm(gradient, of, grad[f"weight_{name}"], transpose_a=True, accumulate=again, tf32=shape.tf32)
