"""A host for the kernels of the block walk: tiles of two sequences, a warp a block."""

from __future__ import annotations

from typing import Any

from gpulstm_kernels.cuda.compile import struct_name, type_name
from gpulstm_kernels.cuda.problem import Buffers, Problem
from gpulstm_kernels.cuda.runtime import Kernel

_TILE = 2
_BLOCK = (32, 1, 1)


def forward(runtime: Any, p: Problem, b: Buffers) -> None:
    keep = "true" if p.keep else "false"
    kernel = Kernel("block", f"block_forward<{type_name(p.dtype)}, {struct_name(p.cell)}, {keep}>", p.cell)
    arrays = (b.gates, b.bias, b.weight_hh, b.lengths, b.ys, b.states, b.saved)
    sizes = (p.steps, p.batch, p.hidden, p.directions, int(b.bias is not None), int(p.ragged))
    shared = 2 * _TILE * p.hidden * p.accumulate.itemsize
    runtime.launch(kernel, _grid(p), _BLOCK, (*arrays, *sizes), shared=shared)


def backward(runtime: Any, p: Problem, b: Buffers) -> None:
    kernel = Kernel("block", f"block_backward<{type_name(p.dtype)}, {struct_name(p.cell)}>", p.cell)
    arrays = (b.dy, b.dh, b.dstates, b.saved, b.states, b.ys, b.weight_hh, b.lengths, b.dgates)
    sizes = (p.steps, p.batch, p.hidden, p.directions, int(p.ragged))
    shared = _TILE * len(p.cell.gates) * p.hidden * p.accumulate.itemsize
    runtime.launch(kernel, _grid(p), _BLOCK, (*arrays, *sizes), shared=shared)


def _grid(p: Problem) -> tuple[int, int, int]:
    return (-(-p.batch // _TILE), 1, p.directions)
