"""The persistent walks of cells that need more than an LSTM, at the largest sizes that they are planned for.

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

CAPABILITIES = (80, 90)
NAMES = ("gru", "peephole", "time_gap", "zoneout", "slstm", "recurrent_dropout")
CELLS = [*map(cells.get, NAMES), device_cells.all_parts, device_cells.nine_gates]
RESETS = [cells.get("lstm"), cells.get("gru"), cells.get("time_gap")]  # whose kernels for them are compiled too
HALF = [cells.get("gru"), cells.get("time_gap"), device_cells.all_parts]  # and whose kernels in half types


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    wanted: shipped.Wanted = {}
    for capability in CAPABILITIES:
        found = wanted[capability] = {}
        for group, dtype, resets in ((CELLS, "float32", False), (RESETS, "float32", True), (HALF, "float16", False)):
            for cell, walk, training in itertools.product(group, shipped.PERSISTENT, (False, True)):
                p = shipped.shape_of(cell, dtype, False, training, shipped.LARGEST)._replace(resets=resets)
                for backward in (False, True)[: 1 + training]:
                    found.update(shipped.largest(walk, p, backward, shipped.device(capability)))
    return compiled(wanted)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("cell", [*CELLS, *RESETS[:1]], ids=lambda cell: cell.name)
def test_nothing_spills_at_the_largest_sizes(matrix: Matrix, cell: Cell, capability: int) -> None:
    shipped.check_room(matrix, capability, cell, shipped.PERSISTENT)
