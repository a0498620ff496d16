"""Every CUDA C++ kernel, compiled to machine code for every architecture without a device or a driver.

``-s`` prints what each needs. GPULSTM_COMPILE_ALL=1 compiles all sizes of the grid walk for all architectures, which
takes about twice as long; else it does so for two, and for the others compiles those that need most registers.
"""

from __future__ import annotations

import os
import re

import numpy as np
import offline
import pytest
import shipped
from shipped import Matrix, compiled, resident

from gpulstm_kernels.cuda.device.source import expression

pytestmark = pytest.mark.compile_matrix

CAPABILITIES = [75, 80, 86, 89, 90, 100, 120]
THOROUGH = CAPABILITIES if os.environ.get("GPULSTM_COMPILE_ALL") else [90, 100]  # on 100 a smaller slice may need more
DOUBLE = np.dtype(np.float64)
SAVED = 64  # bytes that ptxas may put aside around its subroutines for float64, in kernels that have no loop over time
# the matrix instruction of a kind of product: half of k at a time on Turing
TENSOR = {
    "float16": r"HMMA\.1688\.F32$|HMMA\.16816\.F32$",
    "bfloat16": r"HMMA\.16816\.F32\.BF16$",
    "tf32": r"HMMA\.1688\.F32\.TF32$",
}


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return compiled({capability: shipped.kernels(capability, capability in THOROUGH) for capability in CAPABILITIES})


def test_every_kernel_is_in_the_matrix(matrix: Matrix) -> None:
    for capability in CAPABILITIES:
        compiled = {(kernel.source, kernel.name) for kernel in matrix[capability]}
        assert compiled == shipped.defined()


def test_every_rule_of_an_optimizer_is_in_the_matrix() -> None:
    text = (shipped.FOLDER / "kernels" / "optimizer.cu").read_text(encoding="utf-8")
    _, rules = shipped.ELEMENTWISE["kernels/optimizer"]["update"]
    assert re.findall(r"^struct (\w+)", text, re.MULTILINE) == list(rules)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nothing_spills(matrix: Matrix, capability: int) -> None:
    spilled = {}
    for kernel, (launch, built) in matrix[capability].items():
        if built.spills > (SAVED if launch.kind is None and DOUBLE in kernel.arguments else 0):
            spilled[expression(kernel)] = built
    assert not spilled


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_block_can_be_resident(matrix: Matrix, capability: int) -> None:
    """The grid walk counts on one block a multiprocessor; where there is room for none, any launch fails."""
    for kernel, (launch, built) in matrix[capability].items():
        assert resident(capability, launch, built) >= 1, f"{expression(kernel)}: {launch} {built}"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tensor_cores_where_they_are_claimed_and_nowhere_else(matrix: Matrix, capability: int) -> None:
    assert offline.disassembler() is not None, "install requirements-cuda.txt: nvdisasm is missing"
    claimed = set()
    for kernel, (launch, built) in matrix[capability].items():
        assert built.tensor is not None
        if launch.kind in TENSOR:
            claimed.add(launch.kind)
            assert built.tensor, expression(kernel)
            for instruction in built.tensor:
                assert re.match(TENSOR[launch.kind], instruction), f"{expression(kernel)}: {instruction}"
        else:
            assert not built.tensor, f"{expression(kernel)}: {built.tensor}"
    assert claimed == ({"float16"} if capability < 80 else set(TENSOR))


def test_table(matrix: Matrix) -> None:
    """Registers by architecture; of sm_90 static shared memory, the share of threads resident, and cycles stalled."""
    print(f"\n{'registers':>{5 * len(CAPABILITIES)}} shared occupancy stall")
    print("".join(f"{capability:5}" for capability in CAPABILITIES))
    for kernel, (launch, built) in sorted(matrix[90].items(), key=lambda item: (item[0].source, expression(item[0]))):
        cells = (matrix[capability].get(kernel) for capability in CAPABILITIES)
        registers = "".join(f"{cell[1].registers:5}" if cell else "    -" for cell in cells)
        occupancy = resident(90, launch, built) * launch.threads / shipped.device(90).threads_per_multiprocessor
        print(f"{registers} {built.shared:6} {occupancy:9.0%} {built.stall:5}  {expression(kernel)}")
