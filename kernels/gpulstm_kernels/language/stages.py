"""A step that products and means over the units of a row cut into stages: what is computed in which, and kept between.

Within a stage values are computed unit by unit; between two of them what all units have stored is multiplied, or the
means are there. A value that a later stage needs is computed again there where that costs little, and else kept in a
slot, which has a number for each unit of a row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from .derive import COSTS
from .graph import COUPLED, Value, is_number, ordered

# What a value may cost, in additions of registers, that is computed again rather than kept: storing it in a core's
# cache, and loading it again, takes about as long.
_AGAIN = 4


class Stage(NamedTuple):
    """What is done for each unit of a row, and then for the row.

    Attributes:
        values: that are computed, arguments first.
        stores: those that go to slots.
        results: those that are written where the step's results belong.
        products, means: made of stored and of computed values when all units are through; for the next stages.
    """

    values: tuple[Value, ...]
    stores: tuple[Value, ...]
    results: tuple[Value, ...]
    products: tuple[Value, ...]
    means: tuple[Value, ...]


class Schedule(NamedTuple):
    """The stages of a step, the values that have slots, and the means, of which each row has a number."""

    stages: tuple[Stage, ...]
    slots: tuple[Value, ...]
    means: tuple[Value, ...]


def schedule(early: Sequence[Value], late: Sequence[Value], memory: Collection[Value]) -> Schedule:
    """Cut into stages what computes results from what is in ``memory``.

    ``early``: results that may be written as soon as they are there; ``late``: in the last stage, since they take the
    place of what is read.
    """
    there = {value.index for value in memory}
    early, late = ([value for value in part if not is_number(value)] for part in (early, late))
    order = [value for value in ordered([*early, *late], there) if not is_number(value)]
    level: dict[int, int] = {}
    cost: dict[int, int] = {}
    couplings = []
    for value in order:
        level[value.index], cost[value.index] = 0, 0
        if value.index in there:
            continue
        arguments = [one.index for one in value.arguments if not is_number(one)]
        level[value.index] = max(level[one] for one in arguments)
        if value.operator in COUPLED:
            level[value.index] += 1
            couplings.append(value)
        else:
            cost[value.index] = COSTS[value.operator] + sum(cost[one] for one in arguments)

    last = max(level.values())
    wanted: list[list[Value]] = [[] for _ in range(last + 1)]
    for value in couplings:
        wanted[level[value.index] - 1].append(value.arguments[0])
    for value in early:
        wanted[level[value.index]].append(value)
    wanted[last] += late
    slots = {value.index: value for value in couplings if value.operator != "row_mean"}
    slots |= {value.arguments[0].index: value.arguments[0] for value in slots.values()}
    computed: list[set[int]] = [set() for _ in wanted]
    for number in range(last, -1, -1):  # the last one first: it tells what the others keep
        stack = list(wanted[number])
        while stack:
            value = stack.pop()
            if value.index in computed[number] or value.index in there or value.operator in COUPLED:
                continue
            if level[value.index] < number and cost[value.index] > _AGAIN:
                slots[value.index] = value
                wanted[level[value.index]].append(value)
                continue
            computed[number].add(value.index)
            stack += [one for one in value.arguments if not is_number(one)]
    products = [value for value in couplings if value.operator != "row_mean"]
    means = [value for value in couplings if value.operator == "row_mean"]
    stages = []
    for number, inside in enumerate(computed):
        here = [value for value in order if level[value.index] == number]
        stages.append(
            Stage(
                tuple(value for value in sorted(order, key=lambda v: v.index) if value.index in inside),
                tuple(v for v in here if v.index in slots and v not in products),
                tuple(v for v in early if level[v.index] == number) + (tuple(late) if number == last else ()),
                tuple(value for value in products if level[value.index] == number + 1),
                tuple(value for value in means if level[value.index] == number + 1),
            )
        )
    return Schedule(tuple(stages), tuple(slots.values()), tuple(means))
