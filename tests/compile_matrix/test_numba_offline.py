"""Every Numba kernel, compiled to machine code for every architecture without a device or a driver.

``-s`` prints the registers that each needs. Not in Numba's simulator, where there is nothing to compile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import activation_checks
import device_cells
import ml_dtypes
import numpy as np
import problems
import pytest

from gpulstm import cells
from gpulstm_kernels.cells import Cell, activations
from gpulstm_kernels.cuda.device.kernel import Kernel
from gpulstm_kernels.cuda.device.source import expression
from gpulstm_kernels.cuda.walks.step import staged_host

pytestmark = pytest.mark.compile_matrix

ARCHITECTURES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
DTYPES = [np.dtype(dtype) for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
FLOAT, DOUBLE = DTYPES[:2]
DERIVED = [cells.get("cifg"), device_cells.slstm]
PARTS = [cells.get("gru"), cells.get("indrnn"), device_cells.all_parts, device_cells.scanned]
STAGES = [cells.get("gru_reset_before"), cells.get("layer_norm_lstm"), device_cells.staged]
MAXIMUM = 255  # registers a thread can have


def kernels() -> Iterator[Kernel]:
    """One of each template, with each kind of argument that changes its code."""
    for dtype in DTYPES:
        for name in ("to_accumulate", "from_accumulate", "add_biases", "sum_rows", "sum_columns", "h_before"):
            yield Kernel("kernels/layer", name, (dtype,))
        for name in ("step_project", "step_unproject"):
            for anew in (False, True):
                yield Kernel("walks/step/kernels", name, (dtype, anew))
        for name in ("step_begin", "step_end"):
            yield Kernel("walks/step/kernels", name, (dtype,))
        for name, units in (("lstm", 4), ("rnn", 1)):
            if name == "rnn" and dtype != FLOAT:
                continue  # how many gates and states a cell has does not depend on the type
            yield from of_cell(cells.get(name), dtype, units)


def steps_of(cell: Cell, dtype: np.dtype, units: int, anew: bool) -> Iterator[Kernel]:
    if cell.stages > 1:
        for training in (False, True):
            shape = problems.layer_shape(cell, dtype, training=training, resets=anew)
            yield from (kernel for kernel in staged_host.kernels(shape).values() if kernel.cell)
        return
    source, name, own = ("kernels", "step", (units,)) if cell.gates_of_h else ("scan", "scan", ())
    for training in (False, True):
        yield Kernel(f"walks/step/{source}", f"{name}_forward", (dtype, cell, training, *own, anew))
    yield Kernel(f"walks/step/{source}", f"{name}_backward", (dtype, cell, *own, anew))


def of_cell(cell: Cell, dtype: np.dtype, units: int, anew: bool = False) -> Iterator[Kernel]:
    yield from steps_of(cell, dtype, units, anew)
    if dtype == DOUBLE or not cell.gates_of_h or cell.stages > 1:
        return  # the block walk has none
    for training in (False, True):
        yield Kernel("walks/block/kernels", "block_forward", (dtype, False, cell, training, anew, 2))
    yield Kernel("walks/block/kernels", "block_backward", (dtype, False, cell, anew, 2))


def with_heads(cell: Cell, units: int) -> Iterator[Kernel]:
    """The kernels of both walks, of three heads; the arguments behind the cell are those of :func:`of_cell`."""
    for name in ("step_begin", "step_end"):
        yield Kernel("walks/step/kernels", name, (FLOAT, 3))
    for kernel in of_cell(cell, FLOAT, units, True):
        yield Kernel(kernel.source, kernel.name, (*kernel.arguments, 3))


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


def check(compiler: Compiler, kernels: Iterable[Kernel]) -> None:
    """They compile, and nothing spills."""
    from gpulstm_kernels.cuda.device.numba_runtime import twin

    failed = []
    for kernel in kernels:
        code, log = compiler(*twin(kernel))
        used = re.search(r"Used (\d+) registers", log)
        spilled = re.search(r"(\d+) bytes spill stores", log)
        if not code.startswith(b"\x7fELF") or used is None or int(used[1]) > MAXIMUM:
            failed.append(f"{expression(kernel)}: {log}")
            continue
        spills = int(spilled[1]) if spilled else 0
        if spills:
            failed.append(f"{expression(kernel)}: {spills} bytes spilled")
        print(f"sm_{compiler.capability[0]}{compiler.capability[1]} {int(used[1]):4} registers  {expression(kernel)}")
    assert not failed, "\n".join(failed)


def test_every_kernel_compiles(compiler: Compiler) -> None:
    check(compiler, kernels())


@pytest.mark.parametrize("compiler", [(9, 0)], indirect=True)
@pytest.mark.parametrize("cell", DERIVED, ids=lambda cell: cell.name)
def test_any_derived_cell_compiles(compiler: Compiler, cell: Cell) -> None:
    check(compiler, of_cell(cell, FLOAT, 4))


@pytest.mark.parametrize("compiler", [(9, 0)], indirect=True)
@pytest.mark.parametrize("cell", [*PARTS, *STAGES], ids=lambda cell: cell.name)
def test_any_parts_of_a_cell_compile(compiler: Compiler, cell: Cell) -> None:
    for anew in (False, True):
        check(compiler, of_cell(cell, FLOAT, 4, anew))


@pytest.mark.parametrize("compiler", [(7, 5), (9, 0)], indirect=True)
@pytest.mark.parametrize(("cell", "units"), [("lstm", 4), ("gru", 1)])
def test_heads_compile(compiler: Compiler, cell: str, units: int) -> None:
    check(compiler, with_heads(cells.get(cell), units))


@pytest.mark.parametrize("compiler", [(9, 0)], indirect=True)
def test_float32_kernels_do_no_float64_arithmetic(compiler: Compiler) -> None:
    """A literal that Numba took for float64 would make every value after it float64, at 1/32 or 1/64 of the rate."""
    from numba import cuda

    from gpulstm_kernels.cuda.device.numba_runtime import twin

    of_cells = (of_cell(cell, FLOAT, 4) for cell in DERIVED)
    of_parts = (of_cell(cell, FLOAT, 4, True) for cell in [*PARTS, *STAGES])
    for kernel in itertools.chain(kernels(), *of_cells, *of_parts, with_heads(cells.get("gru"), 4)):
        if DOUBLE in kernel.arguments:
            continue
        function, arguments = twin(kernel)
        code, _ = cuda.compile(function, arguments, cc=compiler.capability, output="ptx", device=False, abi="numba")
        assert ".f64" not in str(code), expression(kernel)


@pytest.mark.parametrize("compiler", [(9, 0)], indirect=True)
def test_activations_compile_in_their_own_type(compiler: Compiler) -> None:
    from numba import cuda
    from numba.cuda import types

    for dtype in (types.float32, types.float64):
        kernel, _ = activation_checks.numba_kernel(dtype.name)
        code, log = compiler(kernel, (dtype[::1],) * 3)
        assert code.startswith(b"\x7fELF"), log
    kernel, _ = activation_checks.numba_kernel("float32")
    arguments = (types.float32[::1],) * 3
    text, _ = cuda.compile(kernel, arguments, cc=compiler.capability, output="ptx", device=False, abi="numba")
    assert ".f64" not in str(text)


def test_activations_of_mixed_types_are_refused() -> None:
    """The result would be float64, and all that is computed with it."""
    from numba import cuda
    from numba.core.errors import TypingError
    from numba.cuda import types

    def larger(x):
        return activations.maximum(x, 1)

    with pytest.raises(TypingError, match="maximum"):
        cuda.compile(larger, (types.float32,), cc=(9, 0))
