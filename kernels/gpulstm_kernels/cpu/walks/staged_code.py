"""The stages of a cell's step written down, as Python that Numba compiles: loads, the cell's lines, stores.

A cell that works unit by unit is a function of registers, which a walk calls. What a stage of another cell reads and
writes is the cell's own, so the loops over rows and units are written around it. Arrays are those of :mod:`.staged`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from ...cells import activations
from ...language.cell import TracedCell
from ...language.code import FUNCTIONS
from ...language.derive import uniform_of
from ...language.graph import Value
from ...language.stage_code import (
    Language,
    Step,
    Store,
    backward_schedule,
    forward_schedule,
    operands,
    saved_of_row,
    saved_of_unit,
    slot_of,
)
from ...language.stages import Schedule, Stage
from ..codegen.row_sums import keep_first, load_splat, store_lane_sum
from ..codegen.vector import lanes, load, store
from .shares import element_address, part_address

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
    stores = [Store(d.h, f"store(like, {{}}, {_H_AFTER}, n)", late=True)]
    stores += [
        Store(v, f"store(like, {{}}, part_address(w.states, {k}, at.after, b, u), lane)", late=True)
        for k, v in enumerate(d.new)
    ]
    rows: list[Store] = []
    if training:
        places, shared = _saved_places(cell), uniform_of(d.saved)
        stores += [Store(v, f"store(like, {{}}, {places[v]}, lane)") for v in d.saved if v.index not in shared]
        rows = [Store(v, f"store(like, {{}}, {places[v]}, 1)") for v in d.saved if v.index in shared]
    ended = [f"store(like, load(like, {_H_BEFORE}, n), {_H_AFTER}, n)"]
    for k in range(len(d.old)):
        before, after = (f"part_address(w.states, {k}, at.{when}, b, u)" for when in ("before", "after"))
        ended.append(f"store(like, load(like, {before}, lane), {after}, lane)")
    step = _step(forward_schedule(cell), loads | _loads_before(cell), {}, stores, rows)
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
    filled = {"dgates": d.dgates, "dproducts": d.dproducts, "operands": operands(cell)}
    written = [(v, _column(what, k)) for what, values in filled.items() for k, v in enumerate(values)]
    written += [(v, f"part_address(w.dinputs, {k}, at.t, b, u)") for k, v in enumerate(inputs)]
    stores = [Store(v, f"store(like, {{}}, {place}, n)") for v, place in written]
    sums = [(v, _column("dparams", k, "0, b")) for k, v in enumerate(params)]
    stores += [Store(v, f"store(like, load(like, {place}, n) + {{}}, {place}, n)") for v, place in sums]
    stores += [
        Store(v, f"store(like, {{}}, {place}, lane)", late=True) for v, place in zip(d.dold, dstates, strict=True)
    ]
    # The product with the recurrent weights is added to what reaches h before the step directly.
    stores.append(Store(direct[0] if direct else d.h.trace.number(0.0), f"store(like, {{}}, {_DH}, n)", late=True))
    ended = [f"store(like, zero, {place}, n)" for _, place in written]
    return _functions(cell, _step(backward_schedule(cell), loads, rows, stores), "dy, inputs", ended, resets)


def _step(
    plan: Schedule,
    loads: dict[Value, str],
    row_loads: dict[Value, str],
    stores: Sequence[Store],
    row_stores: Sequence[Store] = (),
) -> Step:
    """A step in the language of registers, with slots and means where walks have them."""
    places = {v: f"element_address(w.slots, at.place, r, {slot_of(plan, v)} * padded + u)" for v in plan.slots}
    slots = {v: f"load(like, {place}, lane)" for v, place in places.items()}
    means = {v: f"load_splat(like, {_mean(k)})" for k, v in enumerate(plan.means)}

    def keep(stage: Stage) -> list[Store]:
        return [Store(v, f"store(like, {{}}, {places[v]}, lane)") for v in stage.stores]

    return Step(plan, loads, means | row_loads, slots, stores, row_stores, keep, _REGISTERS)


def _mean(number: int) -> str:
    return f"element_address(w.means, at.place, r, {number})"


_REGISTERS = Language(repr, lambda number: f"(zero + {number!r})", lambda name, text: f"{name} = {text}")


def _over_units(body: Sequence[str]) -> list[str]:
    return ["for u in range(0, hidden, lane):", "    n = hidden - u", *(f"    {line}" for line in body)] if body else []


def _lines_of_row(step: Step, number: int) -> list[str]:
    """What a stage does for one row."""
    of_row, of_unit, summed = step.lines(number)
    lines = [*of_row, *(f"sum{k} = zero" for k in range(len(summed)))]
    lines += _over_units([*of_unit, *(f"sum{k} = sum{k} + keep_first({text}, n)" for k, text in enumerate(summed))])
    numbers = [[one.index for one in step.plan.means].index(v.index) for v in step.plan.stages[number].means]
    return lines + [f"store_lane_sum(sum{k}, 1.0 / hidden, {_mean(j)})" for k, j in enumerate(numbers)]


def _functions(cell: TracedCell, step: Step, given: str, ended: Sequence[str], resets: bool) -> list[Any]:
    """A function for each stage; ``ended``: what is done to the units of a row whose sequence has ended."""
    functions = []
    for number in range(len(step.plan.stages)):
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
            *(f"        {line}" for line in _lines_of_row(step, number)),
        ]
        functions.append(defined("stage", lines, f"<stage {number} of {cell.maths}>", dict(_NAMES)))
    return functions


def defined(name: str, lines: Sequence[str], file: str, names: dict[str, Any]) -> Any:
    """The function that ``lines`` define as ``name``, of ``names``.

    Numba finds machine code by a function's name, in what it has stored on disk too: each text has a name of its own.
    """
    called = [getattr(value, "__name__", "") for value in names.values()]
    own = f"{name}_{hashlib.blake2b(repr([lines, called]).encode(), digest_size=8).hexdigest()}"
    first, *rest = lines
    exec(compile("\n".join([first.replace(name, own, 1), *rest, ""]), file, "exec"), names)
    return names[own]
