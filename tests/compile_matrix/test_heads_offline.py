"""The walks with heads, compiled to machine code, at the most units of a head that the persistent ones are planned for.

``-s`` prints the registers that each kernel needs.
"""

from __future__ import annotations

import itertools

import device_cells
import pytest
import shipped
from shipped import Matrix, compiled

from gpulstm import cells
from gpulstm_kernels.cells import Cell
from gpulstm_kernels.cuda.walks.step import host as step_host

pytestmark = pytest.mark.compile_matrix

CAPABILITIES = (80, 90)
CELLS = [*map(cells.get, ("lstm", "gru", "slstm")), device_cells.all_parts]
HEADS = 3  # no power of two: then a direction is found by more than a shift
WALKS = ("step", *shipped.PERSISTENT)


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    wanted: shipped.Wanted = {capability: {} for capability in CAPABILITIES}
    for capability, found in wanted.items():
        for cell, dtype, training in itertools.product(CELLS, ("float32", "float16"), (False, True)):
            for units in (5, 8):
                p = shipped.shape_of(cell, dtype, False, training, units * HEADS)._replace(heads=HEADS, resets=training)
                found.update(shipped.step_kernels(p))
            p = shipped.shape_of(cell, dtype, False, training, shipped.LARGEST)._replace(heads=HEADS)
            for walk, backward in itertools.product(shipped.PERSISTENT, (False, True)[: 1 + training]):
                found.update(shipped.largest(walk, p, backward, shipped.device(capability)))
    return compiled(wanted)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_nothing_spills_at_the_largest_sizes(matrix: Matrix, cell: Cell, capability: int) -> None:
    shipped.check_room(matrix, capability, cell, WALKS)


@pytest.mark.parametrize("cell", [cells.get("gru_reset_before"), device_cells.staged], ids=lambda cell: cell.name)
def test_cells_with_stages_have_no_kernels_of_heads(cell: Cell) -> None:
    """Those of one head serve, which are compiled beside the other cells'."""
    for training in (False, True):
        one = shipped.shape_of(cell, "float32", False, training, 24)._replace(resets=True)
        assert step_host.kernels(one._replace(heads=HEADS)) == step_host.kernels(one)
