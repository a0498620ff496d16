"""Layers of cells whose step products and means cut into stages; :mod:`.layer` calls these for such cells."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..backend import LayerShape, States, Weights
from ..cells import Cell
from ..language import stage_code
from ..language.cell import TracedCell
from ..memory import empty, zeros
from . import gemm, tuning
from .codegen.tile import WIDTH
from .codegen.vector import lanes
from .crew.thread_pool import crew
from .packing import layouts
from .packing.cache import cached, source_of
from .walks import staged

# Rows of a block: its slots and gates stay in a core's cache of the second level from stage to stage. With H = 256 on
# two cores (Zen 5), 4 rows took 13 % more time than 16, while 32 and 64 took as much within 4 %.
_BLOCK = 16


class StagedTape(NamedTuple):
    """What :func:`layer_forward` hands to :func:`layer_backward`."""

    shape: LayerShape
    x: np.ndarray
    weights: Weights
    lengths: np.ndarray
    inputs: np.ndarray
    resets: np.ndarray | None
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]  # ys, states, saved, rows of each direction


class _Counts(NamedTuple):
    """Of a cell's walks: the slots and means of both, and the saved values of units and of rows."""

    slots: int
    means: int
    slots_back: int
    means_back: int
    units: int
    rows: int


@functools.cache
def _counts(cell: TracedCell) -> _Counts:
    forth, back = stage_code.forward_schedule(cell), stage_code.backward_schedule(cell)
    saved = len(stage_code.saved_of_unit(cell)), len(stage_code.saved_of_row(cell))
    return _Counts(len(forth.slots), len(forth.means), len(back.slots), len(back.means), *saved)


def _padded(shape: LayerShape) -> int:
    lane = lanes(shape.dtype)
    return -(-shape.hidden // lane) * lane


def threads(shape: LayerShape) -> int:
    """How many threads at most a call takes: they split the batch."""
    own = len(_traced(shape).derivation.products) * shape.hidden
    work = shape.rows_of_x * shape.multiplied + (shape.rows_of_h + own) * shape.hidden
    work *= shape.steps * shape.batch * shape.directions
    return max(1, min(crew.size, work // tuning.current.layer_per_thread))


def _traced(shape: LayerShape) -> TracedCell:
    """The cell, which has stages: one of the language."""
    assert isinstance(shape.cell, TracedCell)
    return shape.cell


def layer_forward(
    shape: LayerShape,
    x: np.ndarray,
    state: States,
    weights: Weights,
    lengths: np.ndarray | None,
    inputs: np.ndarray | None,
    resets: np.ndarray | None,
) -> tuple[np.ndarray, States, StagedTape | None]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    cell, steps, batch, hidden, dtype = _traced(shape), shape.steps, shape.batch, shape.hidden, shape.dtype
    directions, training, padded = shape.directions, shape.training, _padded(shape)
    counts, at_most = _counts(cell), threads(shape)
    lengths = np.full(batch, steps, np.int64) if lengths is None else lengths
    inputs = empty((0, 0, 0, 1), dtype) if inputs is None else inputs
    ys, taped = empty((steps + 2, batch, directions * hidden), dtype), steps if training else 0
    block = min(_BLOCK, batch)
    walks = []
    for d, w in enumerate(weights):
        states = zeros((len(cell.states), taped + 1, batch, padded), dtype)
        first, column = (taped if d else 0), d * hidden
        for k, initial in enumerate(state[1:]):
            states[k, first, :, :hidden] = initial[d]
        ys[steps + 1 if d else 0, :, column : column + hidden] = state[0][d]
        scratch = [(shape.rows,), (counts.slots * padded,), (counts.means,), (hidden,)]
        walks.append(
            staged.Forward._make(
                [
                    *_packed(cell, w, hidden, dtype),
                    _params(cell, w, dtype),
                    ys,
                    states,
                    empty((taped, batch, counts.units * padded), dtype),
                    empty((taped, batch, counts.rows), dtype),
                    *(empty((at_most, block, *sizes), dtype) for sizes in scratch),
                    gemm.edges(at_most, dtype),
                    d == 1,
                    column,
                ]
            )
        )
    mode = 1 if training else None
    given = 1 if shape.gates_given else None
    arguments = cell, x, lengths, (walks[0], walks[-1]), inputs, resets, mode, given, hidden, directions
    crew.run(staged.forward, (cell, dtype, resets is None, training, shape.gates_given), arguments, at_most)
    h = [ys[1 if d else steps, :, d * hidden : (d + 1) * hidden] for d in range(directions)]
    carried = [
        np.stack([w.states[k, 0 if w.reverse or not training else steps, :, :hidden] for w in walks])
        for k in range(len(cell.states))
    ]
    kept = [(ys, w.states, w.saved, w.rows) for w in walks]
    tape = StagedTape(shape, x, weights, lengths, inputs, resets, kept) if training else None
    return ys[1:-1], (np.stack(h), *carried), tape


def layer_backward(
    tape: StagedTape, dy: np.ndarray, dstate: States
) -> tuple[np.ndarray, States, list[dict[str, np.ndarray]]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    shape, x, resets = tape.shape, tape.x, tape.resets
    cell, steps, batch, hidden, dtype = _traced(shape), shape.steps, shape.batch, shape.hidden, shape.dtype
    padded, counts, at_most = _padded(shape), _counts(cell), threads(shape)
    block, products = min(_BLOCK, batch), len(cell.derivation.products)
    walks, packed = [], [_packed_back(cell, w, hidden, dtype) for w in tape.weights]
    for d, (w, kept) in enumerate(zip(tape.weights, tape.kept, strict=True)):
        dh, dstates = empty((1, batch, hidden), dtype), zeros((len(cell.states), 1, batch, padded), dtype)
        dh[0] = dstate[0][d]
        for k, final in enumerate(dstate[1:]):
            dstates[k, 0, :, :hidden] = final[d]
        dgates, *of_products = (
            empty((steps, batch, n * hidden), dtype) for n in (shape.rows // hidden, products, products)
        )
        walks.append(
            staged.Backward._make(
                [
                    *packed[d][1:],
                    _params(cell, w, dtype),
                    *kept,
                    dh,
                    dstates,
                    dgates,
                    zeros((1, batch, len(cell.params) * hidden), dtype),
                    *of_products,
                    empty((len(cell.differentiable), steps, batch, hidden), dtype),
                    empty((at_most, block, counts.slots_back * padded), dtype),
                    empty((at_most, block, counts.means_back), dtype),
                    gemm.edges(at_most, dtype),
                    d == 1,
                    d * hidden,
                ]
            )
        )
    given = dy, tape.lengths, (walks[0], walks[-1]), tape.inputs, resets, hidden, shape.directions
    crew.run(staged.backward, (cell, dtype, resets is None), (cell, *given), at_most)

    dx = zeros((steps * batch, shape.inputs), dtype)
    grads = []
    for d, (walk, w, (ih, *_)) in enumerate(zip(walks, tape.weights, packed, strict=True)):
        grads.append(_weight_gradients(tape, walk, w))
        if shape.gates_given:
            of_x = walk.dgates.reshape(steps * batch, -1)[:, : shape.rows_of_x]
            dx[:, shape.given_columns(d)] = _turned(cell, of_x.T, hidden, back=True).T
        else:
            gemm.multiply_packed(dx, gemm.Rows(walk.dgates.reshape(-1), (0, shape.rows), shape.rows_of_x), ih)
    initial = [np.stack([walk.dh[0] for walk in walks])]
    initial += [np.stack([walk.dstates[k, 0, :, :hidden] for walk in walks]) for k in range(len(cell.states))]
    return dx.reshape(x.shape), tuple(initial), grads


def _weight_gradients(tape: StagedTape, walk: staged.Backward, w: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradients of one direction's parameters and inputs."""
    shape, cell, hidden, resets = tape.shape, _traced(tape.shape), tape.shape.hidden, tape.resets
    count = shape.steps * shape.batch
    flat, columns = walk.dgates.reshape(-1), shape.rows
    of_x = gemm.Rows(tape.x.reshape(-1), (0, shape.inputs), shape.multiplied)
    (dih,), sums = gemm.outer(flat, (0, columns), count, [of_x], shape.rows_of_x)
    grad = {} if shape.gates_given else {"weight_ih": _turned(cell, dih, hidden, back=True)}
    if "bias_ih" in w:
        grad["bias_ih"] = _turned(cell, sums[: shape.rows_of_x], hidden, back=True)
    if cell.gates_of_h:
        before = _h_before(shape, walk, resets)
        first = len(cell.x_gates) * hidden
        (dhh,), sums = gemm.outer(flat, (first, columns), count, [before], shape.rows_of_h)
        grad["weight_hh"] = dhh if shape.heads == 1 else layouts.blocks_of(dhh, shape.heads)
        if "bias_hh" in w:
            grad["bias_hh"] = sums[: shape.rows_of_h].copy()
    grad |= zip(cell.params, walk.dparams.sum(axis=(0, 1)).reshape(len(cell.params), hidden), strict=True)
    products = cell.derivation.products
    for k, value in enumerate(products):
        name, at = f"weight_{value.detail}", (k * hidden, len(products) * hidden)
        operand = gemm.Rows(walk.operands.reshape(-1), at, hidden)
        (dweight,), _ = gemm.outer(walk.dproducts.reshape(-1), at, count, [operand], hidden)
        grad[name] = grad[name] + dweight if name in grad else dweight
    for k, name in enumerate(cell.differentiable):
        shared = tape.inputs.shape[3] == 1
        grad[f"inputs.{name}"] = walk.dinputs[k].sum(axis=2, keepdims=True) if shared else walk.dinputs[k].copy()
    return grad


def _h_before(shape: LayerShape, walk: staged.Backward, resets: np.ndarray | None) -> gemm.Rows:
    """h before each step, in the order of time: where it lies, or a copy with zeros where rows begin anew."""
    hidden, features, first = shape.hidden, walk.ys.shape[2], 2 if walk.reverse else 0
    if resets is None:
        return gemm.Rows(walk.ys.reshape(-1), (first * shape.batch * features + walk.column, features), hidden)
    own = walk.ys[first : first + shape.steps, :, walk.column : walk.column + hidden].copy()
    own[: shape.steps - walk.reverse][resets[int(walk.reverse) :]] = 0
    return gemm.Rows(own.reshape(-1), (0, hidden), hidden)


def tape_layout(shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    counts, padded, steps, batch = _counts(_traced(shape)), _padded(shape), shape.steps, shape.batch
    of_direction = [
        (len(shape.cell.states), steps + 1, batch, padded),
        (steps, batch, counts.units * padded),
        (steps, batch, counts.rows),
    ]
    ys = (steps + 2, batch, shape.directions * shape.hidden)
    return [(sizes, shape.dtype.name) for sizes in (ys, *of_direction * shape.directions)]


def tape_arrays(tape: StagedTape) -> list[np.ndarray]:
    """See :class:`gpulstm_kernels.backend.Backend`. What the walk left unwritten is zero: no bits by chance."""
    shape, (ys, *_) = tape.shape, tape.kept[0]
    ended = np.arange(shape.steps)[:, None] >= tape.lengths
    for d, (_, states, saved, rows) in enumerate(tape.kept):
        ys[0 if d else -1, :, d * shape.hidden : (d + 1) * shape.hidden] = 0
        states[..., shape.hidden :] = 0
        saved.reshape(*saved.shape[:2], -1, _padded(shape))[..., shape.hidden :] = 0
        saved[ended], rows[ended] = 0, 0
    return [ys, *(array for kept in tape.kept for array in kept[1:])]


def tape_of(
    shape: LayerShape,
    x: np.ndarray,
    weights: Weights,
    lengths: np.ndarray | None,
    arrays: Sequence[np.ndarray],
    inputs: np.ndarray | None,
    resets: np.ndarray | None,
) -> StagedTape:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    ys, *rest = arrays
    kept = [(ys, *rest[3 * d : 3 * d + 3]) for d in range(shape.directions)]
    lengths = np.full(shape.batch, shape.steps) if lengths is None else lengths
    inputs = empty((0, 0, 0, 1), shape.dtype) if inputs is None else inputs
    return StagedTape(shape, x, weights, lengths, inputs, resets, kept)  # type: ignore[arg-type]


def describe(shape: LayerShape) -> str:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    at_most = threads(shape)
    split = f"{at_most} threads over the batch" if at_most > 1 else "one thread"
    return f"staged sequence walk, {shape.cell.stages} stages a step, weights packed into register tiles, {split}"


def _turned(cell: Cell, value: np.ndarray, hidden: int, back: bool = False) -> np.ndarray:
    """``value`` (Gx·H, ...), rows of ``gates`` first, with those of x alone first, as walks hold them; or ``back``."""
    last = len(cell.gates if back else cell.x_gates) * hidden
    return np.concatenate([value[len(value) - last :], value[: len(value) - last]])


def _params(cell: Cell, w: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.stack([w[name] for name in cell.params])[None] if cell.params else empty((1, 0, 0), dtype)


def _whole(weight_hh: np.ndarray) -> np.ndarray:
    """The recurrent weight as one matrix: the walk multiplies the zeros beside the blocks of heads too."""
    return weight_hh if weight_hh.ndim == 2 else layouts.whole(weight_hh)


def _packed(cell: Cell, w: Mapping[str, np.ndarray], hidden: int, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """ih, hh, the bias and the cell's own weights as the walk forward reads them."""

    def pack() -> tuple[np.ndarray, ...]:
        across = WIDTH * lanes(dtype)
        ih = empty(0, dtype)
        if "weight_ih" in w:
            ih = layouts.rows(_turned(cell, w["weight_ih"], hidden), 1, across)
        hh = layouts.rows(_whole(w["weight_hh"]), 1, across) if cell.gates_of_h else empty(0, dtype)
        bias = np.zeros((len(cell.preactivations), hidden), dtype)
        if "bias_ih" in w:
            bias[: len(cell.gates_of_x)] += _turned(cell, w["bias_ih"], hidden).reshape(-1, hidden)
        if "bias_hh" in w:
            bias[len(cell.x_gates) :] += w["bias_hh"].reshape(-1, hidden)
        own = [layouts.rows(w[f"weight_{name}"], 1, across) for name in cell.weights]
        return ih, hh, bias.ravel(), np.stack(own) if own else empty((0, 0), dtype)

    return cached(source_of(tuple(w.values())), ("staged", cell.gates, cell.x_gates, hidden, dtype, *w), pack)


def _packed_back(cell: Cell, w: Mapping[str, np.ndarray], hidden: int, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """ih, where there is one, as the gradient of x reads it, hh and the cell's own weights as the walk back does."""

    def pack() -> tuple[np.ndarray, ...]:
        ih = layouts.columns(_turned(cell, w["weight_ih"], hidden)) if "weight_ih" in w else empty(0, dtype)
        hh = layouts.columns(_whole(w["weight_hh"])) if cell.gates_of_h else empty(0, dtype)
        own = [layouts.columns(w[f"weight_{name}"]) for name in cell.weights]
        return ih, hh, np.stack(own) if own else empty((0, 0), dtype)

    return cached(source_of(tuple(w.values())), ("staged back", cell.gates, cell.x_gates, hidden, dtype, *w), pack)
