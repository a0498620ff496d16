"""Streams: a stack of layers that is kept ready to be stepped again and again.

Threads of the crew that have a task for a stream poll for its steps, and compute a part of each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence

import numpy as np

from ...backend import LayerShape
from ...cells import Cell
from ...memory import zeros
from .. import tuning
from ..codegen.compilation import entry, inline
from ..codegen.features import CACHE_LINE
from ..codegen.narrow import quantized_rows, row_bytes
from ..codegen.numba_internals import entry_point
from ..codegen.tile import panel_vectors
from ..codegen.vector import lanes, load, store
from ..crew.atomics import fetch_add, publish
from ..crew.claims import claim, next_step, open_claims
from ..crew.team import wait_for
from ..crew.thread_pool import crew
from ..packing import layouts
from .few_rows import (
    HIDDEN,
    INPUTS,
    SCRATCH,
    SCRATCH_STRIDE,
    H,
    X,
    addresses_of,
    compute_units,
    count_units,
    new_scratch,
    program_row,
    stride_of_x,
)


def _pack(cell: Cell, weights: Mapping[str, np.ndarray], hidden: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """A layer's narrow ``weights``, packed, under the same names; the cell's own parameters as they are."""
    width = panel_vectors(len(cell.preactivations)) * lanes(dtype)
    packed = {name: weights[name] for name in cell.params}
    packed["bias_ih"] = layouts.biases(cell, weights, hidden, width, dtype)
    for product, gates, turn in (("ih", len(cell.gates_of_x), len(cell.x_gates)), ("hh", len(cell.gates_of_h), 0)):
        if f"weight_{product}" in weights:
            packed[f"weight_{product}"] = layouts.rows(weights[f"weight_{product}"], gates, width, turn)
        if f"scale_{product}" in weights:
            packed[f"scale_{product}"] = layouts.in_panels(weights[f"scale_{product}"], gates, width, turn)
    return packed


@inline
def _walk(cell, like, weights, batch, program, shared, number, rank):
    """Step ``number`` through the stack, as one of the threads that share it; whether it had to wait for long."""
    item, size, waited = like.itemsize, shared.shape[1] - 1, 0
    for n in range(len(program)):
        row, claims = program[n], shared[n].ctypes.data
        inputs, hidden, own = row[INPUTS], row[HIDDEN], row[SCRATCH] + rank * row[SCRATCH_STRIDE]
        of_h = own + row_bytes(weights, inputs) * batch
        gates = of_h + row_bytes(weights, hidden) * batch
        x, ldx = row[X], stride_of_x(cell, row, item)
        if inputs:
            x, ldx = quantized_rows(weights, like, own, x, ldx, batch, inputs)
        h, ldh = row[H], hidden * item
        if cell.n_h:
            h, ldh = quantized_rows(weights, like, of_h, h, ldh, batch, hidden)
        count, done = count_units(cell, like, weights, hidden), claims + CACHE_LINE * size
        computed, i = 0, claim(claims, number, count, rank, size)
        while i >= 0:
            compute_units(cell, like, weights, i, batch, row, x, ldx, h, ldh, gates)
            computed, i = computed + 1, claim(claims, number, count, rank, size)
        fetch_add(done, computed)
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
        store(x, load(x, x.ctypes.data + i * x.itemsize, x.size - i), program[0, X] + i * x.itemsize, x.size - i)
    for n in range(len(program)):
        open_claims(shared[n].ctypes.data, number, threads)
    publish(shared[-1].ctypes.data, number)
    waited = _walk(cell, x, weights, x.shape[0], program, shared, number, 0)
    for rank in range(1, threads):
        missing += 1 - shared[-1, rank, 0]
    return 4 * number + 2 * (waited > 0) + (missing == 0)


@entry
def _serve(cell, weights, programs, shared, x, rank, counter, posted):
    """Compute a part of each step as they come, until none comes for a while or a call wants the thread."""
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
        shape: of a step of the first layer; the others have as many units, and take its output.
        layers: their weights, by the names that a layer has them under. Float weights and the cell's own parameters are
            read in place, at every step; narrow weights are packed here.
    """

    def __init__(self, shape: LayerShape, layers: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._cell = cell = shape.cell
        batch, inputs, hidden, dtype = shape.batch, shape.inputs, shape.hidden, shape.dtype
        narrow = shape.weights != dtype
        self._weights = [_pack(cell, weights, hidden, dtype) if narrow else dict(weights) for weights in layers]
        size = shape.rows_of_x * (shape.multiplied + hidden * (len(layers) - 1)) + shape.rows_of_h * hidden * len(
            layers
        )
        threads = max(1, min(crew.size, size // tuning.current.stream_per_thread))
        self._x = zeros((batch, inputs), dtype)
        like = layers[0].get("weight_ih", layers[0].get("weight_hh", self._x))
        self._h = [[zeros((batch, hidden), dtype) for _ in layers] for _ in range(2)]  # of even steps, and of odd ones
        self._outputs = [h[-1].view() for h in self._h]
        for output in self._outputs:
            output.flags.writeable = False
        self._states = [zeros((len(cell.states), batch, hidden), dtype) for _ in layers]
        self._inputs = zeros((len(cell.inputs), batch, hidden), dtype)  # that the cell declares
        self._anew = [zeros((batch, hidden), dtype) for _ in layers]  # h before a step at which rows begin anew
        self._params = [addresses_of(cell, weights) for weights in self._weights]
        quantized = batch * (row_bytes(like, max(shape.multiplied, hidden)) + row_bytes(like, hidden))
        self._scratch = new_scratch(cell, threads, batch, quantized)
        self._programs = np.array([self._program(self._h[1 - turn], self._h[turn]) for turn in range(2)])
        self._at_h = self._programs[::-1, :, H].copy()  # the addresses of each of them
        self._at_anew = np.array([anew.ctypes.data for anew in self._anew])
        # For each layer and for the stack, a cache line for each thread and one for all: its claims and what is done;
        # the number of the step, and whether the thread is there.
        self._shared = np.zeros((len(layers) + 1, threads + 1, 8), np.int64)
        stack = cell, like[:0], self._programs, self._shared
        self._run = functools.partial(entry_point(_step_all, *stack, self._x), *stack)
        if threads > 1:
            serve = entry_point(_serve, *stack, self._x, 1, self._shared[0, 0], 1)
            self._serve = functools.partial(serve, *stack, self._x)
        self._threads, self._missed, self._oversubscribed = threads, 0, 0

    def _program(self, before: list[np.ndarray], after: list[np.ndarray]) -> list[tuple[int, ...]]:
        below = [self._x, *after[:-1]]
        parts = zip(below, self._weights, before, self._states, after, self._params, strict=True)
        return [
            program_row(x, weights, h, states, new_h, self._scratch, params, self._inputs)
            for x, weights, h, states, new_h, params in parts
        ]

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

    def __call__(
        self, x: np.ndarray, inputs: Sequence[np.ndarray] | None = None, resets: np.ndarray | None = None
    ) -> np.ndarray:
        """The output (B, H) of the last layer for ``x``, which is written again two steps later.

        It is read-only, since the next step reads h there. ``x`` must be (B, I) of the stream's dtype, C-contiguous and
        aligned, each of ``inputs`` (B, H) or (B, 1) and ``resets`` bools (B,): nothing is checked here.
        """
        if inputs is not None:
            for own, value in zip(self._inputs, inputs, strict=True):
                np.copyto(own, value)
        if resets is not None and np.count_nonzero(resets):
            result = self._run_anew(x, resets[:, None])
        else:
            result = self._run(x)
        if result & 3 != 1:
            self._call_threads(result >> 2, bool(result & 2))
        return self._outputs[(result >> 2) & 1]

    def _run_anew(self, x: np.ndarray, resets: np.ndarray) -> int:
        """A step before which the rows that ``resets`` (B, 1) names are zero: of h in a copy, since it is an output."""
        now = self._now
        for h, anew, states in zip(self._h[now], self._anew, self._states, strict=True):
            np.copyto(anew, h)
            np.copyto(anew, 0, where=resets)
            np.copyto(states, 0, where=resets)
        program = self._programs[1 - now]
        program[:, H] = self._at_anew
        try:
            return int(self._run(x))
        finally:
            program[:, H] = self._at_h[now]

    def _call_threads(self, number: int, waited: bool) -> None:
        """Have threads that are missing poll for the next steps, if steps come one after another."""
        if waited:
            if number - self._oversubscribed > tuning.current.stream_forgets:
                crew.note_oversubscription(False)
            crew.note_oversubscription(True)
            self._oversubscribed = number
        before, self._missed = self._missed, time.perf_counter_ns()
        if self._missed - before < tuning.current.stream_interval:
            for rank in range(1, self._threads):
                if not self._shared[-1, rank, 0]:
                    crew.start_task(rank, functools.partial(self._serve, rank))
