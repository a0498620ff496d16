"""One step for a handful of rows: no tape, nothing packed that is not narrow, no buffers but the caller's.

What costs here is reading the weights once, and getting to the kernel at all. So float weights and biases are read
where they lie, and threads claim a few units after another: who comes late finds less to do.

:func:`step` is a single step of one direction, for a layer's inference. :class:`Stream` keeps a stack of layers ready
to be stepped again and again; a thread of the crew that looks out for its steps takes a part of each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numba import types
from numba.extending import overload

from ...cells import Cell
from ...memory import contiguous, empty, zeros
from .. import tuning
from ..codegen.compilation import always_inline, cell_forward, entry, inline, kernel
from ..codegen.features import CACHE_LINE, REGISTER_BYTES
from ..codegen.narrow import narrowed, packed_depth, row_bytes
from ..codegen.numba_internals import entry_point
from ..codegen.tile import panel_vectors, tile_row, tile_rows, units
from ..codegen.vector import lanes, load, load_gates, load_states, store, store_tuple
from ..crew.atomics import fetch_add, publish
from ..crew.claims import claim, next_step, open_claims
from ..crew.crew import crew
from ..crew.team import wait_for
from ..packing import layouts as packing
from .sequence import dot_gates

_INPUTS, _HIDDEN, _X, _IH, _HH, _BIAS, _BIAS_HH, _SCALE_IH, _SCALE_HH, _H, _STATES, _NEW_H, _ROOMS, _APART = range(14)


@always_inline
def _cell_on(cell, like, gates, apart, carried, states, stride, new_h, place, valid):
    """The cell on a register of units: h to ``new_h + place``; its states, ``stride`` bytes apart, are updated.

    ``gates``: byte address, ``apart`` bytes from gate to gate; ``carried``: room for the states.
    """
    item, lane = like.itemsize, lanes(like)
    for k in range(cell.n_states):
        store(like, load(like, states + k * stride + place, valid), carried + k * lane * item, lane)
    previous = load_states(cell, like, carried, lane * item)
    out, carry, _ = cell_forward(cell, load_gates(cell, like, gates, apart), previous)
    store_tuple(carry, carried, lane * item)
    for k in range(cell.n_states):
        store(like, load(like, carried + k * lane * item, lane), states + k * stride + place, valid)
    store(like, out, new_h + place, valid)


@always_inline
def _where_they_lie(cell, like, i, batch, row, x, ldx, h, ldh, room):
    """Units of register ``i`` of every row, from float weights as the layer has them."""
    item, lane, hidden, inputs = like.itemsize, lanes(like), row[_HIDDEN], row[_INPUTS]
    unit = i * lane
    apart, valid = lane * item, min(lane, hidden - unit)
    for b in range(batch):
        dot_gates(cell, like, room, apart, x + b * ldx, inputs, h + b * ldh, hidden, row[_IH], row[_HH], hidden, unit)
        if row[_BIAS]:
            for g in range(cell.n_gates):
                at = (g * hidden + unit) * item
                bias = load(like, row[_BIAS] + at, valid) + load(like, row[_BIAS_HH] + at, valid)
                store(like, load(like, room + g * apart, lane) + bias, room + g * apart, lane)
        place = (b * hidden + unit) * item
        stride, carried = batch * hidden * item, room + cell.n_gates * apart
        _cell_on(cell, like, room, apart, carried, row[_STATES], stride, row[_NEW_H], place, valid)


@always_inline
def _packed(cell, like, weights, p, batch, row, x, ldx, h, ldh, room):
    """Units of panel ``p`` of every row, from packed weights of the dtype of ``weights``."""
    item, lane, hidden, inputs = like.itemsize, lanes(like), row[_HIDDEN], row[_INPUTS]
    width = units(cell, like)
    across = cell.n_gates * width
    panel = p * across * item
    panel_x = packed_depth(weights, inputs) * across * weights.itemsize
    panel_h = packed_depth(weights, hidden) * across * weights.itemsize
    ih, hh = row[_IH] + p * panel_x, row[_HH] + p * panel_h
    ldg = (across + cell.n_states * lane) * item
    bias, scale_ih, scale_hh = row[_BIAS] + panel, row[_SCALE_IH] + panel, row[_SCALE_HH] + panel
    if batch == 1:
        tile_row(cell, like, weights, scale_ih, room, bias, x, ih, inputs)
        tile_row(cell, like, weights, scale_hh, room, room, h, hh, hidden)
    else:
        next_ih, next_hh = ih + panel_x, hh + panel_h
        tile_rows(cell, like, weights, scale_ih, room, ldg, bias, 0, x, ldx, ih, batch, inputs, next_ih)
        tile_rows(cell, like, weights, scale_hh, room, ldg, room, ldg, h, ldh, hh, batch, hidden, next_hh)
    for b in range(batch):
        gates, carried, stride = room + b * ldg, room + b * ldg + across * item, batch * hidden * item
        for u in range(0, min(width, hidden - p * width), lane):
            place, valid = (b * hidden + p * width + u) * item, min(lane, hidden - p * width - u)
            at = gates + u * item
            _cell_on(cell, like, at, width * item, carried, row[_STATES], stride, row[_NEW_H], place, valid)


def _some_units(cell, like, weights, i, batch, row, x, ldx, h, ldh, room):
    """The ``i``-th few units of every row; ``row``: of a program; x and h as ``weights`` meet them."""


@overload(_some_units)
def _choose(cell, like, weights, i, batch, row, x, ldx, h, ldh, room):
    if isinstance(weights.dtype, types.Float):
        return lambda cell, like, weights, i, batch, row, x, ldx, h, ldh, room: _where_they_lie(
            cell, like, i, batch, row, x, ldx, h, ldh, room
        )
    return lambda cell, like, weights, i, batch, row, x, ldx, h, ldh, room: _packed(
        cell, like, weights, i, batch, row, x, ldx, h, ldh, room
    )


@inline
def _claims(cell, like, weights, hidden):
    """How many times some units there are."""
    few = lanes(like) if weights.itemsize == like.itemsize else units(cell, like)
    return (hidden + few - 1) // few


@inline
def _address(array):
    """Byte address of the first element; 0 where there is none."""
    return array.ctypes.data + 0 * array.size if array.size else 0  # a signed number


@kernel
def step(cell, x, h, weights, states, new_h, rooms, counters, rank, size, barrier):
    """A step of one direction, shared by any number of threads; ``counters`` (1,) is zero.

    x (B, I); h and what it becomes, ``new_h`` (B, H); ``states`` (S, B, H), updated in place; ``weights``: ih, hh and
    the two biases, which are empty where there are none, as a layer has them; ``rooms``: of :func:`room`.
    """
    ih, hh, bias_ih, bias_hh = weights
    places = _address(x), _address(ih), _address(hh), _address(bias_ih), _address(bias_hh), 0, 0, _address(h)
    row = (x.shape[1], h.shape[1], *places, _address(states), _address(new_h), _address(rooms), rooms.shape[1])
    item, count = x.itemsize, _claims(cell, x, x, row[_HIDDEN])
    own = row[_ROOMS] + rank * row[_APART]
    i = fetch_add(counters.ctypes.data, 1)
    while i < count:
        _some_units(cell, x, x, i, x.shape[0], row, row[_X], row[_INPUTS] * item, row[_H], row[_HIDDEN] * item, own)
        i = fetch_add(counters.ctypes.data, 1)


def room(cell: Cell, threads: int, rows: int = 1, extra: int = 0) -> np.ndarray:
    """Scratch for each of ``threads`` to hold a panel of gates and the states of ``rows`` rows, and ``extra`` bytes."""
    registers = len(cell.gates) * panel_vectors(len(cell.gates)) + len(cell.states)
    return empty((threads, rows * registers * REGISTER_BYTES + extra), np.dtype(np.uint8))


def program_row(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    h: np.ndarray,
    states: np.ndarray,
    new_h: np.ndarray,
    rooms: np.ndarray,
) -> tuple[int, ...]:
    """Sizes and byte addresses of one layer: what h and carried states (S, B, H), updated in place, become.

    ``weights``: by the names a layer has them under; scales and a missing bias may be left out. ``rooms``: of
    :func:`room`.
    """
    hidden = h.shape[1]
    arrays = [x, *(weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))]
    arrays += [weights.get("scale_ih"), weights.get("scale_hh"), h, states, new_h, rooms]
    if any(array is not None and contiguous(array) is not array for array in arrays):
        raise ValueError("a stream takes C-contiguous, aligned arrays alone")
    return x.shape[1], hidden, *(0 if array is None else array.ctypes.data for array in arrays), rooms.shape[1]


def _pack(cell: Cell, weights: Mapping[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """What :func:`_packed` reads of a layer with narrow weights, in the place of its ``weights``."""
    gates = len(cell.gates)
    width = panel_vectors(gates) * lanes(dtype)
    packed = {name: packing.rows(weights[name], gates, width) for name in ("weight_ih", "weight_hh")}
    packed["bias_ih"] = packing.biases(weights, gates, width, dtype)
    for name in weights.keys() & {"scale_ih", "scale_hh"}:
        packed[name] = packing.in_panels(weights[name], gates, width)
    return packed


@inline
def _walk(cell, like, weights, batch, program, shared, number, rank):
    """Step ``number`` through the stack, as one of the threads that share it; whether that took long waits."""
    item, size, waited = like.itemsize, shared.shape[1] - 1, 0
    for n in range(len(program)):
        row, claims = program[n], shared[n].ctypes.data
        inputs, hidden, room = row[_INPUTS], row[_HIDDEN], row[_ROOMS] + rank * row[_APART]
        of_h = room + row_bytes(weights, inputs) * batch
        gates = of_h + row_bytes(weights, hidden) * batch
        x, ldx = narrowed(weights, like, room, row[_X], inputs * item, batch, inputs)
        h, ldh = narrowed(weights, like, of_h, row[_H], hidden * item, batch, hidden)
        count, done = _claims(cell, like, weights, hidden), claims + CACHE_LINE * size
        own, i = 0, claim(claims, number, count, rank, size)
        while i >= 0:
            _some_units(cell, like, weights, i, batch, row, x, ldx, h, ldh, gates)
            own, i = own + 1, claim(claims, number, count, rank, size)
        fetch_add(done, own)
        waited += wait_for(done, number * count, None)
    return waited


@entry
def _step_all(cell, weights, programs, shared, x):
    """One step of a stack for x (B, I); the rest as :class:`Stream` has it.

    Returns 4 times the number of the step, + 2 if another thread kept this one waiting, + 1 if no other one is missing.
    """
    number = shared[-1, 0, 0] + 1
    program, threads, missing = programs[number % 2], shared.shape[1] - 1, 0
    for i in range(0, x.size, lanes(x)):  # into the stream's own buffer: another thread may be late, and x gone
        store(x, load(x, x.ctypes.data + i * x.itemsize, x.size - i), program[0, _X] + i * x.itemsize, x.size - i)
    for n in range(len(program)):
        open_claims(shared[n].ctypes.data, number, threads)
    publish(shared[-1].ctypes.data, number)
    waited = _walk(cell, x, weights, x.shape[0], program, shared, number, 0)
    for rank in range(1, threads):
        missing += 1 - shared[-1, rank, 0]
    return 4 * number + 2 * (waited > 0) + (missing == 0)


@entry
def _serve(cell, weights, programs, shared, x, rank, counter, posted):
    """Share the steps of a stack as they come, until they do not or the thread is wanted elsewhere."""
    steps = shared[-1].ctypes.data
    shared[-1, rank, 0] = 1
    number = next_step(steps, shared[-1, 0, 0], counter.ctypes.data, posted)
    while number:
        _walk(cell, x, weights, x.shape[0], programs[number % 2], shared, number, rank)
        number = next_step(steps, number, counter.ctypes.data, posted)
    shared[-1, rank, 0] = 0


class Stream:
    """A stack of unidirectional layers without projections, stepped in place: nothing is allocated at a step.

    Args:
        cell: of every layer.
        layers: their weights, by the names that a layer has them under. Float weights are read where they lie, at every
            step; narrow ones are packed here.
        batch: rows B.
        dtype: of the input and the states.
    """

    def __init__(self, cell: Cell, layers: Sequence[Mapping[str, np.ndarray]], batch: int, dtype: np.dtype) -> None:
        self._cell = cell
        like = layers[0]["weight_hh"]
        inputs, hidden = layers[0]["weight_ih"].shape[1], like.shape[1]
        self._kept = [dict(weights) if like.dtype == dtype else _pack(cell, weights, dtype) for weights in layers]
        size = sum(weights["weight_ih"].size + weights["weight_hh"].size for weights in layers)
        threads = max(1, min(crew.size, size // tuning.current.stream_per_thread))
        self._x = zeros((batch, inputs), dtype)
        self._h = [[zeros((batch, hidden), dtype) for _ in layers] for _ in range(2)]  # of even steps, and of odd ones
        self._outputs = [h[-1].view() for h in self._h]
        for output in self._outputs:
            output.flags.writeable = False
        self._states = [zeros((len(cell.states), batch, hidden), dtype) for _ in layers]
        rows16 = batch * (row_bytes(like, max(inputs, hidden)) + row_bytes(like, hidden))
        self._rooms = room(cell, threads, batch, rows16)
        programs = np.array([self._program(self._h[1 - turn], self._h[turn]) for turn in range(2)])
        # For each layer and for the stack, a cache line for each thread and one for all: its claims and what is done;
        # the number of the step, and whether the thread is there.
        self._shared = np.zeros((len(layers) + 1, threads + 1, 8), np.int64)
        stack = cell, like[:0], programs, self._shared
        self._run = functools.partial(entry_point(_step_all, *stack, self._x), *stack)
        if threads > 1:
            serve = entry_point(_serve, *stack, self._x, 1, self._shared[0, 0], 1)
            self._serve = functools.partial(serve, *stack, self._x)
        self._threads, self._missed, self._crowded = threads, 0, 0

    def _program(self, before: list[np.ndarray], after: list[np.ndarray]) -> list[tuple[int, ...]]:
        below = [self._x, *after[:-1]]
        parts = zip(below, self._kept, before, self._states, after, strict=True)
        return [program_row(*part, self._rooms) for part in parts]

    @property
    def _now(self) -> int:
        return int(self._shared[-1, 0, 0]) % 2

    def set_state(self, state: tuple[np.ndarray, ...]) -> None:
        """Go on from h and each carried state, (L, B, H) each."""
        for n, (h, carried) in enumerate(zip(self._h[self._now], self._states, strict=True)):
            h[:] = state[0][n]
            for k, part in enumerate(state[1:]):
                carried[k] = part[n]

    def get_state(self) -> tuple[np.ndarray, ...]:
        """h and each carried state, (L, B, H) each."""
        carried = [np.stack([part[k] for part in self._states]) for k in range(len(self._cell.states))]
        return np.stack(self._h[self._now]), *carried

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The output (B, H) of the last layer for ``x``, which is written again two steps later.

        It is read-only, since the next step reads h there. ``x`` must be (B, I) of the stream's dtype, C-contiguous and
        aligned: it is not checked here.
        """
        result = self._run(x)
        if result & 3 != 1:
            self._look_for_threads(result >> 2, bool(result & 2))
        return self._outputs[(result >> 2) & 1]

    def _look_for_threads(self, number: int, crowded: bool) -> None:
        """Ask those that are missing to look out for the next steps, if steps come one after another."""
        if crowded:
            if number - self._crowded > tuning.current.stream_forgets:
                crew.look_back(False)
            crew.look_back(True)
            self._crowded = number
        before, self._missed = self._missed, time.perf_counter_ns()
        if self._missed - before < tuning.current.stream_interval:
            for rank in range(1, self._threads):
                if not self._shared[-1, rank, 0]:
                    crew.lend(rank, functools.partial(self._serve, rank))
