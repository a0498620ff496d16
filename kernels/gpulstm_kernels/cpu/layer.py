"""The backend ``numba_cpu``: one layer, both directions, in float32 or float64; see :mod:`gpulstm_kernels.backend`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .. import bfloat16
from ..backend import NARROW, LayerShape
from ..cells import Cell
from ..memory import empty, zeros
from . import gemm, tuning
from .codegen.features import REGISTER_BYTES
from .codegen.narrow import group, row_bytes
from .codegen.tile import WIDTH, panel_vectors
from .codegen.vector import lanes
from .crew.thread_pool import crew
from .packing import layouts
from .packing.cache import Source, cached, source_of
from .walks import sequence_backward, sequence_forward
from .walks.arguments import Backward, Forward, Packed, Plan, Projection, ProjectionBack, Tape, Weights
from .walks.few_rows import new_scratch
from .walks.single_step import step
from .walks.stream_steps import Stream


class LayerTape(NamedTuple):
    """What :func:`layer_forward` hands to :func:`layer_backward`."""

    shape: LayerShape
    x: np.ndarray
    lengths: np.ndarray
    weights: list[Weights]
    columns: list[Weights]
    plans: list[Plan]
    tapes: list[Tape]


class Sizes(NamedTuple):
    """Of each direction of a layer."""

    gates: int
    hidden: int
    outputs: int
    width: int  # units of a panel
    padded: int  # ``hidden`` in whole panels


def sizes_of(shape: LayerShape) -> Sizes:
    """What the walks count in."""
    gates = len(shape.cell.gates)
    width = panel_vectors(gates) * lanes(shape.dtype)
    return Sizes(gates, shape.hidden, shape.outputs, width, -(-shape.hidden // width) * width)


def thread_split(shape: LayerShape, forward: bool = True, oversubscribed: bool = False) -> tuple[int, bool]:
    """How many threads at most a call takes, and whether each direction's threads split the batch (else the units).

    ``forward``: not backward; ``oversubscribed``: others want the cores too, so barriers cost more.
    """
    limits, batch, rows = tuning.current, shape.batch, shape.rows
    read = rows * (shape.inputs + shape.outputs) + shape.projected * shape.outputs * shape.hidden
    work = shape.steps * read * max(batch, limits.read_cost) * shape.directions
    at_most = max(1, min(crew.size, work // limits.layer_per_thread))
    team = max(1, at_most // shape.directions)
    can_share = -(-shape.hidden // (WIDTH * lanes(shape.dtype))) >= team
    shared_from = limits.shared_from if forward and batch < team * limits.shared_to else limits.always_shared_from
    large = rows * shape.outputs * shape.weights.itemsize >= shared_from
    shares = batch < team * limits.split_from or (large and not oversubscribed)
    return at_most, not (can_share and shares)


def why_not(shape: LayerShape) -> str | None:
    """It computes any shape; narrow weights in inference alone."""
    if shape.weights == shape.dtype:
        return None
    if shape.weights not in NARROW.values() or shape.training:
        return f"it has no weights in {shape.weights}{' that could be trained' if shape.training else ''}"
    return None


def layer_forward(
    shape: LayerShape,
    x: np.ndarray,
    state: tuple[np.ndarray, ...],
    weights: Sequence[Mapping[str, np.ndarray]],
    lengths: np.ndarray | None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...], LayerTape | None]:
    """See :class:`gpulstm_kernels.backend.Backend`. ``y`` is a view of the tape's ``ys``."""
    packs = _packs(shape)
    if _is_one_step(shape, packs):
        return (*_one_step(shape, x, state, weights), None)
    cell, steps, batch, inputs = shape.cell, shape.steps, shape.batch, shape.inputs
    dtype, directions, projected, training = shape.dtype, shape.directions, shape.projected, shape.training
    own = [_matrices(w) for w in weights]
    sizes = sizes_of(shape)
    limits = tuning.current
    wide = shape.weights == NARROW["bf16"] and group(shape.weights) == 1 and batch >= limits.widened_from
    at_most, by_batch = thread_split(shape, oversubscribed=crew.oversubscribed)
    team = 1 if at_most < directions else at_most // directions
    rows = -(-batch // team) if by_batch else batch
    if not packs or (by_batch and rows >= limits.fused_from and own[0].ih.nbytes <= limits.fused_to):
        chunk, gates = 0, (at_most, min(rows, limits.block_rows), sizes.gates * sizes.width)
    else:
        chunk = -(-steps // -(-steps * batch // max(batch, limits.chunk_rows)))
        gates = (sizes.padded // sizes.width, chunk * batch, sizes.gates * sizes.width)
    quantized_bytes = row_bytes(own[0].ih, inputs) * max(1, chunk) + row_bytes(own[0].hh, sizes.outputs)
    lengths = np.full(batch, steps, np.int64) if lengths is None else lengths

    ys = empty((steps + 2, batch, directions * sizes.outputs), dtype)
    walks, projections, columns = [], [], []
    for d in range(directions):
        plan = Plan(d == 1, d * sizes.outputs, training, by_batch, chunk, sizes.hidden, sizes.outputs)
        source = _source(weights[d], packs or training)
        packed = _packed_rows(weights[d], source, sizes, dtype, packs, wide)
        if training:
            columns.append(_packed_columns(own[d], source, sizes))
        tape = _begun_tape(cell, ys, [part[d] for part in state], steps, sizes, plan, projected)
        if projected:
            hr = _packed_projection(weights[d], source)
            projections.append(Projection(hr, gemm.edges(at_most, dtype)))
        quantized = empty((at_most, quantized_bytes * batch), np.uint8) if quantized_bytes else _nothing(np.uint8)
        walks.append(Forward(packed, tape, empty(gates, dtype), quantized, plan))

    unpacked = None if packs else (own[0][:2], own[-1][:2])
    projection = (projections[0], projections[-1]) if projected else None
    arguments = cell, x, lengths, (walks[0], walks[-1]), unpacked, projection, directions
    work = 0 if by_batch else steps * batch * own[0].hh.size
    read = dtype if wide else own[0].ih.dtype
    crew.run(sequence_forward.forward, (cell, dtype, read, packs, projection is None), arguments, at_most, work)
    plans, tapes = [walk.plan for walk in walks], [walk.tape for walk in walks]
    final = _final_state(cell, plans, tapes, steps)
    return ys[1:-1], final, LayerTape(shape, x, lengths, own, columns, plans, tapes) if training else None


def _begun_tape(
    cell: Cell, ys: np.ndarray, state: list[np.ndarray], steps: int, sizes: Sizes, plan: Plan, projected: bool
) -> Tape:
    """The tape of one direction, whose output goes to ``ys``, with the initial ``state``, (B, ·) each."""
    dtype, batch, taped = ys.dtype, ys.shape[1], steps if plan.training else 0
    states = empty((len(cell.states), taped + 1, batch, sizes.padded), dtype)
    first = taped if plan.reverse else 0
    if sizes.hidden < sizes.padded:
        states[:, first, :, sizes.hidden :] = 0
    for k, initial in enumerate(state[1:]):
        states[k, first, :, : sizes.hidden] = initial
    ys[steps + 1 if plan.reverse else 0, :, plan.column : plan.column + plan.outputs] = state[0]
    saved = empty((taped, batch, sizes.padded * cell.saved), dtype)
    return Tape(ys, states, saved, empty(((taped or 1) * projected, batch, sizes.hidden), dtype))


def _final_state(cell: Cell, plans: list[Plan], tapes: list[Tape], steps: int) -> tuple[np.ndarray, ...]:
    """h and each carried state after the last step, (D, B, ·) each."""
    both = list(zip(plans, tapes, strict=True))
    h = [t.ys[1 if p.reverse else steps, :, p.column : p.column + p.outputs] for p, t in both]
    carried = [
        [t.states[k, 0 if p.reverse or not p.training else steps, :, : p.hidden] for p, t in both]
        for k in range(len(cell.states))
    ]
    return tuple(parts[0][None].copy() if len(parts) == 1 else np.stack(parts) for parts in (h, *carried))


def _is_one_step(shape: LayerShape, packs: bool) -> bool:
    """Whether a call is one step of few rows, which has a kernel of its own."""
    return shape.steps == 1 and not shape.training and not packs


def _one_step(
    shape: LayerShape, x: np.ndarray, state: tuple[np.ndarray, ...], weights: Sequence[Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """``y`` and the final state of one step of few rows, without a projection."""
    cell, directions, batch, hidden = shape.cell, shape.directions, shape.batch, shape.hidden
    new_h = np.empty_like(state[0])
    states = np.empty((directions, len(state) - 1, batch, hidden), x.dtype)
    for k, part in enumerate(state[1:]):
        states[:, k] = part
    no_bias = _nothing(x.dtype, 1)
    for d, own in enumerate(weights):
        ih, hh = own["weight_ih"], own["weight_hh"]
        at_most = _threads_of_a_step(shape)
        read = ih, hh, own.get("bias_ih", no_bias), own.get("bias_hh", no_bias)
        written = states[d], new_h[d], new_scratch(cell, at_most), np.zeros(1, np.int64)
        crew.run(step, (cell, x.dtype), (cell, x[0], state[0][d], read, *written), at_most)
    y = np.concatenate(new_h, axis=1)[None]  # a copy, whatever the sizes: y and h share no memory
    return y, (new_h, *(states[:, k] for k in range(len(state) - 1)))


def _threads_of_a_step(shape: LayerShape) -> int:
    """How many threads at most share the weights of a step's direction."""
    return max(1, shape.rows * (shape.inputs + shape.outputs) // tuning.current.step_per_thread)


def layer_backward(
    tape: LayerTape, dy: np.ndarray, dstate: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...], list[dict[str, np.ndarray]]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    shape, x, plans, own = tape.shape, tape.x, tape.plans, tape.weights
    cell, steps, batch, inputs = shape.cell, shape.steps, shape.batch, shape.inputs
    dtype, directions, projected = shape.dtype, shape.directions, shape.projected
    gates, hidden, outputs, width, padded = sizes_of(shape)
    at_most, by_batch = thread_split(shape, forward=False)

    chunk = min(steps, max(1, tuning.current.backward_rows // batch))
    walks, projections = [], []
    for d in range(directions):
        dh = empty((1, batch, outputs), dtype)
        dh[0] = dstate[0][d]
        dstates = zeros((len(cell.states), 1, batch, padded), dtype)
        for k, final in enumerate(dstate[1:]):
            dstates[k, 0, :, :hidden] = final[d]
        filled = empty(gates * hidden * (inputs + outputs), dtype), empty(padded * gates, dtype)
        dgates = empty((chunk, batch, padded * gates), dtype)
        ih, hh, hr = tape.columns[d]
        plan = plans[d]._replace(by_batch=by_batch)
        walks.append(Backward(ih, hh, tape.tapes[d], *filled, dh, dstates, dgates, plan))
        if hr is not None:
            dprojected, dhidden = empty((steps, batch, outputs), dtype), empty((1, batch, hidden), dtype)
            projections.append(ProjectionBack(hr, dprojected, dhidden))

    dx = _begun_dx(x, directions)
    packed = gemm.outer_scratch(chunk * batch, hidden, gates, width, (inputs, outputs), dtype)
    scratch = packed, gemm.edges(at_most, dtype)
    projection = (projections[0], projections[-1]) if projected else None
    arguments = cell, x, dx, dy, tape.lengths, (walks[0], walks[-1]), projection, directions, *scratch
    key, work = (cell, dtype, projection is None), steps * batch * own[0].hh.size
    crew.run(sequence_backward.backward, key, arguments, at_most, work)

    grads = []
    for d, walk in enumerate(walks):
        dih, dhh = gemm.products_of(walk.dw, gates * hidden, (inputs, outputs))
        grad = {"weight_ih": dih, "weight_hh": dhh}
        if shape.bias:
            by_gate = walk.dbias.reshape(-1, gates, width).swapaxes(0, 1).reshape(gates, -1)
            grad["bias_ih"] = by_gate[:, :hidden].ravel()
            grad["bias_hh"] = grad["bias_ih"].copy()
        if projected:
            flat, through = projections[d].dprojected.reshape(-1), walk.tape.hidden.reshape(-1)
            right = [gemm.Rows(through, (0, hidden), hidden)]
            (grad["weight_hr"],), _ = gemm.outer(flat, (0, outputs), steps * batch, right, outputs)
        grads.append(grad)
    initial: tuple[np.ndarray, ...] = (np.stack([walk.dh[0] for walk in walks]),)
    for k in range(len(cell.states)):
        initial += (np.stack([walk.dstates[k, 0, :, :hidden] for walk in walks]),)
    return dx.reshape(x.shape), initial, grads


def _begun_dx(x: np.ndarray, directions: int) -> np.ndarray:
    """Flat: of zeros where two directions add to it, as they come to a step at different times."""
    return empty(x.size, x.dtype) if directions == 1 else zeros(x.size, x.dtype)


def tape_layout(shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    cell, steps, batch, padded = shape.cell, shape.steps, shape.batch, sizes_of(shape).padded
    of_direction = [
        (len(cell.states), steps + 1, batch, padded),
        (steps, batch, padded * cell.saved),
        (steps if shape.projected else 0, batch, shape.hidden),
    ]
    ys = (steps + 2, batch, shape.directions * shape.outputs)
    return [(sizes, shape.dtype.name) for sizes in (ys, *of_direction * shape.directions)]


def tape_arrays(tape: LayerTape) -> list[np.ndarray]:
    """See :class:`gpulstm_kernels.backend.Backend`. What the walk left unwritten is zero: no bits by chance."""
    steps, batch, n_saved = tape.shape.steps, tape.shape.batch, tape.shape.cell.saved
    _, hidden, outputs, width, _ = sizes_of(tape.shape)
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
    shape: LayerShape,
    x: np.ndarray,
    weights: Sequence[Mapping[str, np.ndarray]],
    lengths: np.ndarray | None,
    arrays: Sequence[np.ndarray],
) -> LayerTape:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    directions, hidden, outputs = shape.directions, shape.hidden, shape.outputs
    own = [_matrices(w) for w in weights]
    sizes = sizes_of(shape)
    return LayerTape(
        shape,
        x,
        np.full(shape.batch, shape.steps, np.int64) if lengths is None else lengths,
        own,
        [_packed_columns(own[d], _source(weights[d], True), sizes) for d in range(directions)],
        # The walk back decides anew how threads share it, and knows no chunks.
        [Plan(d == 1, d * outputs, True, False, 0, hidden, outputs) for d in range(directions)],
        [Tape(arrays[0], *arrays[1 + 3 * d : 4 + 3 * d]) for d in range(directions)],
    )


def describe(shape: LayerShape) -> str:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    packs = _packs(shape)
    rows = "packed into register tiles" if packs else "read in place (few rows)"
    if _is_one_step(shape, packs):
        walk, at_most, over, barriers = "one step", min(crew.size, _threads_of_a_step(shape)), "units", False
    else:
        (at_most, by_batch), walk = thread_split(shape, oversubscribed=crew.oversubscribed), "sequence walk"
        over, barriers = ("batch", False) if by_batch else ("units", True)
    split = f"{at_most} threads over the {over}" if at_most > 1 else "one thread"
    if at_most > 1 and barriers and crew.oversubscribed:
        split = "one thread (the cores are oversubscribed)"
    return f"{walk}, weights {rows}, {split}, {REGISTER_BYTES * 8}-bit vectors"


def stream(shape: LayerShape, layers: Sequence[Mapping[str, np.ndarray]]) -> Stream | None:
    """See :class:`gpulstm_kernels.backend.Backend`: for layers without a projection."""
    return None if shape.projected else Stream(shape, layers)


@functools.cache
def _nothing(dtype: np.dtype, dimensions: int = 2) -> np.ndarray:
    """In the place of an array that is not there."""
    return np.empty((0,) * dimensions, dtype)


def _matrices(weights: Mapping[str, np.ndarray]) -> Weights:
    return Weights(weights["weight_ih"], weights["weight_hh"], weights.get("weight_hr"))


def _packs(shape: LayerShape) -> bool:
    """Whether weights are read packed: all but those of float layers without a projection, for a few rows."""
    return shape.steps * shape.batch >= tuning.current.packs_from or shape.weights != shape.dtype or shape.projected


def _source(weights: Mapping[str, np.ndarray], whole: bool) -> Source:
    """What is packed of one direction: without ``whole`` neither ih nor hh."""
    return source_of(
        tuple([value for name, value in weights.items() if whole or name not in ("weight_ih", "weight_hh")])
    )


def _packed_rows(
    weights: Mapping[str, np.ndarray], source: Source, sizes: Sizes, dtype: np.dtype, packs: bool, wide: bool
) -> Packed:
    """What the forward walk reads of one direction: without ``packs`` neither ih nor hh; with ``wide`` as float32."""

    def pack() -> Packed:
        gates, width, nothing = sizes.gates, sizes.width, _nothing(dtype, 1)
        matrices = [weights[name] for name in ("weight_ih", "weight_hh")]
        if wide:
            matrices = [bfloat16.widened(matrix) for matrix in matrices]
        ih, hh = (layouts.rows(matrix, gates, width) if packs else nothing for matrix in matrices)
        bias = layouts.biases(weights, gates, width, dtype)
        scales = [weights.get(name) for name in ("scale_ih", "scale_hh")]
        in_panels = [nothing if scale is None else layouts.in_panels(scale, gates, width) for scale in scales]
        return Packed(ih, hh, bias, *in_panels)

    return cached(source, ("rows", packs, wide, sizes, dtype, *weights), pack)


def _packed_projection(weights: Mapping[str, np.ndarray], source: Source) -> np.ndarray:
    """What the forward walk reads of the projection of one direction."""
    hr = weights["weight_hr"]
    return cached(source, ("projection", *weights), lambda: (layouts.rows(hr, 1, WIDTH * lanes(hr.dtype)),))[0]


def _packed_columns(weights: Weights, source: Source, sizes: Sizes) -> Weights:
    """What the gradients read of one direction, flat."""

    def pack() -> Weights:
        ih, hh = (layouts.columns(weight, sizes.gates, sizes.width) for weight in weights[:2])
        return Weights(ih, hh, None if weights.hr is None else layouts.columns(weights.hr))

    return cached(source, ("columns", sizes), pack)
