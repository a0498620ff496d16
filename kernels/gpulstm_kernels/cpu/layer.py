"""The backend ``numba_cpu``: one layer, both directions, in float32 or float64; see :mod:`gpulstm_kernels.backend`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .. import bfloat16
from ..backend import NARROW, LayerShape
from ..cells import Cell
from ..memory import contiguous, empty, zeros
from . import gemm, staged_layer, tuning
from .codegen.features import REGISTER_BYTES
from .codegen.narrow import group, row_bytes
from .codegen.tile import WIDTH, panel_vectors
from .codegen.vector import lanes
from .crew.thread_pool import crew
from .packing import layouts
from .packing.cache import Source, cached, source_of
from .staged_layer import StagedTape
from .walks import sequence_backward, sequence_forward
from .walks.arguments import (
    Backward,
    Forward,
    Packed,
    Plan,
    Projection,
    ProjectionBack,
    Resets,
    Tape,
    Weights,
)
from .walks.few_rows import addresses_of, new_scratch
from .walks.single_step import step
from .walks.stream_steps import Stream


class LayerTape(NamedTuple):
    """What :func:`layer_forward` hands to :func:`layer_backward`."""

    shape: LayerShape
    x: np.ndarray
    lengths: np.ndarray
    inputs: np.ndarray
    resets: tuple[Resets, Resets] | None
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
    # Into how many blocks the walks forward and back cut the product of h. A panel of units must read h of one head
    # alone, and one of columns belong to one; else the matrix is multiplied with the zeros beside its blocks.
    blocks: int
    blocks_back: int


def sizes_of(shape: LayerShape) -> Sizes:
    """What the walks count in."""
    gates = len(shape.cell.preactivations)
    width = panel_vectors(gates) * lanes(shape.dtype)
    hidden, heads = shape.hidden, shape.heads
    own = hidden // heads
    blocks = heads if own % width == 0 and shape.weights == shape.dtype else 1
    blocks_back = heads if own % (WIDTH * lanes(shape.dtype)) == 0 else 1
    return Sizes(gates, hidden, shape.outputs, width, -(-hidden // width) * width, blocks, blocks_back)


def thread_split(shape: LayerShape, forward: bool = True, oversubscribed: bool = False) -> tuple[int, bool]:
    """How many threads at most a call takes, and whether each direction's threads split the batch (else the units).

    ``forward``: not backward; ``oversubscribed``: others want the cores too, so barriers cost more.
    """
    limits, batch = tuning.current, shape.batch
    read = shape.rows_of_x * shape.multiplied + (shape.rows_of_h + shape.projected * shape.hidden) * shape.outputs
    work = shape.steps * read * max(batch, limits.read_cost) * shape.directions
    at_most = max(1, min(crew.size, work // limits.layer_per_thread))
    team = max(1, at_most // shape.directions)
    can_share = -(-shape.hidden // (WIDTH * lanes(shape.dtype))) >= team
    shared_from = limits.shared_from if forward and batch < team * limits.shared_to else limits.always_shared_from
    large = shape.rows_of_h * shape.outputs * shape.weights.itemsize >= shared_from
    shares = batch < team * limits.split_from or (large and not oversubscribed)
    return at_most, not (can_share and shares)


def why_not(shape: LayerShape) -> str | None:
    """It computes any shape; narrow weights in inference alone."""
    if shape.cell.stages > 1 and shape.weights != shape.dtype:
        return f"it has no weights in {shape.weights} for a cell with stages"
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
    inputs: np.ndarray | None = None,
    resets: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...], LayerTape | StagedTape | None]:
    """See :class:`gpulstm_kernels.backend.Backend`. ``y`` is a view of the tape's ``ys``."""
    if shape.cell.stages > 1:
        return staged_layer.layer_forward(shape, x, state, weights, lengths, inputs, resets)
    if _is_one_step(shape):
        return (*_one_step(shape, x, state, weights, lengths, inputs, resets), None)
    packs = _packs(shape)
    cell, steps, batch = shape.cell, shape.steps, shape.batch
    dtype, directions, projected, training = shape.dtype, shape.directions, shape.projected, shape.training
    ih, hh = _matrices(shape, weights[0])
    sizes = sizes_of(shape)
    limits = tuning.current
    wide = shape.weights == NARROW["bf16"] and group(shape.weights) == 1 and batch >= limits.widened_from
    at_most, by_batch = thread_split(shape, oversubscribed=crew.oversubscribed)
    team = 1 if at_most < directions else at_most // directions
    rows = -(-batch // team) if by_batch else batch
    each_step = by_batch and rows >= limits.fused_from and ih.nbytes <= limits.fused_to
    if not packs or (each_step and cell.gates_of_h):
        chunk, gates = 0, (at_most, min(rows, limits.block_rows), sizes.gates * sizes.width)
    else:
        chunk = -(-steps // -(-steps * batch // max(batch, limits.chunk_rows)))
        gates = (sizes.padded // sizes.width, chunk * batch, sizes.gates * sizes.width)
    quantized_bytes = row_bytes(ih, shape.multiplied) * max(1, chunk) + row_bytes(hh, sizes.outputs)
    begins = None if resets is None else _resets(resets, at_most, sizes.outputs if cell.gates_of_h else 0, dtype)
    inputs = _nothing(dtype, 4) if inputs is None else inputs
    lengths = np.full(batch, steps, np.int64) if lengths is None else lengths

    ys = empty((steps + 2, batch, directions * sizes.outputs), dtype)
    walks, projections, columns = [], [], []
    for d in range(directions):
        plan = Plan(d == 1, d * sizes.outputs, training, by_batch, chunk, sizes.hidden, sizes.outputs, *sizes[-2:])
        source = _source(weights[d], packs or training)
        packed = _packed_rows(shape, weights[d], source, sizes, packs, wide)
        if training:
            columns.append(_packed_columns(shape, weights[d], source, sizes))
        tape = _begun_tape(cell, ys, [part[d] for part in state], steps, sizes, plan, projected)
        if projected:
            hr = _packed_projection(weights[d], source)
            projections.append(Projection(hr, gemm.edges(at_most, dtype)))
        quantized = empty((at_most, quantized_bytes * batch), np.uint8) if quantized_bytes else _nothing(np.uint8)
        walks.append(Forward(packed, tape, empty(gates, dtype), quantized, plan))

    unpacked = None if packs else tuple([_matrices(shape, weights[d]) for d in (0, -1)])
    projection = (projections[0], projections[-1]) if projected else None
    gates_given = _flag(shape.gates_given)
    arguments = cell, x, lengths, inputs, begins, (walks[0], walks[-1]), unpacked, projection, gates_given, directions
    work = 0 if by_batch else steps * batch * shape.rows_of_h * sizes.outputs
    key = cell, dtype, dtype if wide else ih.dtype, packs, projection is None, begins is None, gates_given is None
    crew.run(sequence_forward.forward, key, arguments, at_most, work)
    plans, tapes = [walk.plan for walk in walks], [walk.tape for walk in walks]
    final = _final_state(cell, plans, tapes, steps)
    return ys[1:-1], final, LayerTape(shape, x, lengths, inputs, begins, columns, plans, tapes) if training else None


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


def _is_one_step(shape: LayerShape) -> bool:
    """Whether a call is one step of few rows, which has a kernel of its own: of float weights, read in place."""
    few = shape.steps == 1 and shape.batch < tuning.current.packs_from
    return few and not shape.training and shape.weights == shape.dtype and not shape.projected and shape.heads == 1


def _one_step(
    shape: LayerShape,
    x: np.ndarray,
    state: tuple[np.ndarray, ...],
    weights: Sequence[Mapping[str, np.ndarray]],
    lengths: np.ndarray | None,
    inputs: np.ndarray | None,
    resets: np.ndarray | None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """``y`` and the final state of one step of few rows, without a projection."""
    cell, directions, batch, hidden = shape.cell, shape.directions, shape.batch, shape.hidden
    h = state[0]
    new_h = np.empty_like(h)
    states = np.empty((directions, len(state) - 1, batch, hidden), x.dtype)
    for k, part in enumerate(state[1:]):
        states[:, k] = part
    if resets is not None and resets.any():  # of the direction that runs forth: the other one begins here anyway
        h = h.copy()
        h[0, resets[0]], states[0, :, resets[0]] = 0, 0
    no_matrix, no_bias = _nothing(x.dtype), _nothing(x.dtype, 1)
    at_most, given = _threads_of_a_step(shape), None
    for d, own in enumerate(weights):
        ih, hh = own.get("weight_ih", no_matrix), own.get("weight_hh", no_matrix)
        of_x = contiguous(x[0, :, shape.given_columns(d)]) if shape.gates_given else x[0]
        read = ih, hh, own.get("bias_ih", no_bias), own.get("bias_hh", no_bias)
        if cell.given:
            given = addresses_of(cell, own), _nothing(x.dtype, 3) if inputs is None else inputs[:, 0]
        written = states[d], new_h[d], given, new_scratch(cell, at_most), np.zeros(1, np.int64)
        crew.run(step, (cell, x.dtype), (cell, of_x, h[d], read, *written), at_most)
    if lengths is not None and not lengths.all():  # the state of a sequence of no steps stays
        for new, before in zip((new_h, *states.swapaxes(0, 1)), state, strict=True):
            new[:, lengths == 0] = before[:, lengths == 0]
    y = np.concatenate(new_h, axis=1)[None]  # a copy, whatever the sizes: y and h share no memory
    return y, (new_h, *(states[:, k] for k in range(len(state) - 1)))


def _threads_of_a_step(shape: LayerShape) -> int:
    """How many threads at most share the weights of a step's direction."""
    read = shape.rows_of_x * shape.multiplied + shape.rows_of_h * shape.outputs
    return max(1, read // tuning.current.step_per_thread)


def layer_backward(
    tape: LayerTape | StagedTape, dy: np.ndarray, dstate: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...], list[dict[str, np.ndarray]]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    if isinstance(tape, StagedTape):
        return staged_layer.layer_backward(tape, dy, dstate)
    shape, x, plans, resets = tape.shape, tape.x, tape.plans, tape.resets
    cell, steps, batch, features = shape.cell, shape.steps, shape.batch, shape.multiplied
    dtype, directions, projected = shape.dtype, shape.directions, shape.projected
    gates, hidden, outputs, width, padded, *_ = sizes_of(shape)
    at_most, by_batch = thread_split(shape, forward=False)

    chunk = min(steps, max(1, tuning.current.backward_rows // batch))
    walks, projections = [], []
    for d in range(directions):
        dh = empty((1, batch, outputs), dtype)
        dh[0] = dstate[0][d]
        dstates = zeros((len(cell.states), 1, batch, padded), dtype)
        for k, final in enumerate(dstate[1:]):
            dstates[k, 0, :, :hidden] = final[d]
        dw = empty(shape.rows_of_x * features + shape.rows_of_h * outputs, dtype)
        dparams, dinputs = _begun_dparams(shape), _begun_dinputs(shape, tape.inputs)
        dgates = empty((chunk, batch, padded * gates), dtype)
        ih, hh, hr, params = tape.columns[d]
        plan = plans[d]._replace(by_batch=by_batch)
        filled = dw, empty(padded * gates, dtype), dparams, dinputs
        walks.append(Backward(ih, hh, params, tape.tapes[d], *filled, dh, dstates, dgates, plan))
        if hr is not None:
            dprojected, dhidden = empty((steps, batch, outputs), dtype), empty((1, batch, hidden), dtype)
            projections.append(ProjectionBack(hr, dprojected, dhidden))

    dx = _begun_dx(x, shape)
    packed = gemm.outer_scratch(chunk * batch, hidden, gates, width, (features, outputs), dtype)
    scratch = packed, gemm.edges(at_most, dtype)
    projection = (projections[0], projections[-1]) if projected else None
    given = tape.lengths, tape.inputs, resets
    blocks = plans[0].blocks_back if plans[0].blocks_back > 1 else None
    gates_given = _flag(shape.gates_given)
    arguments = cell, x, dx, dy, *given, (walks[0], walks[-1]), projection, blocks, gates_given, directions, *scratch
    key = cell, dtype, projection is None, resets is None, blocks is None, gates_given is None
    work = steps * batch * shape.rows * outputs
    crew.run(sequence_backward.backward, key, arguments, at_most, work)

    grads = []
    for d, walk in enumerate(walks):
        dih, dhh = gemm.products_of(walk.dw, [(shape.rows_of_x, features), (shape.rows_of_h, outputs)])
        grad = {} if shape.gates_given else {"weight_ih": dih}
        if cell.gates_of_h:
            grad["weight_hh"] = dhh if shape.heads == 1 else layouts.blocks_of(dhh, shape.heads)
        if shape.bias:
            grad |= _bias_gradients(cell, walk.dbias, hidden, width)
        for k, name in enumerate(cell.params):
            grad[name] = walk.dparams[:, k, :hidden].sum(axis=0)
        if cell.differentiable:
            grad |= _input_gradients(tape, walk.dinputs)
        if projected:
            flat, through = projections[d].dprojected.reshape(-1), walk.tape.hidden.reshape(-1)
            right = [gemm.Rows(through, (0, hidden), hidden)]
            (grad["weight_hr"],), _ = gemm.outer(flat, (0, outputs), steps * batch, right, outputs)
        grads.append(grad)
    initial: tuple[np.ndarray, ...] = (np.stack([walk.dh[0] for walk in walks]),)
    for k in range(len(cell.states)):
        initial += (np.stack([walk.dstates[k, 0, :, :hidden] for walk in walks]),)
    return dx.reshape(x.shape), initial, grads


def _bias_gradients(cell: Cell, sums: np.ndarray, hidden: int, width: int) -> dict[str, np.ndarray]:
    """Those of both biases, from the ``sums`` of the gates' gradients, as :func:`.gemm.outer_rows` leaves them."""
    padded, by_gate = sums.size // len(cell.preactivations), []
    for gates in (cell.x_gates, cell.gates, cell.h_gates):
        if count := len(gates):
            part, sums = sums[: count * padded], sums[count * padded :]
            by_gate.append(part.reshape(-1, count, width).swapaxes(0, 1).reshape(count, -1)[:, :hidden])
    total = by_gate[0] if len(by_gate) == 1 else np.concatenate(by_gate)
    of_x_alone, of_x = len(cell.x_gates), len(cell.gates_of_x)
    # Rows of the layer begin with the gates of both products.
    of_ih = np.roll(total[:of_x], -of_x_alone, axis=0) if of_x_alone else total[:of_x]
    grads = {"bias_ih": of_ih.flatten()}
    if cell.gates_of_h:
        grads["bias_hh"] = total[of_x_alone:].flatten()
    return grads


def _begun_dparams(shape: LayerShape) -> np.ndarray:
    """For the gradients of parameters, which each row of the batch adds to: (B, K, Hp)."""
    if not shape.cell.params:
        return _nothing(shape.dtype, 3)
    return zeros((shape.batch, len(shape.cell.params), sizes_of(shape).padded), shape.dtype)


def _begun_dinputs(shape: LayerShape, inputs: np.ndarray) -> np.ndarray:
    """For the gradients of inputs, as the walk writes them: (·, T, B, H), or (·, Hp/U, T, B) where units share one."""
    sizes, count = sizes_of(shape), len(shape.cell.differentiable)
    if not count:
        return _nothing(shape.dtype, 4)
    if inputs.shape[3] == 1:
        return empty((count, sizes.padded // sizes.width, shape.steps, shape.batch), shape.dtype)
    return empty((count, shape.steps, shape.batch, shape.hidden), shape.dtype)


def _input_gradients(tape: LayerTape, dinputs: np.ndarray) -> dict[str, np.ndarray]:
    """Those of one direction, (T, B, W) each, zero in masked steps, from what the walk wrote."""
    shared, steps = tape.inputs.shape[3] == 1, tape.shape.steps
    masked = np.arange(steps)[:, None] >= tape.lengths if tape.lengths.min(initial=steps) < steps else None
    grads = {}
    for k, name in enumerate(tape.shape.cell.differentiable):
        gradient = dinputs[k].sum(axis=0)[:, :, None] if shared else dinputs[k]
        if masked is not None:
            gradient[masked] = 0
        grads[f"inputs.{name}"] = gradient
    return grads


def _resets(resets: np.ndarray, threads: int, outputs: int, dtype: np.dtype) -> tuple[Resets, Resets]:
    """Those of both directions; one that runs back begins anew where the other one will."""
    forward = resets.astype(np.uint8)
    back = np.zeros_like(forward)
    back[:-1] = forward[1:]
    size = threads, resets.shape[1] * outputs
    return Resets(forward, empty(size, dtype)), Resets(back, empty(size, dtype))


def _flag(there: bool) -> int | None:
    """What kernels are compiled with or without: a number, or None."""
    return 1 if there else None


def _begun_dx(x: np.ndarray, shape: LayerShape) -> np.ndarray:
    """Flat: of zeros where two directions add to it, as they come to a step at different times."""
    adds = shape.directions == 2 and not shape.gates_given
    return zeros(x.size, x.dtype) if adds else empty(x.size, x.dtype)


def tape_layout(shape: LayerShape) -> list[tuple[tuple[int, ...], str]]:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    if shape.cell.stages > 1:
        return staged_layer.tape_layout(shape)
    cell, steps, batch, padded = shape.cell, shape.steps, shape.batch, sizes_of(shape).padded
    of_direction = [
        (len(cell.states), steps + 1, batch, padded),
        (steps, batch, padded * cell.saved),
        (steps if shape.projected else 0, batch, shape.hidden),
    ]
    ys = (steps + 2, batch, shape.directions * shape.outputs)
    return [(sizes, shape.dtype.name) for sizes in (ys, *of_direction * shape.directions)]


def tape_arrays(tape: LayerTape | StagedTape) -> list[np.ndarray]:
    """See :class:`gpulstm_kernels.backend.Backend`. What the walk left unwritten is zero: no bits by chance."""
    if isinstance(tape, StagedTape):
        return staged_layer.tape_arrays(tape)
    steps, batch, n_saved = tape.shape.steps, tape.shape.batch, tape.shape.cell.saved
    _, hidden, outputs, width, *_ = sizes_of(tape.shape)
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
    inputs: np.ndarray | None = None,
    resets: np.ndarray | None = None,
) -> LayerTape | StagedTape:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    if shape.cell.stages > 1:
        return staged_layer.tape_of(shape, x, weights, lengths, arrays, inputs, resets)
    directions, hidden, outputs = shape.directions, shape.hidden, shape.outputs
    dtype, sizes = shape.dtype, sizes_of(shape)
    return LayerTape(
        shape,
        x,
        np.full(shape.batch, shape.steps, np.int64) if lengths is None else lengths,
        _nothing(dtype, 4) if inputs is None else inputs,
        None if resets is None else _resets(resets, 0, 0, dtype),
        [_packed_columns(shape, weights[d], _source(weights[d], True), sizes) for d in range(directions)],
        # The walk back decides anew how threads share it, and knows no chunks.
        [Plan(d == 1, d * outputs, True, False, 0, hidden, outputs, *sizes[-2:]) for d in range(directions)],
        [Tape(arrays[0], *arrays[1 + 3 * d : 4 + 3 * d]) for d in range(directions)],
    )


def describe(shape: LayerShape) -> str:
    """See :class:`gpulstm_kernels.backend.Backend`."""
    if shape.cell.stages > 1:
        return staged_layer.describe(shape)
    one_step = _is_one_step(shape)
    rows = "packed into register tiles" if _packs(shape) and not one_step else "read in place (few rows)"
    if one_step:
        walk, at_most, over, barriers = "one step", min(crew.size, _threads_of_a_step(shape)), "units", False
    else:
        (at_most, by_batch), walk = thread_split(shape, oversubscribed=crew.oversubscribed), "sequence walk"
        over, barriers = ("batch", False) if by_batch else ("units", shape.rows_of_h > 0)
    split = f"{at_most} threads over the {over}" if at_most > 1 else "one thread"
    if at_most > 1 and barriers and crew.oversubscribed:
        split = "one thread (the cores are oversubscribed)"
    return f"{walk}, weights {rows}, {split}, {REGISTER_BYTES * 8}-bit vectors"


def stream(shape: LayerShape, layers: Sequence[Mapping[str, np.ndarray]]) -> Stream | None:
    """See :class:`gpulstm_kernels.backend.Backend`: for layers without a projection."""
    return None if shape.projected or shape.cell.stages > 1 or shape.heads > 1 else Stream(shape, layers)


@functools.cache
def _nothing(dtype: np.dtype, dimensions: int = 2) -> np.ndarray:
    """In the place of an array that is not there."""
    return np.empty((0,) * dimensions, dtype)


def _matrices(shape: LayerShape, weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``weight_ih`` and ``weight_hh`` of one direction; one that it has not is empty."""
    nothing = _nothing(shape.weights)
    return weights.get("weight_ih", nothing), weights.get("weight_hh", nothing)


def _packs(shape: LayerShape) -> bool:
    """Whether weights are read packed: all but those of float layers without a projection or heads, for a few rows."""
    many = shape.steps * shape.batch >= tuning.current.packs_from
    return many or shape.weights != shape.dtype or shape.projected or shape.heads > 1


def _source(weights: Mapping[str, np.ndarray], whole: bool) -> Source:
    """What is packed of one direction: without ``whole`` neither ih nor hh."""
    return source_of(
        tuple([value for name, value in weights.items() if whole or name not in ("weight_ih", "weight_hh")])
    )


def _packed_rows(
    shape: LayerShape, weights: Mapping[str, np.ndarray], source: Source, sizes: Sizes, packs: bool, wide: bool
) -> Packed:
    """What the forward walk reads of one direction: without ``packs`` neither ih nor hh; with ``wide`` as float32."""
    cell, dtype = shape.cell, shape.dtype

    def pack() -> Packed:
        width, nothing = sizes.width, _nothing(dtype, 1)
        # What rows of the weights a product gives, and how many of the last ones come first in a panel.
        runs = {"ih": (len(cell.gates_of_x), len(cell.x_gates)), "hh": (len(cell.gates_of_h), 0)}
        matrices, scales = [], []
        for name, (gates, turn) in runs.items():
            matrix, scale = weights.get(f"weight_{name}"), weights.get(f"scale_{name}")
            if matrix is not None and matrix.ndim == 3:  # of heads
                matrix = layouts.compact(matrix) if sizes.blocks > 1 else layouts.whole(matrix)
                scale = None if scale is None else layouts.by_gate(scale, gates)
            if matrix is not None and wide:
                matrix = bfloat16.widened(matrix)
            if not packs:
                matrices.append(nothing)
            elif matrix is None:
                matrices.append(_nothing(dtype if wide else shape.weights, 1))
            else:
                matrices.append(layouts.rows(matrix, gates, width, turn))
            scales.append(nothing if scale is None else layouts.in_panels(scale, gates, width, turn))
        bias = layouts.biases(cell, weights, sizes.hidden, width, dtype)
        params = layouts.params(cell, weights, sizes.padded, dtype)
        return Packed(matrices[0], matrices[1], bias, scales[0], scales[1], params)

    return cached(source, ("rows", packs, wide, sizes, _order_of(cell), dtype, *weights), pack)


def _order_of(cell: Cell) -> tuple[object, ...]:
    """What the order of a cell's packed weights follows from, beside their sizes."""
    return len(cell.x_gates), len(cell.gates), len(cell.h_gates), cell.params


def _packed_projection(weights: Mapping[str, np.ndarray], source: Source) -> np.ndarray:
    """What the forward walk reads of the projection of one direction."""
    hr = weights["weight_hr"]
    return cached(source, ("projection", *weights), lambda: (layouts.rows(hr, 1, WIDTH * lanes(hr.dtype)),))[0]


def _packed_columns(shape: LayerShape, weights: Mapping[str, np.ndarray], source: Source, sizes: Sizes) -> Weights:
    """What the gradients read of one direction, flat."""
    cell, dtype = shape.cell, shape.dtype

    def pack() -> Weights:
        width, ih = sizes.width, weights.get("weight_ih")
        hh, hr = weights.get("weight_hh"), weights.get("weight_hr")
        x, both, h = len(cell.x_gates), len(cell.gates), len(cell.h_gates)

        def _columns_of_hh(hh: np.ndarray) -> np.ndarray:
            if hh.ndim == 3 and sizes.blocks_back > 1:
                return layouts.blocks(hh, both, width)
            return layouts.columns(layouts.whole(hh) if hh.ndim == 3 else hh, width, ((0, both), (both, h)))

        return Weights(
            _nothing(dtype, 1) if ih is None else layouts.columns(ih, width, ((both, x), (0, both))),
            _nothing(dtype, 1) if hh is None else _columns_of_hh(hh),
            None if hr is None else layouts.columns(hr),
            layouts.params(cell, weights, sizes.padded, dtype),
        )

    return cached(source, ("columns", sizes, _order_of(cell), dtype, *weights), pack)
