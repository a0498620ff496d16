"""The stages of a cell's step on a device: each value by its kind and number, and the same as CUDA C++.

What is loaded, by kind: in a step ``gate``, ``old`` (a state before it), ``before`` (h before it), ``param`` and
``input``; in its gradient of these all but gates, and ``saved``, ``saved_of_row``, ``h`` and ``state`` (after the
step), ``dh`` and ``dstate`` (whole); in both ``mean``, ``product`` and ``slot``. What is stored: ``slot`` and
``operand`` of products; in a step ``state``, ``h``, ``saved`` and ``saved_of_row``; in its gradient ``gradient``
(those of gates, parameters and inputs, as a row of ``dgates`` has them), ``dproduct``, ``dstate`` and ``dbefore``, the
gradient of h before the step as the cell reads it.

Products are numbered stage by stage, those of one operand one after another: :func:`products_of`. The gradient's
products are those of ``dproduct`` with the same weight from the other side, and have the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .graph import Value
from .stage_code import (
    Language,
    Step,
    Store,
    backward_schedule,
    forward_schedule,
    saved_of_row,
    saved_of_unit,
)
from .stages import Schedule, Stage

if TYPE_CHECKING:
    from .cell import TracedCell

Access = Callable[..., str]
"""Of a kind, and of a number where there are several, the text that loads such a value, or stores it, with {} in it."""


class DeviceStep(NamedTuple):
    """A step, or its gradient, with texts of a language.

    Attributes:
        step: the lines of each stage.
        slots: how many values are kept from stage to stage.
        products: the numbers of the products that are made behind each stage.
    """

    step: Step
    slots: int
    products: list[list[int]]

    @property
    def means(self) -> list[int]:
        """How many means are taken behind each stage. They are numbered in that order."""
        return [len(stage.means) for stage in self.step.plan.stages]


def products_of(cell: TracedCell) -> list[Value]:
    """The products of a step, in the order of their numbers."""
    return [v for s in forward_schedule(cell).stages for v in sorted(s.products, key=lambda v: v.arguments[0].index)]


def operands_of(cell: TracedCell) -> list[Value]:
    """What they multiply, each once, in the order of their numbers."""
    return list({v.arguments[0].index: v.arguments[0] for v in products_of(cell)}.values())


def operand_numbers(cell: TracedCell) -> list[int]:
    """The number of each product's operand."""
    numbers = {v.index: k for k, v in enumerate(operands_of(cell))}
    return [numbers[v.arguments[0].index] for v in products_of(cell)]


def forward_step(cell: TracedCell, load: Access, store: Access, language: Language, training: bool) -> DeviceStep:
    """The stages of a step; without ``training`` nothing is saved."""
    d, products = cell.derivation, products_of(cell)
    loads = _loads_before(cell, load) | {v: load("gate", k) for k, v in enumerate(d.gates)}
    stores = [Store(d.h, store("h"), late=True)]
    stores += [Store(v, store("state", k), late=True) for k, v in enumerate(d.new)]
    rows: list[Store] = []
    if training:
        stores += [Store(v, store("saved", k)) for k, v in enumerate(saved_of_unit(cell))]
        rows = [Store(v, store("saved_of_row", k)) for k, v in enumerate(saved_of_row(cell))]
    plan, of_operands = forward_schedule(cell), operands_of(cell)
    numbers = {v.index: k for k, v in enumerate(products)}

    def multiplied(stage: Stage) -> list[Store]:
        needed = {v.arguments[0].index for v in stage.products}
        return [Store(v, store("operand", k)) for k, v in enumerate(of_operands) if v.index in needed]

    return _on_device(plan, loads, {}, stores, rows, numbers, multiplied, load, store, language)


def backward_step(cell: TracedCell, load: Access, store: Access, language: Language) -> DeviceStep:
    """The stages of a step's gradient."""
    d, products = cell.derivation, products_of(cell)
    loads = {d.h: load("h")} | {v: load("state", k) for k, v in enumerate(d.new)}  # the better known last
    loads |= {v: load("saved", k) for k, v in enumerate(saved_of_unit(cell))} | _loads_before(cell, load)
    loads |= {d.dh: load("dh")} | {v: load("dstate", k) for k, v in enumerate(d.dnew)}
    rows = {v: load("saved_of_row", k) for k, v in enumerate(saved_of_row(cell))}
    dproducts = dict(zip((v.index for v in d.products), d.dproducts, strict=True))
    of_numbers = [dproducts[v.index] for v in products]
    direct = d.dgiven[: cell.reads_h]
    stores = [Store(v, store("gradient", k)) for k, v in enumerate([*d.dgates, *d.dgiven[cell.reads_h :]])]
    stores += [Store(v, store("dproduct", k)) for k, v in enumerate(of_numbers)]
    stores += [Store(v, store("operand", k)) for k, v in enumerate(operands_of(cell))]
    stores += [Store(v, store("dstate", k), late=True) for k, v in enumerate(d.dold)]
    stores.append(Store(direct[0] if direct else d.h.trace.number(0.0), store("dbefore"), late=True))
    plan = backward_schedule(cell)
    keys = [(d.index, v.detail) for v, d in zip(products, of_numbers, strict=True)]
    numbers = {v.index: keys.index((v.arguments[0].index, v.detail)) for stage in plan.stages for v in stage.products}
    return _on_device(plan, loads, rows, stores, [], numbers, lambda stage: [], load, store, language)


def _loads_before(cell: TracedCell, load: Access) -> dict[Value, str]:
    """What a step begins with: states, and what the cell is given."""
    d = cell.derivation
    loads, rest = {v: load("old", k) for k, v in enumerate(d.old)}, list(d.given)
    if cell.reads_h:
        loads[rest.pop(0)] = load("before")
    loads |= {rest.pop(0): load("param", k) for k in range(len(cell.params))}
    return loads | {v: load("input", k) for k, v in enumerate(rest)}


def _on_device(
    plan: Schedule,
    loads: dict[Value, str],
    row_loads: dict[Value, str],
    stores: list[Store],
    row_stores: list[Store],
    products: dict[int, int],
    multiplied: Callable[[Stage], list[Store]],
    load: Access,
    store: Access,
    language: Language,
) -> DeviceStep:
    """Slots are for what a stage loads: operands, which need none for that, and products have places of their own."""
    made = {v: load("product", products[v.index]) for stage in plan.stages for v in stage.products}
    means = [v for stage in plan.stages for v in stage.means]
    row_loads = {v: load("mean", k) for k, v in enumerate(means)} | row_loads
    step = Step(plan, loads, row_loads, dict.fromkeys(plan.slots, "") | made, stores, row_stores, multiplied, language)
    loaded = step.loaded()
    slots = {v: k for k, v in enumerate(v for v in plan.slots if v in loaded and v not in made)}

    def keep(stage: Stage) -> list[Store]:
        return [*(Store(v, store("slot", slots[v])) for v in stage.stores if v in slots), *multiplied(stage)]

    step = step._replace(slots={v: load("slot", k) for v, k in slots.items()} | made, keep=keep)
    return DeviceStep(step, len(slots), [sorted({products[v.index] for v in s.products}) for s in plan.stages])
