"""The stages of a cell's step written down, as Python that Numba compiles: loads, the cell's lines, stores.

A cell that works unit by unit is a function of registers, which a walk calls. What a stage of another cell reads and
writes is the cell's own, so the loops over rows and units are written around it. Arrays are those of :mod:`.staged`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...cells import activations
from ...language.cell import TracedCell
from ...language.code import FUNCTIONS, Writer
from ...language.derive import uniform_of
from ...language.graph import Value, is_number, ordered
from ...language.stages import Schedule, Stage, schedule
from ..codegen.row_sums import keep_first, load_splat, store_lane_sum
from ..codegen.vector import lanes, load, store
from .shares import element_address, part_address

Loads = Mapping[Value, str]
Stores = Sequence[tuple[Value, str]]  # with {} where the text of the value goes

_NAMES = {name: getattr(activations, name) for name in FUNCTIONS} | {
    "element_address": element_address,
    "keep_first": keep_first,
    "lanes": lanes,
    "load": load,
    "load_splat": load_splat,
    "part_address": part_address,
    "store": store,
    "store_lane_sum": store_lane_sum,
}
_H_BEFORE = "element_address(w.ys, at.row, b, w.column + u)"
_H_AFTER = "element_address(w.ys, at.t + 1, b, w.column + u)"
_DH = "element_address(w.dh, 0, b, u)"
_DY = "element_address(dy, at.t, b, w.column + u)"


def forward_schedule(cell: TracedCell) -> Schedule:
    """The stages of a step."""
    d = cell.derivation
    return schedule(d.saved, [d.h, *d.new], [*d.gates, *d.old, *d.given])


def backward_schedule(cell: TracedCell) -> Schedule:
    """The stages of a step's gradient."""
    d = cell.derivation
    direct = d.dgiven[: cell.reads_h]
    early = [*d.dgates, *d.dgiven[cell.reads_h :], *d.dproducts, *_operands(cell)]
    return schedule(early, [*d.dold, *direct], [*d.saved, d.h, *d.new, *d.old, *d.given, d.dh, *d.dnew])


def saved_of_row(cell: TracedCell) -> list[Value]:
    """Those of the saved values that all units of a row share."""
    shared = uniform_of(cell.derivation.saved)
    return [value for value in cell.derivation.saved if value.index in shared]


def saved_of_unit(cell: TracedCell) -> list[Value]:
    """The other saved values."""
    shared = uniform_of(cell.derivation.saved)
    return [value for value in cell.derivation.saved if value.index not in shared]


def slot_of(plan: Schedule, value: Value) -> int:
    """The number of a value's slot."""
    return [one.index for one in plan.slots].index(value.index)


def _operands(cell: TracedCell) -> list[Value]:
    return [value.arguments[0] for value in cell.derivation.products]


def _column(what: str, k: int, first: str = "at.t, b") -> str:
    """The address of value ``k`` in rows of several values a unit, without padding."""
    return f"element_address(w.{what}, {first}, {k} * hidden + u)"


def _saved_places(cell: TracedCell) -> dict[Value, str]:
    places = {v: f"element_address(w.saved, at.t, b, {k} * padded + u)" for k, v in enumerate(saved_of_unit(cell))}
    return places | {v: f"element_address(w.rows, at.t, b, {k})" for k, v in enumerate(saved_of_row(cell))}


def _loads_before(cell: TracedCell) -> dict[Value, str]:
    """What a step begins with: states, and what the cell is given. Rows that begin anew hold nothing."""
    d = cell.derivation
    loads = {v: f"load(like, part_address(w.states, {k}, at.before, b, u), held - u)" for k, v in enumerate(d.old)}
    rest = list(d.given)
    if cell.reads_h:
        loads[rest.pop(0)] = f"load(like, {_H_BEFORE}, held - u)"
    for k in range(len(cell.params)):
        loads[rest.pop(0)] = f"load(like, element_address(w.params, 0, {k}, u), n)"
    for k in range(len(cell.inputs)):
        of_row, of_unit = (f"part_address(inputs, {k}, at.t, b, {unit})" for unit in ("0", "u"))
        loads[rest.pop(0)] = f"(load_splat(like, {of_row}) if inputs.shape[3] == 1 else load(like, {of_unit}, n))"
    return loads


def forward_code(cell: TracedCell, training: bool, resets: bool) -> list[Callable[..., Any]]:
    """``stage(like, w, at, hidden, inputs, lengths, resets)`` for each stage, of the rows of a block."""
    d = cell.derivation
    loads = {v: f"load(like, {_column('gates', k, 'at.place, r')}, n)" for k, v in enumerate(d.gates)}
    stores = [(d.h, f"store(like, {{}}, {_H_AFTER}, n)")]
    stores += [
        (v, f"store(like, {{}}, part_address(w.states, {k}, at.after, b, u), lane)") for k, v in enumerate(d.new)
    ]
    rows: Stores = []
    if training:
        places, shared = _saved_places(cell), uniform_of(d.saved)
        stores += [(v, f"store(like, {{}}, {places[v]}, lane)") for v in d.saved if v.index not in shared]
        rows = [(v, f"store(like, {{}}, {places[v]}, 1)") for v in d.saved if v.index in shared]
    ended = [f"store(like, load(like, {_H_BEFORE}, n), {_H_AFTER}, n)"]
    for k in range(len(d.old)):
        before, after = (f"part_address(w.states, {k}, at.{when}, b, u)" for when in ("before", "after"))
        ended.append(f"store(like, load(like, {before}, lane), {after}, lane)")
    step = _Step(forward_schedule(cell), loads | _loads_before(cell), {}, stores, rows)
    return _functions(cell, step, "inputs", ended, resets)


def backward_code(cell: TracedCell, resets: bool) -> list[Callable[..., Any]]:
    """``stage(like, w, at, hidden, dy, inputs, lengths, resets)`` for each stage of the gradient."""
    d = cell.derivation
    places, shared = _saved_places(cell), uniform_of(d.saved)
    loads = {v: f"load(like, {places[v]}, lane)" for v in d.saved if v.index not in shared}
    rows = {v: f"load_splat(like, {places[v]})" for v in d.saved if v.index in shared}
    loads |= {d.h: f"load(like, {_H_AFTER}, n)"}
    loads |= {v: f"load(like, part_address(w.states, {k}, at.after, b, u), lane)" for k, v in enumerate(d.new)}
    loads |= _loads_before(cell)
    loads |= {d.dh: f"(load(like, {_DH}, n) + load(like, {_DY}, n))"}
    dstates = [f"part_address(w.dstates, {k}, 0, b, u)" for k in range(len(d.old))]
    loads |= {v: f"load(like, {place}, lane)" for v, place in zip(d.dnew, dstates, strict=True)}

    first = cell.reads_h + len(cell.params)
    direct, params, inputs = d.dgiven[: cell.reads_h], d.dgiven[cell.reads_h : first], d.dgiven[first:]
    filled = {"dgates": d.dgates, "dparams": params, "dproducts": d.dproducts, "operands": _operands(cell)}
    written = [(v, _column(what, k)) for what, values in filled.items() for k, v in enumerate(values)]
    written += [(v, f"part_address(w.dinputs, {k}, at.t, b, u)") for k, v in enumerate(inputs)]
    stores = [(v, f"store(like, {{}}, {place}, n)") for v, place in written]
    stores += [(v, f"store(like, {{}}, {place}, lane)") for v, place in zip(d.dold, dstates, strict=True)]
    # The product with the recurrent weights is added to what reaches h before the step directly.
    stores += [(direct[0] if direct else d.h.trace.number(0.0), f"store(like, {{}}, {_DH}, n)")]
    ended = [f"store(like, zero, {place}, n)" for _, place in written]
    return _functions(cell, _Step(backward_schedule(cell), loads, rows, stores, []), "dy, inputs", ended, resets)


class _Step:
    """A step's stages, and where its values lie: of each unit, and, as numbers that all units share, of each row."""

    def __init__(self, plan: Schedule, loads: Loads, row_loads: Loads, stores: Stores, row_stores: Stores) -> None:
        self.plan, self.loads, self.stores, self.row_stores = plan, loads, stores, row_stores
        means = {v: f"load_splat(like, {self.mean(k)})" for k, v in enumerate(plan.means)}
        self.row_loads = {**means, **row_loads}

    def mean(self, number: int) -> str:
        return f"element_address(w.means, at.place, r, {number})"

    def slot(self, value: Value) -> str:
        return f"element_address(w.slots, at.place, r, {slot_of(self.plan, value)} * padded + u)"

    def lines_of_row(self, stage: Stage, last: bool) -> list[str]:
        """What ``stage`` does for one row."""
        plan, results = self.plan, {value.index for value in stage.results}
        stores = [(v, f"store(like, {{}}, {self.slot(v)}, lane)") for v in stage.stores]
        stores += [(v, text) for v, text in self.stores if v.index in results or (last and is_number(v))]
        of_row = [(v, text) for v, text in self.row_stores if v.index in results]
        summed = [value.arguments[0] for value in stage.means]
        roots = [*(v for v, _ in stores), *summed]

        inside = {value.index for value in stage.values}
        loads = {v: f"load(like, {self.slot(v)}, lane)" for v in plan.slots if v.index not in inside} | dict(self.loads)
        found = ordered([*roots, *(v for v, _ in of_row)], {v.index for v in (*loads, *self.row_loads)})
        shared = {v.index for v in self.row_loads}
        for v in found:  # computed once a row
            if v.arguments and v not in loads and all(is_number(a) or a.index in shared for a in v.arguments):
                shared.add(v.index)
        border = {v.index: v for v in (*roots, *(v for v, _ in of_row)) if v.index in shared}
        for v in found:
            if v.index not in shared and v not in loads:
                border |= {a.index: a for a in v.arguments if a.index in shared}

        read = {v: f"m{k}" for k, v in enumerate(v for v in found if v in self.row_loads)}
        row = Writer(list(border.values()), read, repr, _assigned, "r")
        texts = {v: f"s{k}" for k, v in enumerate(border.values())}
        lines = [f"{name} = {self.row_loads[v]}" for v, name in read.items()] + row.lines
        lines += [f"{name} = {row.text(v)}" for v, name in texts.items()]
        lines += [text.format(texts[v]) for v, text in of_row]

        loaded = {v: f"a{k}" for k, v in enumerate(v for v in found if v in loads)}
        unit = Writer(roots, {**loaded, **texts}, repr, _assigned)

        def text(value: Value) -> str:
            return f"(zero + {value.detail!r})" if is_number(value) else unit.text(value)

        body = [f"{name} = {loads[v]}" for v, name in loaded.items()] + unit.lines
        body += [form.format(text(v)) for v, form in stores]
        body += [f"sum{k} = sum{k} + keep_first({text(v)}, n)" for k, v in enumerate(summed)]
        lines += [f"sum{k} = zero" for k in range(len(summed))]
        lines += _over_units(body)
        numbers = [[one.index for one in plan.means].index(value.index) for value in stage.means]
        return lines + [f"store_lane_sum(sum{k}, 1.0 / hidden, {self.mean(j)})" for k, j in enumerate(numbers)]


def _assigned(name: str, text: str) -> str:
    return f"{name} = {text}"


def _over_units(body: Sequence[str]) -> list[str]:
    return ["for u in range(0, hidden, lane):", "    n = hidden - u", *(f"    {line}" for line in body)] if body else []


def _functions(cell: TracedCell, step: _Step, given: str, ended: Sequence[str], resets: bool) -> list[Any]:
    """A function for each stage; ``ended``: what is done to the units of a row whose sequence has ended."""
    functions = []
    for number, stage in enumerate(step.plan.stages):
        held = "0 if at.late < len(resets) and resets[at.late, b] else hidden" if resets else "hidden"
        lines = [
            f"def stage(like, w, at, hidden, {given}, lengths, resets):",
            "    lane = lanes(like)",
            "    padded, zero = (hidden + lane - 1) // lane * lane, load(like, like.ctypes.data, 0)",
            "    for r in range(at.m):",
            "        b = at.r0 + r",
            "        if at.t >= lengths[b]:",
            *(f"            {line}" for line in _over_units(ended) if number == 0),
            "            continue",
            f"        held = {held}",
            *(f"        {line}" for line in step.lines_of_row(stage, number + 1 == len(step.plan.stages))),
        ]
        names = dict(_NAMES)
        exec(compile("\n".join([*lines, ""]), f"<stage {number} of {cell.maths}>", "exec"), names)
        functions.append(names["stage"])
    return functions
