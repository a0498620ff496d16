"""What each stage of a cell's step loads, computes and stores, as lines of a language that the caller knows.

Which values are computed in which stage is :mod:`.stages`' schedule. Here the lines of a stage are put together, once
what loads and stores a value is known as text: of Python for the CPU and for Numba CUDA, of CUDA C++.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .code import Writer
from .derive import uniform_of
from .graph import Value, is_number, ordered
from .stages import Schedule, Stage, schedule

if TYPE_CHECKING:
    from .cell import TracedCell


def forward_schedule(cell: TracedCell) -> Schedule:
    """The stages of a step."""
    d = cell.derivation
    return schedule(d.saved, [d.h, *d.new], [*d.gates, *d.old, *d.given])


def backward_schedule(cell: TracedCell) -> Schedule:
    """The stages of a step's gradient."""
    d = cell.derivation
    direct = d.dgiven[: cell.reads_h]
    early = [*d.dgates, *d.dgiven[cell.reads_h :], *d.dproducts, *operands(cell)]
    return schedule(early, [*d.dold, *direct], [*d.saved, d.h, *d.new, *d.old, *d.given, d.dh, *d.dnew])


def saved_of_row(cell: TracedCell) -> list[Value]:
    """Those of the saved values that all units of a row share."""
    shared = uniform_of(cell.derivation.saved)
    return [value for value in cell.derivation.saved if value.index in shared]


def saved_of_unit(cell: TracedCell) -> list[Value]:
    """The other saved values."""
    shared = uniform_of(cell.derivation.saved)
    return [value for value in cell.derivation.saved if value.index not in shared]


def operands(cell: TracedCell) -> list[Value]:
    """What each of the cell's products multiplies, in their order."""
    return [value.arguments[0] for value in cell.derivation.products]


def slot_of(plan: Schedule, value: Value) -> int:
    """The number of a value's slot."""
    return [one.index for one in plan.slots].index(value.index)


class Store(NamedTuple):
    """Where a value goes: a text with {} in the place of its own. ``late``: in the last stage, since others read what
    lies there until then."""

    value: Value
    text: str
    late: bool = False


class Language(NamedTuple):
    """How lines are written: a number among other values, one that stands alone, and what gives a text a name."""

    number: Callable[[float], str]
    alone: Callable[[float], str]
    named: Callable[[str, str], str]


class Lines(NamedTuple):
    """Of a stage: what is done once a row, what for each of its units, and of which texts means are taken then."""

    of_row: list[str]
    of_unit: list[str]
    summed: list[str]


class Step(NamedTuple):
    """A step's stages, and where its values lie: of each unit, and, as numbers that all units share, of each row.

    Attributes:
        plan: the stages.
        loads, row_loads: texts of what is read, of a unit and of a row, means among the latter.
        slots: texts of what earlier stages and products have left.
        stores, row_stores: where results go.
        keep: where a stage's values go that later ones, or products, need.
        language: of the lines.
    """

    plan: Schedule
    loads: Mapping[Value, str]
    row_loads: Mapping[Value, str]
    slots: Mapping[Value, str]
    stores: Sequence[Store]
    row_stores: Sequence[Store]
    keep: Callable[[Stage], Sequence[Store]]
    language: Language

    def _stores(self, number: int) -> tuple[list[Store], list[Store]]:
        """What ``stage`` stores of units and of the row: each result in the first stage that has it, or the last."""
        stages = self.plan.stages
        before = {value.index for stage in stages[:number] for value in stage.results}
        here, last = {value.index for value in stages[number].results}, number + 1 == len(stages)

        def is_stored(store: Store) -> bool:
            if store.late or is_number(store.value):
                return last
            return store.value.index in here - before

        of_unit = [*self.keep(stages[number]), *filter(is_stored, self.stores)]
        return of_unit, list(filter(is_stored, self.row_stores))

    def _loads(self, number: int) -> dict[Value, str]:
        inside = {value.index for value in self.plan.stages[number].values}
        return {v: text for v, text in self.slots.items() if v.index not in inside} | dict(self.loads)

    def _found(self, number: int) -> list[Value]:
        """All values of a stage, arguments first."""
        of_unit, of_row = self._stores(number)
        summed = [value.arguments[0] for value in self.plan.stages[number].means]
        roots = [*(store.value for store in of_unit), *summed, *(store.value for store in of_row)]
        return ordered(roots, {v.index for v in (*self._loads(number), *self.row_loads)})

    def loaded(self) -> set[Value]:
        """The values in slots that any stage loads."""
        return {
            v for k in range(len(self.plan.stages)) for v in self._found(k) if v in self.slots and v in self._loads(k)
        }

    def lines(self, number: int) -> Lines:
        """What stage ``number`` does."""
        of_unit, of_row = self._stores(number)
        summed = [value.arguments[0] for value in self.plan.stages[number].means]
        roots = [*(store.value for store in of_unit), *summed]
        loads, found = self._loads(number), self._found(number)
        shared = {v.index for v in self.row_loads}
        for v in found:  # computed once a row
            if v.arguments and v not in loads and all(is_number(a) or a.index in shared for a in v.arguments):
                shared.add(v.index)
        border = {v.index: v for v in (*roots, *(store.value for store in of_row)) if v.index in shared}
        for v in found:
            if v.index not in shared and v not in loads:
                border |= {a.index: a for a in v.arguments if a.index in shared}

        named = self.language.named
        read = {v: f"m{k}" for k, v in enumerate(v for v in found if v in self.row_loads)}
        row = Writer(list(border.values()), read, self.language.number, named, "r")
        texts = {v: f"s{k}" for k, v in enumerate(border.values())}
        lines = [named(name, self.row_loads[v]) for v, name in read.items()] + row.lines
        lines += [named(name, row.text(v)) for v, name in texts.items()]
        lines += [store.text.format(texts[store.value]) for store in of_row]

        loaded = {v: f"a{k}" for k, v in enumerate(v for v in found if v in loads)}
        unit = Writer(roots, {**loaded, **texts}, self.language.number, named)

        def text(value: Value) -> str:
            return self.language.alone(value.detail) if is_number(value) else unit.text(value)

        body = [named(name, loads[v]) for v, name in loaded.items()] + unit.lines
        body += [store.text.format(text(store.value)) for store in of_unit]
        return Lines(lines, body, [text(value) for value in summed])
