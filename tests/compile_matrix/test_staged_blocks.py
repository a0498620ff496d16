"""The block walk of cells with stages, at the largest sizes that it is planned for.

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

pytestmark = pytest.mark.compile_matrix

CAPABILITIES = (75, 90, 100, 120)
NAMES = ("gru_reset_before", "layer_norm_gru", "layer_norm_lstm", "layer_norm_lstm_by_gate", "multiplicative_lstm")
KINDS = [("float32", False), ("float32", True), ("float16", False)]
CELLS = [*map(cells.get, NAMES), device_cells.staged]

IN_TF32 = CELLS[:1] + CELLS[3:4]  # the others take registers as in half types


@pytest.fixture(scope="module", params=CAPABILITIES)
def matrix(request: pytest.FixtureRequest) -> Matrix:
    found, on = {}, shipped.device(request.param)
    for cell, (dtype, tf32), backward in itertools.product(CELLS, KINDS, (False, True)):
        if tf32 and cell not in IN_TF32:
            continue
        p = shipped.shape_of(cell, dtype, tf32, True, 256)._replace(resets=True)
        found.update(shipped.largest("block", p, backward, on))
    return compiled({request.param: found})


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_nothing_spills_at_the_largest_sizes(matrix: Matrix, cell: Cell) -> None:
    (capability,) = matrix
    shipped.check_room(matrix, capability, cell, ("block_staged",))
