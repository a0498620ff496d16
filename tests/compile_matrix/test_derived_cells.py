"""Cells in the language, compiled to machine code: no dearer than by hand, and none that a kernel has no room for.

``-s`` prints the registers that each needs, and the cycles that its instructions stall for.
"""

from __future__ import annotations

import itertools

import device_cells
import lstm_by_hand
import pytest
import rnn_by_hand
import shipped
from shipped import Launch, Matrix, compiled, resident

from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.source import expression
from gpulstm_kernels.cuda.walks.step import host as step_host
from gpulstm_kernels.language.derive import COSTS
from gpulstm_kernels.language.graph import ordered

pytestmark = pytest.mark.compile_matrix

BY_HAND = {
    cells.get("lstm"): Cell("lstm_by_hand", ("i", "f", "g", "o"), ("c",), 4, lstm_by_hand.__name__),
    cells.get("rnn"): Cell("rnn_by_hand", ("a",), (), 0, rnn_by_hand.__name__),
}
OF_GPULSTM = [value for value in map(cells.__dict__.get, cells.__all__) if isinstance(value, Cell)]
OTHERS = [  # than those that test_nvrtc.py compiles for all architectures
    *(value for value in OF_GPULSTM if value not in BY_HAND),
    device_cells.every_operator,
    device_cells.all_parts,
    device_cells.scanned,
    device_cells.staged,
]
# Of cells with more than gates and states the persistent walks, which take long to compile, are tried with two.
STEPS_ONLY = {value for value in OTHERS if value.x_gates or value.given} - {cells.get("gru"), cells.get("time_gap")}
STEPS_ONLY |= {value for value in OTHERS if value.stages > 1}
COMPARED, ENDS = (80, 90), (75, 120)  # compute capabilities: where cells are compared, and the oldest and newest
WALKS = {"step": step_host, **shipped.PERSISTENT}
# Hidden sizes, at most: one and four units a thread; the largest slice of weights of a block; a small one of the grid's
# blocks and the largest.
SIZES = {"step": (5, 8), "block": (128,), "grid": (128, shipped.LARGEST)}
CLOSE_STALL = 1.02  # times; measured: at most 1.002
CLOSE = 8  # registers: what ptxas gives or takes for the order of a sum; where no fewer blocks fit, it costs nothing


def launches(cell: Cell, dtype: str, capability: int) -> dict[Kernel, Launch]:
    """The kernels of a cell in every walk, forward of inference and training, and backward."""
    found, on = {}, shipped.device(capability)
    for walk, training in itertools.product(_walks(cell), (False, True)):
        for hidden in SIZES[walk]:
            p = shipped.shape_of(cell, dtype, False, training, hidden)
            if walk == "step":
                found.update(shipped.step_kernels(p))
                if training and cell not in {*BY_HAND, *BY_HAND.values()}:
                    found.update(shipped.step_kernels(p._replace(resets=True)))
                continue
            for backward in (False, True)[: 1 + training]:
                found.update(shipped.largest(walk, p, backward, on))
    return found


def _walks(cell: Cell) -> tuple[str, ...]:
    return ("step",) if cell in STEPS_ONLY else tuple(WALKS)


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    wanted: shipped.Wanted = {capability: {} for capability in (*COMPARED, *ENDS)}
    for capability in COMPARED:
        for cell in (*BY_HAND, *BY_HAND.values()):
            for dtype in ("float32", "float16"):
                wanted[capability] |= launches(cell, dtype, capability)
    for capability in ENDS:
        for cell in OTHERS:
            wanted[capability] |= launches(cell, "float32", capability)
    return compiled(wanted)


def test_a_cell_of_the_test_has_every_operator() -> None:
    d = device_cells.every_operator.derivation
    assert {value.operator for value in ordered([d.h, *d.new])} >= COSTS.keys()


@pytest.mark.parametrize("capability", COMPARED)
@pytest.mark.parametrize("cell", BY_HAND, ids=lambda cell: cell.name)
def test_a_derived_cell_needs_no_more_than_by_hand(matrix: Matrix, cell: Cell, capability: int) -> None:
    assert cell.saved == BY_HAND[cell].saved
    dearer = []
    print(
        f"\nsm_{capability}: registers, bytes spilled, blocks a multiprocessor and cycles stalled, derived and by hand"
    )
    for kernel, (launch, built) in matrix[capability].items():
        if kernel.cell != cell:
            continue
        other = Kernel(
            kernel.source, kernel.name, tuple(BY_HAND[cell] if part == cell else part for part in kernel.arguments)
        )
        same_launch, by_hand = matrix[capability][other]
        assert same_launch == launch
        blocks, blocks_by_hand = resident(capability, launch, built), resident(capability, launch, by_hand)
        line = (
            f"{built.registers:4} {by_hand.registers:4}   {built.spills:2} {by_hand.spills:2}   "
            f"{blocks:2} {blocks_by_hand:2}   {built.stall:5} {by_hand.stall:5}   {expression(kernel)}"
        )
        print(line)
        assert by_hand.stall, "install requirements-cuda.txt: nvdisasm is missing"
        more_registers = blocks < blocks_by_hand or built.registers > by_hand.registers + CLOSE
        if built.spills > by_hand.spills or more_registers or built.stall > CLOSE_STALL * by_hand.stall:
            dearer.append(line)
    assert not dearer, "\n".join(dearer)


@pytest.mark.parametrize("capability", ENDS)
@pytest.mark.parametrize("cell", OTHERS, ids=lambda cell: cell.name)
def test_every_walk_has_room_for_any_cell(matrix: Matrix, cell: Cell, capability: int) -> None:
    walks = ("staged",) if cell.stages > 1 else _walks(cell) if cell.gates_of_h else ("scan",)
    shipped.check_room(matrix, capability, cell, walks)
