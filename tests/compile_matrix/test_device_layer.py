"""Every name of device.cuh, and of what cells are written in, compiles for every architecture that has it: not only
those that kernels use today.
"""

from __future__ import annotations

from pathlib import Path

import offline
import pytest

from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.source import source_text

pytestmark = pytest.mark.compile_matrix

KERNELS = Path(__file__).parents[1] / "cuda"
PRIMITIVES = (
    *(f"{name}<{half}>" for name in ("product_of_halves", "convert") for half in ("__half", "__nv_bfloat16")),
    *("product_of_tf32<true>", "product_of_tf32<false>", "round_to_tf32"),
    *("activations<float>", "activations<double>"),
    *(f"shuffles<{number}>" for number in ("float", "double", "int", "unsigned long long")),
    *("copies<4>", "copies<8>", "copies<16>", "named_barriers", "ring_of_blocks", "places"),
)
CLUSTERS = ("ring_of_cluster", "sums_by_mbarrier")


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 120])
def test_primitives_compile(capability: int) -> None:
    built = offline.build(offline.Job(source_text(Kernel(str(KERNELS / "primitives"), "")), PRIMITIVES, capability))
    assert built.keys() == set(PRIMITIVES)
    if capability >= 90:
        source = source_text(Kernel(str(KERNELS / "clusters"), ""))
        assert offline.build(offline.Job(source, CLUSTERS, capability)).keys() == set(CLUSTERS)
