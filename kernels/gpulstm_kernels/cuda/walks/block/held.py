"""How many values of a unit a lane of the block walk holds in registers from one stage of a step to the next."""

from __future__ import annotations

import functools
import re

from ....language.cell import TracedCell
from ....language.device_stages import backward_step, forward_step
from ....language.stage_code import Language

_PLAIN = Language(repr, repr, lambda name, text: f"{name} = {text}")


def _load(kind: str, number: int = 0) -> str:
    return f"<{kind} {number}>"


def _store(kind: str, number: int = 0) -> str:
    return f"[{kind} {number}] = {{}}"


@functools.cache
def held(cell: TracedCell, backward: bool) -> int:
    """The most values that a stage and those after it load of what was there before; parameters are read again."""
    step = backward_step(cell, _load, _store, _PLAIN) if backward else forward_step(cell, _load, _store, _PLAIN, True)
    lines = map(step.step.lines, range(len(step.products)))
    texts = ["\n".join([*of.of_row, *of.of_unit, *of.summed]) for of in lines]
    loaded = [set(re.findall(r"<(\w+ \d+)>", text)) for text in texts]
    made, means = [set(re.findall(r"\[(slot \d+)\]", text)) for text in texts], 0
    for stage, (count, products) in enumerate(zip(step.means, step.products, strict=True)):
        made[stage] |= {f"mean {means + k}" for k in range(count)} | {f"product {k}" for k in products}
        means += count
    own = set().union(*made)

    def after(stage: int) -> int:
        needed, there = set().union(*loaded[stage:]), set().union(*made[:stage])
        return sum(not value.startswith("param ") and (value in there or value not in own) for value in needed)

    return max(map(after, range(len(texts))))
