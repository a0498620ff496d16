"""How kernels are compiled: cached on disk where that is possible, and specialised on the cell.

A walk takes the cell as an ordinary argument. To Numba its type is :class:`CellType`, which carries the cell's name
and a digest of its maths. What is compiled into a kernel is more than its function: so the names of kernels on disk
(:mod:`.disk_cache`) carry a digest of this package, and their argument types one of all that the cell's maths reads
(:mod:`.digest`): what changed is compiled anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.extending import (
    NativeValue,
    lower_builtin,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

from ...cells import Cell
from .digest import CannotDigest, maths_digest
from .disk_cache import NOT_CACHED, DiskCache
from .features import AMX
from .numba_internals import (
    ALWAYS_INLINE,
    NOT_FROM_C,
    NOT_FROM_PYTHON,
    NumbaError,
    compile_for,
    constant_attributes,
    set_cache,
    type_calls,
)

logger = logging.getLogger("gpulstm")

# 'contract' lets a*b + c become one fused multiply-add; nothing else is relaxed, so NaN and infinities stay.
_MATHS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
_INSIDE = _MATHS | NOT_FROM_C | NOT_FROM_PYTHON
OPTIONS = _MATHS | NOT_FROM_C | {"nogil": True}


def _sources() -> str:
    """A digest of all that kernels are compiled from, but for the cells."""
    contents = [path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    return hashlib.blake2b(b"".join([*contents, bytes([AMX])]), digest_size=8).hexdigest()


_SOURCES = _sources()


def _cached(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Compile ``function`` at its first call, cached on disk unless no folder can hold the cache."""
    function.__qualname__ += f"_{_SOURCES}"  # which names the cache's files
    compiled = njit(**options)(function)
    with contextlib.suppress(RuntimeError):  # "no locator available": a read-only install without a writable home
        set_cache(compiled, DiskCache(function))
    return compiled


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for threads that go by the address of its machine code. Python must not call it."""
    return _cached(function, _INSIDE)


def entry(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for Python, which is free to go on in other threads while it runs."""
    return _cached(function, OPTIONS)


def inline(function: Callable[..., Any]) -> Any:
    """Compile ``function`` as a part of the kernels that call it."""
    return njit(**_INSIDE)(function)


def always_inline(function: Callable[..., Any]) -> Any:
    """As :func:`inline`, and never as a call, however large: for what runs once a register, where a call costs as much.

    A call passes every array as ten numbers, and keeps the constants of its maths inside of loops.
    """
    return njit(**_INSIDE, **ALWAYS_INLINE)(function)


def expand(function: Callable[..., Any]) -> Any:
    """Write the statements of ``function`` out in the kernel that calls it: for a named part of one kernel.

    Numba does so before it infers types, so that it costs no compilation of its own. Any other function is compiled
    twice: by itself, and within each kernel that calls it.
    """
    return njit(inline="always", **_INSIDE)(function)


class CellType(types.Type):
    """The Numba type of one cell."""

    def __init__(self, name: str, digest: str) -> None:
        self.cell_name, self.digest = name, digest
        super().__init__(name=f"Cell({name}, {digest})")

    @property
    def cell(self) -> Cell:
        return _cells[self.name]


_cells: dict[str, Cell] = {}
register_model(CellType)(models.OpaqueModel)


@functools.cache
def _cell_type(cell: Cell) -> CellType:
    try:
        digest = maths_digest(cell).hex()
    except CannotDigest as error:
        logger.warning(f"cell {cell.name}: its kernels are compiled in every process, since {error}")
        digest = f"{NOT_CACHED} {len(_cells)}"
    typ = CellType(cell.name, digest)
    _cells[typ.name] = cell
    return typ


@typeof_impl.register(Cell)
def _typeof_cell(value: Cell, context: Any) -> CellType:
    return _cell_type(value)


@unbox(CellType)
def _unbox_cell(typ: CellType, value: Any, context: Any) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())


constant_attributes(
    CellType,
    {
        "n_gates": lambda typ: len(typ.cell.preactivations),
        "n_x": lambda typ: len(typ.cell.gates_of_x),
        "n_h": lambda typ: len(typ.cell.gates_of_h),
        "first_h": lambda typ: len(typ.cell.x_gates),  # the number of the first gate of h's product
        "n_states": lambda typ: len(typ.cell.states),
        "n_saved": lambda typ: typ.cell.saved,
        "n_params": lambda typ: len(typ.cell.params),
        "n_inputs": lambda typ: len(typ.cell.inputs),
        "n_differentiable": lambda typ: len(typ.cell.differentiable),
        "n_given": lambda typ: len(typ.cell.given),
        "n_given_gradients": lambda typ: len(typ.cell.given_gradients),
        "reads_h": lambda typ: int(typ.cell.reads_h),
    },
)


def constant(function: Callable[..., Any], value: Callable[..., int], result: types.Type = types.int64) -> None:
    """In kernels, make ``function(*arguments)`` a constant: ``value`` of the arguments' types.

    An overload would do as well, and take a twentieth of a second to compile for each combination of types.
    """
    type_calls(function, lambda *args: (result, *args))

    @lower_builtin(function, types.VarArg(types.Any))
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(result, value(*sig.args))


def cell_forward(cell: Cell, gates: Any, states: Any, given: Any) -> Any:
    """``cell``'s forward, callable from a kernel; ``given`` is empty for a cell that is given nothing."""
    return cell.module.forward(gates, states, *[given] * bool(cell.given))


def cell_backward(cell: Cell, dh: Any, dstates: Any, h: Any, saved: Any, states: Any, previous: Any, given: Any) -> Any:
    """``cell``'s backward, callable from a kernel: the gradients of gates, states before the step and ``given``."""
    if cell.given:
        return cell.module.backward(dh, dstates, h, saved, states, previous, given)
    return *cell.module.backward(dh, dstates, h, saved, states, previous), ()


def _maths_of(typ: CellType, name: str, *arguments: types.Type) -> Any:
    """A function of a cell's maths, as a part of the kernels that call it for arguments of these types."""
    function = always_inline(getattr(typ.cell.module, name))
    try:
        compile_for(function, arguments)
    except NumbaError as error:  # of a hundred lines, were it left to the kernels that are compiled around it
        lines = [line.strip() for line in str(error).splitlines() if line and not line.startswith("Failed in")]
        call = re.search(r">>> (.+)", str(error))
        place = re.search(r'File "(.+)", line (\d+)', str(error))
        raise ValueError(
            f"cell: {typ.cell_name!r}: {typ.cell.maths}.{name}: expected + - * /, the functions of "
            "gpulstm_kernels.cells.activations and helpers under numba.extending.register_jitable, for which there is "
            f"code for the CPU, got {call[1] if call else lines[0]}{f' ({place[0]})' if place else ''}"
        ) from error
    return function


# Numba wants an overload's parameters to be those of its implementation, annotations included: hence none.


@overload(cell_forward)
def _cell_forward(cell, gates, states, given):
    if cell.cell.given:
        function = _maths_of(cell, "forward", gates, states, given)
        return lambda cell, gates, states, given: function(gates, states, given)
    function = _maths_of(cell, "forward", gates, states)
    return lambda cell, gates, states, given: function(gates, states)


@overload(cell_backward)
def _cell_backward(cell, dh, dstates, h, saved, states, previous, given):
    arguments = dh, dstates, h, saved, states, previous
    if cell.cell.given:
        function = _maths_of(cell, "backward", *arguments, given)
        return lambda cell, dh, dstates, h, saved, states, previous, given: function(
            dh, dstates, h, saved, states, previous, given
        )
    function = _maths_of(cell, "backward", *arguments)

    def of_nothing_given(cell, dh, dstates, h, saved, states, previous, given):
        dgates, dprevious = function(dh, dstates, h, saved, states, previous)
        return dgates, dprevious, ()

    return of_nothing_given
