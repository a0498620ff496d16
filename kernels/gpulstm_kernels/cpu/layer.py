"""The backend: one layer, both directions, as :mod:`gpulstm_kernels.reference` describes it, float32 and float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..cells import Cell
from ..memory import empty, zeros
from . import gemm, packing, sequence, step
from .narrow import row_bytes
from .sequence import Packed, Plan, Tape, Weights
from .step import Stream as Stream  # a part of the backend, for gpulstm.nn.Stream
from .threads import crew
from .tile import WIDTH, panel_vectors
from .vector import REGISTER_BYTES, lanes

_PACKS_FROM = 16  # rows of input from which packing the weights pays
_BLOCK = 48  # rows of a panel of gates that stay in the L1 cache from bias to cell
_FUSED_FROM = 4  # rows a thread has in a step from which they make tiles good enough to project input step by step
_FUSED_TO = 4 << 20  # bytes of input weights that may be read again at every step
_CHUNK_ROWS = 192  # rows of input that one pass projects: enough to reuse a panel, few enough to stay in the cache
_WORTH_A_THREAD = 4_000_000  # multiply-adds below which a further thread costs more than it brings
NARROW = {"bf16": np.dtype(np.uint16), "int8": np.dtype(np.int8)}  # what weights may be kept as, for inference
_READ_COST = 8  # multiply-adds in the time it takes to read one weight
_SPLIT_FROM = 6  # rows a thread has from which threads split the batch rather than share the weights
_SHARED_FROM = 1 << 19  # bytes of recurrent weights from which they share them all the same


class LayerTape(NamedTuple):
    """What :func:`layer_forward` keeps for :func:`layer_backward`."""

    cell: Cell
    x: np.ndarray
    lengths: np.ndarray
    weights: list[Weights]
    names: list[tuple[str, ...]]
    plans: list[Plan]
    tapes: list[Tape]


def thread_split(cell: Cell, steps: int, batch: int, weights: Weights, directions: int) -> tuple[int, bool]:
    """How many threads at most a call takes, and whether each direction's threads split the batch (else the units)."""
    read = weights.ih.size + weights.hh.size + weights.hr.size
    work = steps * read * max(batch, _READ_COST) * directions
    at_most = max(1, min(crew.size, work // _WORTH_A_THREAD))
    team = max(1, at_most // directions)
    across = WIDTH * lanes(weights.bias.dtype)
    can_share = -(-(weights.hh.shape[0] // len(cell.gates)) // across) >= team
    shares = batch < team * _SPLIT_FROM or weights.hh.nbytes >= _SHARED_FROM
    return at_most, not (can_share and shares)


def layer_forward(
    cell: Cell,
    x: np.ndarray,
    state: tuple[np.ndarray, ...],
    weights: Sequence[Mapping[str, np.ndarray]],
    lengths: np.ndarray | None,
    keep: bool,
) -> tuple[np.ndarray, tuple[np.ndarray, ...], LayerTape | None]:
    """See :func:`gpulstm_kernels.reference.layer_forward`. ``y`` is a view of the tape's ``ys``."""
    steps, batch, _ = x.shape
    narrow = weights[0]["weight_hh"].dtype != x.dtype
    if steps == 1 and not keep and batch < _PACKS_FROM and not narrow and "weight_hr" not in weights[0]:
        return (*_one_step(cell, x, state, weights), None)
    dtype, directions = x.dtype, len(weights)
    n_gates, width = len(cell.gates), panel_vectors(len(cell.gates)) * lanes(dtype)
    own = [_weights(cell, w, width) for w in weights]
    hidden, outputs = own[0].hh.shape[0] // n_gates, own[0].hh.shape[1]
    projected = own[0].hr.size > 0
    padded = -(-hidden // width) * width
    kept = steps if keep else 0
    at_most, by_batch = thread_split(cell, steps, batch, own[0], directions)
    packs = narrow or steps * batch >= _PACKS_FROM
    team = 1 if at_most < directions else at_most // directions
    rows = -(-batch // team) if by_batch else batch
    if not packs or (rows >= _FUSED_FROM and own[0].ih.nbytes <= _FUSED_TO):
        chunk, room = 0, (at_most, min(rows, _BLOCK), n_gates * width)
    else:
        chunk = -(-steps // -(-steps * batch // max(batch, _CHUNK_ROWS)))
        room = (padded // width, chunk * batch, n_gates * width)
    lengths = np.full(batch, steps, np.int64) if lengths is None else lengths

    ys = empty((steps + 2, batch, directions * outputs), dtype)
    row16 = row_bytes(own[0].ih, x.shape[2]) * max(1, chunk) + row_bytes(own[0].hh, outputs)
    nothing, walks = empty((0, 0), dtype), []
    for d in range(directions):
        plan = Plan(d == 1, d * outputs, keep, packs, by_batch, chunk, hidden, outputs)
        states = empty((len(cell.states), kept + 1, batch, padded), dtype)
        first = kept if plan.reverse else 0
        states[:, first, :, hidden:] = 0
        for k, initial in enumerate(state[1:]):
            states[k, first, :, :hidden] = initial[d]
        ys[steps + 1 if plan.reverse else 0, :, plan.column : plan.column + outputs] = state[0][d]
        saved = empty((kept, batch, padded * cell.saved), dtype)
        tape = Tape(ys, states, saved, empty(((kept or 1) * projected, batch, hidden), dtype))
        read = own[d]._replace(ih=nothing, hh=nothing) if packs else own[d]
        packed = _packed_rows(own[d], weights[d], n_gates, width, packs)
        scratch = empty(room, dtype), gemm.edges(at_most, dtype), empty((at_most, row16 * batch), np.dtype(np.uint8))
        walks.append(sequence.Forward(read, packed, tape, *scratch, plan))

    arguments = cell, x, lengths, (walks[0], walks[-1]), directions
    crew.run(sequence.forward, (cell, dtype, own[0].ih.dtype), arguments, at_most, meets=not by_batch)
    plans, tapes = [walk.plan for walk in walks], [walk.tape for walk in walks]
    final: tuple[np.ndarray, ...] = (
        np.stack([ys[1 if p.reverse else steps, :, p.column : p.column + outputs] for p in plans]),
    )
    for k in range(len(cell.states)):
        last = [tape.states[k, 0 if p.reverse else kept, :, :hidden] for tape, p in zip(tapes, plans, strict=True)]
        final += (np.stack(last),)
    names = [tuple(w) for w in weights]
    return ys[1:-1], final, LayerTape(cell, x, lengths, own, names, plans, tapes)


def _one_step(
    cell: Cell, x: np.ndarray, state: tuple[np.ndarray, ...], weights: Sequence[Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """``y`` and the final state of one step of few rows, without a projection."""
    directions, batch, hidden = state[0].shape
    new_h = np.empty_like(state[0])
    states = np.empty((directions, len(state) - 1, batch, hidden), x.dtype)
    for k, part in enumerate(state[1:]):
        states[:, k] = part
    for d, own in enumerate(weights):
        row = np.array(step.program_row(x[0], own, state[0][d], states[d], new_h[d]), np.int64)
        at_most = max(1, (own["weight_ih"].size + own["weight_hh"].size) // step.WORTH_A_THREAD)
        crew.run(
            step.step, (cell, x.dtype), (cell, x[0], row, step.room(cell, at_most), np.zeros(1, np.int64)), at_most
        )
    y = new_h.swapaxes(0, 1).reshape(1, batch, directions * hidden)
    return y.copy() if directions == 1 else y, (new_h, *(states[:, k] for k in range(len(state) - 1)))


def layer_backward(
    tape: LayerTape, dy: np.ndarray, dstate: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...], list[dict[str, np.ndarray]]]:
    """See :func:`gpulstm_kernels.reference.layer_backward`."""
    cell, x, plans, own = tape.cell, tape.x, tape.plans, tape.weights
    steps, batch, inputs = x.shape
    dtype, directions, n_gates = x.dtype, len(own), len(cell.gates)
    hidden, outputs = own[0].hh.shape[0] // n_gates, own[0].hh.shape[1]
    width = panel_vectors(n_gates) * lanes(dtype)
    padded = -(-hidden // width) * width
    projected = own[0].hr.size > 0
    at_most, _ = thread_split(cell, steps, batch, own[0], directions)

    nothing, walks = empty(0, dtype), []
    for d in range(directions):
        dh = empty((1, batch, outputs), dtype)
        dh[0] = dstate[0][d]
        dstates = zeros((len(cell.states), 1, batch, padded), dtype)
        for k, final in enumerate(dstate[1:]):
            dstates[k, 0, :, :hidden] = final[d]
        dgates = empty((steps, batch, padded * n_gates), dtype)
        dprojected = empty((steps * projected, batch, outputs), dtype)
        dhidden = empty((1 * projected, batch, hidden), dtype)
        hh = packing.columns(own[d].hh, n_gates, width)
        packed = Packed(nothing, hh, packing.columns(own[d].hr), nothing, nothing)
        gradients = dh, dstates, dgates, dprojected, dhidden
        walks.append(sequence.Backward(packed, tape.tapes[d], *gradients, gemm.edges(at_most, dtype), plans[d]))

    arguments = cell, dy, tape.lengths, (walks[0], walks[-1]), directions
    crew.run(sequence.backward, (cell, dtype), arguments, at_most, meets=not plans[0].by_batch)

    rows, across = steps * batch, padded * n_gates
    dx = zeros((rows, inputs), dtype)
    grads = []
    for d, (walk, plan) in enumerate(zip(walks, plans, strict=True)):
        of_gates, in_rows = walk.dgates.reshape(-1), (0, across)
        gemm.multiply_packed(dx, walk.dgates.reshape(rows, across), packing.columns(own[d].ih, n_gates, width))
        ys = tape.tapes[d].ys
        before = ((2 if plan.reverse else 0) * batch * ys.shape[2] + plan.column, ys.shape[2])
        right = [gemm.Rows(x.reshape(-1), (0, inputs), inputs), gemm.Rows(ys.reshape(-1), before, outputs)]
        (dih, dhh), dbias = gemm.outer(of_gates, in_rows, rows, right, hidden, n_gates, width)
        grad = {"weight_ih": dih, "weight_hh": dhh}
        if "bias_ih" in tape.names[d]:
            by_gate = dbias.reshape(-1, n_gates, width).swapaxes(0, 1).reshape(n_gates, -1)
            grad["bias_ih"] = by_gate[:, :hidden].ravel()
            grad["bias_hh"] = grad["bias_ih"].copy()
        if projected:
            flat, through = walk.dprojected.reshape(-1), tape.tapes[d].hidden.reshape(-1)
            (grad["weight_hr"],), _ = gemm.outer(
                flat, (0, outputs), rows, [gemm.Rows(through, (0, hidden), hidden)], outputs
            )
        grads.append(grad)
    initial: tuple[np.ndarray, ...] = (np.stack([walk.dh[0] for walk in walks]),)
    for k in range(len(cell.states)):
        initial += (np.stack([walk.dstates[k, 0, :, :hidden] for walk in walks]),)
    return dx.reshape(x.shape), initial, grads


def tape_layout(
    cell: Cell, dtype: str, steps: int, batch: int, hidden: int, outputs: int, directions: int, projected: bool
) -> list[tuple[tuple[int, ...], str]]:
    """See :func:`gpulstm_kernels.reference.tape_layout`."""
    width = panel_vectors(len(cell.gates)) * lanes(np.dtype(dtype))
    padded = -(-hidden // width) * width
    shapes = [
        (len(cell.states), steps + 1, batch, padded),
        (steps, batch, padded * cell.saved),
        (steps if projected else 0, batch, hidden),
    ]
    return [(shape, dtype) for shape in ((steps + 2, batch, directions * outputs), *shapes * directions)]


def tape_arrays(tape: LayerTape) -> list[np.ndarray]:
    """See :func:`gpulstm_kernels.reference.tape_arrays`. What the walk left unwritten is zero: no bits by chance."""
    n_gates, n_saved = len(tape.cell.gates), tape.cell.saved
    hidden, outputs = tape.weights[0].hh.shape[0] // n_gates, tape.weights[0].hh.shape[1]
    steps, batch, _ = tape.x.shape
    width = panel_vectors(n_gates) * lanes(tape.x.dtype)
    for plan, (ys, states, saved, _) in zip(tape.plans, tape.tapes, strict=True):
        ys[0 if plan.reverse else -1, :, plan.column : plan.column + outputs] = 0
        states[..., hidden:] = 0
        if n_saved:
            last = saved.reshape(steps, batch, -1, n_saved, width)[:, :, -1]
            last[..., hidden - (hidden - 1) // width * width :] = 0
        if tape.lengths.min() < steps:
            saved[np.arange(steps)[:, None] >= tape.lengths] = 0
    return [tape.tapes[0].ys, *(array for own in tape.tapes for array in (own.states, own.saved, own.hidden))]


def tape_of(
    cell: Cell,
    x: np.ndarray,
    weights: Sequence[Mapping[str, np.ndarray]],
    lengths: np.ndarray | None,
    arrays: Sequence[np.ndarray],
) -> LayerTape:
    """See :func:`gpulstm_kernels.reference.tape_of`."""
    steps, batch, _ = x.shape
    directions = len(weights)
    width = panel_vectors(len(cell.gates)) * lanes(x.dtype)
    own = [_weights(cell, w, width) for w in weights]
    hidden, outputs = own[0].hh.shape[0] // len(cell.gates), own[0].hh.shape[1]
    _, by_batch = thread_split(cell, steps, batch, own[0], directions)
    packs = steps * batch >= _PACKS_FROM
    return LayerTape(
        cell,
        x,
        np.full(batch, steps, np.int64) if lengths is None else lengths,
        own,
        [tuple(w) for w in weights],
        [Plan(d == 1, d * outputs, True, packs, by_batch, 0, hidden, outputs) for d in range(directions)],
        [Tape(arrays[0], *arrays[1 + 3 * d : 4 + 3 * d]) for d in range(directions)],
    )


def describe(cell: Cell, steps: int, batch: int, weights: Sequence[Mapping[str, np.ndarray]]) -> str:
    """In words: how :func:`layer_forward` would walk such a call."""
    width = panel_vectors(len(cell.gates)) * lanes(weights[0]["weight_hh"].dtype)
    at_most, by_batch = thread_split(cell, steps, batch, _weights(cell, weights[0], width), len(weights))
    split = f"{at_most} threads over the {'batch' if by_batch else 'units'}" if at_most > 1 else "one thread"
    rows = "packed into register tiles" if steps * batch >= _PACKS_FROM else "read where they lie (few rows)"
    return f"sequence walk, weights {rows}, {split}, {REGISTER_BYTES * 8}-bit vectors"


def _weights(cell: Cell, weights: Mapping[str, np.ndarray], width: int) -> Weights:
    """``weights`` as kernels take them; a weight that is narrower than its bias has a projection in the wider dtype."""
    ih, hh = weights["weight_ih"], weights["weight_hh"]
    dtype = ih.dtype if ih.dtype.kind == "f" else np.dtype(np.float32)
    bias = packing.biases(weights, len(cell.gates), width, dtype)
    return Weights(ih, hh, weights.get("weight_hr", np.empty((0, 0), dtype)), bias)


def _packed_rows(own: Weights, weights: Mapping[str, np.ndarray], n_gates: int, width: int, packs: bool) -> Packed:
    """What the forward walk reads: the projection is always packed."""
    nothing = empty(0, own.bias.dtype)
    hr = packing.rows(own.hr, 1, WIDTH * lanes(own.hr.dtype))
    if not packs:
        return Packed(nothing, nothing, hr, nothing, nothing)
    scales = [weights.get(name) for name in ("scale_ih", "scale_hh")]
    ih, hh = packing.rows(own.ih, n_gates, width), packing.rows(own.hh, n_gates, width)
    return Packed(
        ih, hh, hr, *(nothing if scale is None else packing.in_panels(scale, n_gates, width) for scale in scales)
    )
