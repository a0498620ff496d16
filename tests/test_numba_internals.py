"""What the CPU backend uses of Numba beyond its documentation is there, and works as expected.

Each failure names the part that this version of Numba lacks or changed. To be run with the oldest and the newest one
that pyproject.toml allows.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import njit, types
from numba.extending import intrinsic, lower_builtin, models, overload, register_model, typeof_impl, unbox

import gpulstm_kernels.cpu

CPU = Path(gpulstm_kernels.cpu.__file__).parent

# By module: names, and for methods the parameters that are given to them.
PARTS: dict[str, dict[str, list[str] | None]] = {
    "numba.core.caching": {
        "FunctionCache.load_overload": ["self", "sig", "target_context"],
        "FunctionCache.save_overload": ["self", "sig", "data"],
        "FunctionCache._index_key": ["self", "sig", "codegen"],
        "CompileResultCacheImpl.reduce": ["self", "cres"],
        "CompileResultCacheImpl.rebuild": ["self", "target_context", "payload"],
        "CompileResultCacheImpl.check_cachable": ["self", "cres"],
        "CompileResultCacheImpl.filename_base": None,
    },
    "numba.core.runtime": {"rtsys.initialize": ["ctx"]},
    "numba.core.serialize": {"dumps": ["obj"]},
    "numba.core.errors": {"NumbaError": None},
    "numba.core.typing.templates": {
        "AbstractTemplate": None,
        "AttributeTemplate": None,
        "builtin_registry.globals": None,
        "infer_global": None,
        "signature": None,
    },
    "numba.core.callconv": {
        "CPUCallConv.get_function_type": ["self", "restype", "argtypes"],
        "CPUCallConv.call_function": ["self", "builder", "callee", "resty", "argtys", "args"],
        "CPUCallConv.return_exc": ["self", "builder"],
    },
    "numba.core.base": {
        "BaseContext.cast": ["self", "builder", "val", "fromty", "toty"],
        "BaseContext.get_constant": ["self", "ty", "val"],
        "BaseContext.get_dummy_value": ["self"],
        "BaseContext.get_value_type": ["self", "ty"],
        "BaseContext.make_array": ["self", "typ"],
        "BaseContext.make_tuple": ["self", "builder", "typ", "values"],
    },
    "numba.core.pythonapi": {
        "PythonAPI.tuple_getitem": ["self", "tup", "idx"],
        "PythonAPI.err_set_string": ["self", "exctype", "msg"],
    },
    "numba.core.cgutils": {
        "alloca_once": ["builder", "ty"],
        "alloca_once_value": ["builder", "value"],
        "false_bit": None,
        "gep_inbounds": ["builder", "ptr"],
        "get_or_insert_function": ["module", "fnty", "name"],
        "global_constant": ["builder_or_module", "name", "value"],
        "is_neg_int": ["builder", "val"],
        "is_not_null": ["builder", "val"],
        "true_bit": None,
        "unpack_tuple": ["builder", "tup"],
    },
    "numba.core.dispatcher": {"Dispatcher.compile": ["self", "sig"]},
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PARTS.items() for name in names])
def test_the_part_is_there(module: str, name: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"Numba {numba.__version__} has no {module}.{name}"
        found = getattr(found, part)
    expected = PARTS[module][name]
    if expected is not None:
        parameters = list(inspect.signature(found).parameters)
        if inspect.ismethod(found):
            expected = [part for part in expected if part != "self"]
        assert parameters[: len(expected)] == expected, f"Numba {numba.__version__}: {module}.{name} takes {parameters}"


def test_no_other_file_uses_them() -> None:
    words = [
        "numba.core",
        "call_conv",
        "pyapi",
        "targetoptions",
        ".overloads[",
        "_overload_func",
        "numba_adapt_",
        "rtsys",
        ".compile(",
        "._cache",
        ".entry_point",
        "llvm_func_name",
    ]
    for path in CPU.rglob("*.py"):
        if path.name != "numba_internals.py":
            source = path.read_text(encoding="utf-8").replace("re.compile(", "")
            assert [word for word in words if word in source] == [], path


@pytest.fixture(scope="module")
def internals() -> Any:
    return importlib.import_module("gpulstm_kernels.cpu.codegen.numba_internals")


def compiled(internals: Any, function: Callable[..., Any], **options: Any) -> Any:
    return njit(**options, **internals.NOT_FROM_C)(function)


def doubled(x: Any) -> Any:
    """Numba wants to find it in its module."""
    raise NotImplementedError


def test_calls_have_a_type(internals: Any) -> None:
    internals.type_calls(doubled, lambda x: (types.float64, types.float64) if isinstance(x, types.Float) else None)

    @lower_builtin(doubled, types.float64)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[0])

    call = compiled(internals, lambda x: doubled(x))
    assert call(2.5) == 5.0
    with pytest.raises(internals.NumbaError):
        call("text")


class Sized:
    pass


class SizedType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Sized")


def test_attributes_are_constants(internals: Any) -> None:
    register_model(SizedType)(models.OpaqueModel)
    typeof_impl.register(Sized)(lambda value, context: SizedType())
    unbox(SizedType)(lambda typ, value, c: numba.extending.NativeValue(c.context.get_dummy_value()))
    internals.constant_attributes(SizedType, {"size": lambda typ: len(typ.name)})
    assert compiled(internals, lambda value: value.size)(Sized()) == len("Sized")
    with pytest.raises(internals.NumbaError):
        compiled(internals, lambda value: value.other)(Sized())


def test_overloads_are_found(internals: Any) -> None:
    def plain(x: Any) -> Any:
        raise NotImplementedError

    assert list(internals.overloads_of(plain)) == []

    @overload(plain)
    def implementation(x):
        return lambda x: x

    assert list(internals.overloads_of(plain)) == [implementation]


def test_options_of_a_compiled_function(internals: Any) -> None:
    function = njit(**internals.NOT_FROM_C, **internals.NOT_FROM_PYTHON, **internals.ALWAYS_INLINE)(lambda x: x + 1)
    found = internals.compile_options(function)
    assert {name: found[name] for name in ("no_cfunc_wrapper", "no_cpython_wrapper", "forceinline")} == {
        "no_cfunc_wrapper": True,
        "no_cpython_wrapper": True,
        "forceinline": True,
    }
    assert njit(lambda x: 2 * function(x))(3) == 8


def test_an_entry_point_is_called_without_a_look_at_the_types(internals: Any) -> None:
    total = internals.entry_point(compiled(internals, lambda a, n: a.sum() + n), np.ones(3), 1)
    assert total(np.arange(4.0), 7) == 13.0


def test_machine_code_is_called_by_its_address(internals: Any) -> None:
    inside = (types.int64, types.int64)

    def divide(a: int, b: int) -> int:
        if b == 0:
            raise ValueError
        return a // b

    @intrinsic
    def call(typing: Any, address: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            failed, value = internals.call_machine_code(context, builder, args[0], types.int64, inside, args[1:])
            return builder.select(failed, value.type(-1), value)

        return types.int64(types.int64, *inside), codegen

    address = internals.machine_code(njit(**internals.NOT_FROM_PYTHON)(divide), inside)
    run = njit(lambda address, a, b: call(address, a, b))
    assert [run(address, 7, 2), run(address, 7, 0)] == [3, -1]


def test_what_python_has_set_is_raised(internals: Any) -> None:
    @intrinsic
    def fail(typing: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            context.get_python_api(builder).err_set_string("PyExc_KeyError", "set")
            internals.return_exception(context, builder)
            builder.position_at_end(builder.append_basic_block("never"))
            return context.get_dummy_value()

        return types.none(), codegen

    with pytest.raises(KeyError, match="set"):
        compiled(internals, lambda: fail())()


class Pair(tuple):
    pass


class PairType(types.Type):
    """(a number, an array of float64), told by the array's first element plus the number."""

    def __init__(self) -> None:
        super().__init__(name="Pair")


def test_arguments_are_borrowed(internals: Any) -> None:
    cgutils = internals.cgutils
    array = types.Array(types.float64, 1, "C")

    @register_model(PairType)
    class PairModel(models.PrimitiveModel):
        def __init__(self, manager: Any, typ: Any) -> None:
            super().__init__(manager, typ, cgutils.ir.DoubleType())

    @unbox(PairType)
    def unbox_pair(typ: Any, value: Any, c: Any) -> Any:
        number = c.unbox(types.float64, internals.element_of_tuple(c, value, 0))
        words = cgutils.alloca_once(c.builder, c.context.get_value_type(array))
        c.builder.store(c.context.get_constant_null(array), words)
        failed = internals.borrow_array(c, internals.element_of_tuple(c, value, 1), words)
        result = cgutils.alloca_once_value(c.builder, number.value)
        with c.builder.if_else(failed) as (is_none, is_array):
            with is_none:
                internals.set_value_error(c, "expected an array")
            with is_array:
                data = c.context.make_array(array)(c.context, c.builder, ref=words).data
                c.builder.store(c.builder.fadd(number.value, c.builder.load(data)), result)
        return numba.extending.NativeValue(c.builder.load(result), is_error=failed)

    @intrinsic
    def number_of(typing: Any, pair: Any) -> Any:
        return types.float64(pair), lambda context, builder, sig, args: args[0]

    typeof_impl.register(Pair)(lambda value, context: PairType())
    get = compiled(internals, lambda pair: number_of(pair))
    assert get(Pair((1.5, np.full(3, 2.0)))) == 3.5
    with pytest.raises(ValueError, match="expected an array"):
        get(Pair((1.5, "no array")))


def test_a_cache_is_asked_and_told(internals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    kept: dict[Any, bytes] = {}

    class Cache(internals.FunctionCache):
        def read(self, key: Any) -> bytes | None:
            return kept.get(repr(key))

        def write(self, key: Any, content: bytes) -> None:
            kept[repr(key)] = content

    def triple(x: int) -> int:
        return 3 * x

    for hits in (0, 1):
        function = compiled(internals, triple)
        cache = Cache(triple)
        internals.set_cache(function, cache)
        assert function(5) == 15
        assert sum(function.stats.cache_hits.values()) == hits
    assert [type(pickle.loads(content)) for content in kept.values()] == [tuple]
    assert Path(cache.folder).is_relative_to(tmp_path)
    assert "triple" in cache.name
