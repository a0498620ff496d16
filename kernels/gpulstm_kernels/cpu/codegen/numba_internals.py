"""All that the CPU backend uses of Numba beyond what Numba documents; no other file of it imports ``numba.core``.

Documented, and used everywhere: ``njit``, ``typeof``, ``numba.types``, ``numba.extending``. Relied on here:

- typing: ``AbstractTemplate``, ``AttributeTemplate``, ``infer_global`` and ``signature`` give calls and attributes in
  kernels a type, in a fraction of the time that an overload takes to compile;
- ``builtin_registry`` lists overloads, whose templates hold the function as ``_overload_func``;
- a dispatcher: ``compile(types)``, ``overloads[types]`` with ``entry_point`` (a C function for Python), ``library`` and
  ``fndesc.llvm_func_name`` (by which machine code is found); ``targetoptions``; its cache in ``_cache``;
- options of ``njit``: ``forceinline``, ``no_cpython_wrapper``, ``no_cfunc_wrapper``;
- ``FunctionCache``: the dispatcher calls ``load_overload`` and ``save_overload``; ``_index_key``, ``_cache_path`` and
  ``_impl`` (``filename_base``, ``check_cachable``, ``reduce``, ``rebuild``) do what their names say;
  ``serialize.dumps`` pickles what ``reduce`` gives; ``rtsys.initialize`` loads what machine code calls;
- ``context.call_conv``: how compiled functions are called, and how they end where a Python exception is set; the
  ``context`` of code generators also has ``cast``, ``get_constant``, ``get_dummy_value``, ``get_value_type``,
  ``make_array`` and ``make_tuple``;
- ``pyapi`` of unboxing, and Numba's C function ``numba_adapt_ndarray``, which fills in the words of an array without
  taking a reference;
- ``cgutils``, helpers that write LLVM code.

tests/test_numba_internals.py names the part that a version of Numba lacks or changed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llvmlite import ir
from numba import typeof, types
from numba.core import caching, cgutils
from numba.core.errors import NumbaError
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, builtin_registry, infer_global, signature
from numba.extending import infer_getattr, lower_getattr_generic

__all__ = ["NumbaError", "cgutils"]  # and what is defined here

# Options of njit. The ways in from Python and C, which are left out here, take as long to compile as a small kernel.
NOT_FROM_C: dict[str, Any] = {"no_cfunc_wrapper": True}
NOT_FROM_PYTHON: dict[str, Any] = {"no_cpython_wrapper": True}
ALWAYS_INLINE: dict[str, Any] = {"forceinline": True}


# --- typing -----------------------------------------------------------------------------------------------------


def type_calls(function: Callable[..., Any], signature_of: Callable[..., Sequence[types.Type] | None]) -> None:
    """In kernels, type calls of ``function``: ``signature_of(*types)`` gives (result, \\*arguments), or None."""

    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            found = signature_of(*args)
            return None if found is None else signature(*found)


def constant_attributes(kind: type[types.Type], values: Mapping[str, Callable[[Any], int]]) -> None:
    """In kernels, give values of a class of types these attributes: numbers that follow from the type."""

    @infer_getattr
    class Attributes(AttributeTemplate):
        key = kind

        def generic_resolve(self, typ: Any, attribute: str) -> Any:
            return types.int64 if attribute in values else None

    @lower_getattr_generic(kind)
    def lower(context: Any, builder: Any, typ: Any, value: Any, attribute: str) -> Any:
        return context.get_constant(types.int64, values[attribute](typ))


def overloads_of(function: Any) -> Iterator[Callable[..., Any]]:
    """The functions that implement ``function`` in kernels by ``@overload``."""
    for registered, typ in builtin_registry.globals:
        if registered is function:
            for template in getattr(typ, "templates", ()):
                overload = getattr(template, "_overload_func", None)
                if overload is not None:
                    yield overload


# --- compiled functions -----------------------------------------------------------------------------------------


def compile_options(function: Any) -> dict[str, Any]:
    """What a function is compiled with."""
    return function.targetoptions


def compile_for(function: Any, arguments: tuple[types.Type, ...]) -> None:
    """Compile a function for arguments of these types, unless it is.

    Raises:
        NumbaError: it cannot be compiled.
    """
    function.compile(arguments)


def _compiled(function: Any, arguments: tuple[types.Type, ...]) -> Any:
    compile_for(function, arguments)
    return function.overloads[arguments]


def machine_code(function: Any, arguments: tuple[types.Type, ...]) -> int:
    """Where the machine code of a function for arguments of these types lies; it is compiled if it must be."""
    compiled = _compiled(function, arguments)
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def entry_point(function: Any, *arguments: Any) -> Callable[..., Any]:
    """A function for Python, for arguments of the types of these: for callers that vouch for the types.

    Numba looks at the type of every argument at every call, which takes longer than a small kernel.
    """
    return _compiled(function, tuple(typeof(argument) for argument in arguments)).entry_point


class FunctionCache(caching.FunctionCache):
    """Compiled code of one function, as Numba's dispatcher asks for it; subclasses :meth:`read` and :meth:`write` it.

    Raises:
        RuntimeError: (when made) no folder can hold files.
    """

    def read(self, key: tuple[Any, ...]) -> bytes | None:
        raise NotImplementedError

    def write(self, key: tuple[Any, ...], content: bytes) -> None:
        raise NotImplementedError

    @property
    def folder(self) -> str:
        return self._cache_path

    @property
    def name(self) -> str:
        """What the names of files begin with."""
        return self._impl.filename_base

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for ``sig``, or None.

        Before Numba's own cache looks for a file, it imports what implements Python and NumPy in Numba and fills its
        tables, a third of a second that a process spends in vain where everything comes from the cache. Numba does so
        again before it compiles.
        """
        rtsys.initialize(target_context)
        content = self.read(self._index_key(sig, target_context.codegen()))
        return None if content is None else self._impl.rebuild(target_context, pickle.loads(content))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write what was compiled for ``sig``, where that can be."""
        if self._impl.check_cachable(data):
            self.write(self._index_key(sig, data.codegen), dumps(self._impl.reduce(data)))


def set_cache(function: Any, cache: FunctionCache) -> None:
    """Have a function that nothing was compiled of use ``cache``."""
    function._cache = cache


# --- calls in machine code --------------------------------------------------------------------------------------


def call_machine_code(
    context: Any, builder: ir.IRBuilder, address: Any, result: types.Type, kinds: Sequence[types.Type], values: Any
) -> tuple[Any, Any]:
    """Call the code at ``address``, of :func:`machine_code`: (whether it raised, what it returned)."""
    function_type = context.call_conv.get_function_type(result, kinds)
    function = builder.inttoptr(address, function_type.as_pointer())
    status, value = context.call_conv.call_function(builder, function, result, kinds, values)
    return status.is_error, value


def return_exception(context: Any, builder: ir.IRBuilder) -> None:
    """End a function that Python called with the exception that is set in Python."""
    context.call_conv.return_exc(builder)


# --- arguments from Python --------------------------------------------------------------------------------------


def element_of_tuple(c: Any, value: Any, index: int) -> Any:
    """A borrowed element of a Python tuple, in a function that unboxes."""
    return c.pyapi.tuple_getitem(value, index)


def borrow_array(c: Any, value: Any, to: Any) -> Any:
    """Fill in Numba's words of an array at ``to``, without taking a reference; whether ``value`` is no array."""
    function_type = ir.FunctionType(ir.IntType(32), [c.pyapi.pyobj, c.pyapi.voidptr])
    borrow = cgutils.get_or_insert_function(c.builder.module, function_type, "numba_adapt_ndarray")
    return cgutils.is_not_null(c.builder, c.builder.call(borrow, [value, c.builder.bitcast(to, c.pyapi.voidptr)]))


def set_value_error(c: Any, message: str) -> None:
    """Set a ValueError in Python, in a function that unboxes."""
    c.pyapi.err_set_string("PyExc_ValueError", message)
