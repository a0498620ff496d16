"""The benchmark's probes, compiled for what they are meant for: clusters exist from compute capability 9.0 on."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench.gpu
from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.source import source_text

pytestmark = pytest.mark.compile_matrix


@pytest.mark.parametrize(("architecture", "clusters"), [("sm_80", ()), ("sm_90", (2, 8, 16)), ("sm_120", (2, 8, 16))])
def test_probes_compile(architecture: str, clusters: tuple[int, ...]) -> None:
    import nvidia
    from cuda.core import Program, ProgramOptions

    names = ["empty", "barriers"]
    names += [f"{name}<{size}>" for name in ("cluster_barriers", "ring", "chase") for size in clusters]
    source = source_text(Kernel(str(Path(bench.gpu.__file__).parent / "probes"), "empty"))
    folders = [str(Path(root) / "cu13" / "include") for root in nvidia.__path__]
    options = ProgramOptions(arch=architecture, std="c++17", include_path=folders)
    code = Program(source, "c++", options).compile("cubin", name_expressions=names).code
    assert bytes(code).startswith(b"\x7fELF")
