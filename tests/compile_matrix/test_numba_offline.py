"""Every Numba kernel, compiled to machine code for every architecture without a device or a driver.

``-s`` prints the registers that each needs. Not in Numba's simulator, where there is nothing to compile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from gpulstm import cells
from gpulstm_kernels.cuda.device.runtime import Kernel

pytestmark = pytest.mark.compile_matrix

ARCHITECTURES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
ELEMENTS = ["float", "double", "__half", "__nv_bfloat16"]
MAXIMUM = 255  # registers a thread can have


def kernels() -> Iterator[Kernel]:
    """One of each template, with each kind of argument that changes its code."""
    for element in ELEMENTS:
        for name in ("to_accumulate", "from_accumulate", "add_biases", "sum_rows"):
            yield Kernel("kernels/layer", f"{name}<{element}>", None)
        for name in ("step_place", "step_unplace"):
            yield Kernel("walks/step/kernels", f"{name}<{element}>", None)
        for name, struct, own in (("lstm", "LstmCell", 4), ("rnn", "RnnCell", 1)):
            if name == "rnn" and element != "float":
                continue  # how many gates and states a cell has does not depend on the type
            cell = cells.get(name)
            for keep in ("false", "true"):
                yield Kernel("walks/step/kernels", f"step_forward<{element}, {struct}, {keep}, {own}>", cell)
            yield Kernel("walks/step/kernels", f"step_backward<{element}, {struct}, {own}>", cell)
            if element == "double":
                continue  # the block walk has none
            for keep in ("false", "true"):
                yield Kernel("walks/block/kernels", f"block_forward<{element}, false, {struct}, {keep}, 2>", cell)
            yield Kernel("walks/block/kernels", f"block_backward<{element}, false, {struct}, 2>", cell)


class Compiler:
    """Numba's compiler for an architecture, with no device to ask."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability

    def __call__(self, function: Any, arguments: tuple[Any, ...]) -> tuple[bytes, str]:
        """Machine code, and what the assembler says of it."""
        from cuda.core import Linker, LinkerOptions, ObjectCode
        from numba import cuda

        codes, _ = cuda.compile_all(function, arguments, cc=self.capability, output="ltoir", device=False, abi="numba")
        parts = [code if isinstance(code, ObjectCode) else ObjectCode.from_ltoir(code) for code in codes]
        architecture = "sm_{}{}".format(*self.capability)
        options = LinkerOptions(arch=architecture, link_time_optimization=True, ptxas_options=["-v"])
        linker = Linker(*parts, options=options)
        return bytes(linker.link("cubin").code), linker.get_info_log() or ""


@pytest.fixture(params=ARCHITECTURES, ids=lambda capability: "sm_{}{}".format(*capability))
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Numba asks the current device for its compute capability whenever a kernel calls a device function.

    Nothing public says it instead: ``get_current_device`` in ``numba.cuda.dispatcher`` is private, and known to be
    this in numba-cuda 0.30. Where it has moved, that must be looked at, not skipped.
    """
    import numba_cuda
    from numba.cuda import dispatcher

    assert hasattr(dispatcher, "get_current_device"), f"numba-cuda {numba_cuda.__version__} asks devices elsewhere"

    class NoDevice:
        id = 0
        compute_capability = request.param

    monkeypatch.setattr(dispatcher, "get_current_device", NoDevice)
    return Compiler(request.param)


def test_every_kernel_compiles(compiler: Compiler) -> None:
    from gpulstm_kernels.cuda.device.numba_launch import twin

    failed = []
    for kernel in kernels():
        code, log = compiler(*twin(kernel))
        used = re.search(r"Used (\d+) registers", log)
        spilled = re.search(r"(\d+) bytes spill stores", log)
        if not code.startswith(b"\x7fELF") or used is None or int(used[1]) > MAXIMUM:
            failed.append(f"{kernel.expression}: {log}")
            continue
        spills = int(spilled[1]) if spilled else 0
        if spills:
            failed.append(f"{kernel.expression}: {spills} bytes spilled")
        print(f"sm_{compiler.capability[0]}{compiler.capability[1]} {int(used[1]):4} registers  {kernel.expression}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("compiler", [(9, 0)], indirect=True)
def test_float32_kernels_do_no_float64_arithmetic(compiler: Compiler) -> None:
    """A literal that Numba took for float64 would make every value after it float64, at 1/32 or 1/64 of the rate."""
    from numba import cuda

    from gpulstm_kernels.cuda.device.numba_launch import twin

    for kernel in kernels():
        if "double" in kernel.expression:
            continue
        function, arguments = twin(kernel)
        code, _ = cuda.compile(function, arguments, cc=compiler.capability, output="ptx", device=False, abi="numba")
        assert ".f64" not in str(code), kernel.expression
