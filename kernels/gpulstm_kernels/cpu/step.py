"""One step for a handful of rows: no tape, no packed weights, no buffers but the caller's.

What costs here is reading the weights once, and getting to the kernel at all. So weights and biases are read where
they lie, and threads claim registers of units one after another: who comes late finds less to do.

:func:`step` is a single step of one direction, for a layer's inference. :class:`Stream` keeps a stack of layers ready
to be stepped again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..cells import Cell
from ..memory import zeros
from .compile import cell_forward, entry_point, inline, kernel
from .sequence import dot_gates
from .threads import crew, next_number, wait_for
from .vector import lanes, load, load_gates, load_states, store, store_tuple

WORTH_A_THREAD = 1 << 20  # weights to read below which waking a thread costs more than it brings


@inline
def _units(cell, like, unit, batch, x, inputs, ih, hh, hidden, bias_ih, bias_hh, h, states, new_h):
    """A register of units from ``unit`` on, of every row; all arrays by byte address, a bias that is 0 is none.

    x (batch, inputs), ih (G·hidden, inputs), hh (G·hidden, hidden), h and new_h (batch, hidden); states (S, batch,
    hidden) are updated in place.
    """
    item, lane = like.itemsize, lanes(like)
    apart, stride = lane * item, batch * hidden * item
    valid = min(lane, hidden - unit)
    buffer = np.empty((cell.n_gates + cell.n_states) * lane, like.dtype)
    gates, carried = buffer.ctypes.data, buffer.ctypes.data + cell.n_gates * apart
    for b in range(batch):
        place = (b * hidden + unit) * item
        row, before = x + b * inputs * item, h + b * hidden * item
        dot_gates(cell, like, gates, apart, row, inputs, before, hidden, ih, hh, hidden, unit)
        if bias_ih:
            for g in range(cell.n_gates):
                at = (g * hidden + unit) * item
                bias = load(like, bias_ih + at, valid) + load(like, bias_hh + at, valid)
                store(like, load(like, gates + g * apart, lane) + bias, gates + g * apart, lane)
        for k in range(cell.n_states):
            store(like, load(like, states + k * stride + place, valid), carried + k * apart, lane)
        previous = load_states(cell, like, carried, apart)
        out, carry, _ = cell_forward(cell, load_gates(cell, like, gates, apart), previous)
        store_tuple(carry, carried, apart)
        for k in range(cell.n_states):
            store(like, load(like, carried + k * apart, lane), states + k * stride + place, valid)
        store(like, out, new_h + place, valid)


@kernel
def step(cell, x, weights, h, states, new_h, counters):
    """``new_h`` (B, H) and ``states`` (S, B, H), in place, from x (B, I), h (B, H) and the weights of a direction.

    ``weights``: weight_ih (G·H, I), weight_hh (G·H, H), bias_ih and bias_hh (G·H), both empty where there are none.
    """
    ih, hh, bias_ih, bias_hh = weights
    lane, hidden = lanes(x), hh.shape[1]
    unit = next_number(counters.ctypes.data) * lane
    while unit < hidden:
        _units(
            cell,
            x,
            unit,
            x.shape[0],
            x.ctypes.data,
            x.shape[1],
            ih.ctypes.data,
            hh.ctypes.data,
            hidden,
            bias_ih.ctypes.data if bias_ih.size else 0,
            bias_hh.ctypes.data if bias_hh.size else 0,
            h.ctypes.data,
            states.ctypes.data,
            new_h.ctypes.data,
        )
        unit = next_number(counters.ctypes.data) * lane


@kernel
def _stream(cell, x, layers, counters):
    """One step of a stack: x (B, I); ``layers`` as :class:`Stream` fills them; ``counters`` (L, 16) are zero."""
    lane, above = lanes(x), x.ctypes.data
    for n in range(len(layers)):
        row = layers[n]
        hidden, new_h = row[1], row[8]
        claimed, done = counters[n].ctypes.data, counters[n].ctypes.data + 64
        unit = next_number(claimed) * lane
        while unit < hidden:
            _units(
                cell, x, unit, x.shape[0], above, row[0], row[2], row[3], hidden, row[4], row[5], row[6], row[7], new_h
            )
            next_number(done)
            unit = next_number(claimed) * lane
        wait_for(done, (hidden + lane - 1) // lane)
        above = new_h


class Stream:
    """A stack of unidirectional layers without projections, stepped in place: nothing is allocated at a step.

    Args:
        cell: of every layer.
        layers: their weights, by the names that a layer has them under; read where they lie, at every step.
        batch: rows B.
        dtype: of the weights.
    """

    def __init__(self, cell: Cell, layers: Sequence[Mapping[str, np.ndarray]], batch: int, dtype: np.dtype) -> None:
        self._cell, self._kept = cell, [dict(weights) for weights in layers]
        hidden = layers[0]["weight_hh"].shape[1]
        self._buffers = [[zeros((batch, hidden), dtype) for _ in layers] for _ in range(2)]
        self._states = [zeros((len(cell.states), batch, hidden), dtype) for _ in layers]
        self._programs = [self._program(layers, self._buffers[i], self._buffers[1 - i]) for i in range(2)]
        self._counters = np.zeros((len(layers), 16), np.int64)
        size = sum(weights["weight_ih"].size + weights["weight_hh"].size for weights in layers)
        self._at_most = size // WORTH_A_THREAD
        x = np.empty((batch, layers[0]["weight_ih"].shape[1]), dtype)
        self._run = entry_point(_stream, cell, x, self._programs[0], self._counters)
        self._turn = 0

    def _program(
        self, layers: Sequence[Mapping[str, np.ndarray]], before: list[np.ndarray], after: list[np.ndarray]
    ) -> np.ndarray:
        """(L, 9): inputs, hidden, and the addresses of ih, hh, bias_ih, bias_hh (0 for none), h, states, new h."""
        rows = []
        for n, weights in enumerate(layers):
            inputs, hidden = weights["weight_ih"].shape[1], weights["weight_hh"].shape[1]
            arrays = [weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            arrays += [before[n], self._states[n], after[n]]
            rows.append((inputs, hidden, *(0 if array is None else array.ctypes.data for array in arrays)))
        return np.array(rows, np.int64)

    def set_state(self, state: tuple[np.ndarray, ...]) -> None:
        """Go on from h and each carried state, (L, B, H) each."""
        for n, (h, carried) in enumerate(zip(self._buffers[self._turn], self._states, strict=True)):
            h[:] = state[0][n]
            for k, part in enumerate(state[1:]):
                carried[k] = part[n]

    def get_state(self) -> tuple[np.ndarray, ...]:
        """h and each carried state, (L, B, H) each."""
        carried = [np.stack([part[k] for part in self._states]) for k in range(len(self._cell.states))]
        return np.stack(self._buffers[self._turn]), *carried

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The output (B, H) of the last layer for ``x``, which is written again two steps later.

        ``x`` must be (B, I) of the weights' dtype, C-contiguous, aligned and writeable: it is not checked here.
        """
        counters, program = self._counters, self._programs[self._turn]
        counters.fill(0)
        if self._at_most > 1:
            crew.run(lambda rank, size, barrier: self._run(self._cell, x, program, counters), self._at_most)
        else:
            self._run(self._cell, x, program, counters)
        self._turn = 1 - self._turn
        return self._buffers[self._turn][-1]
