"""The CuPy of the tests has nothing that the real one has not: names and numbers of arguments, without a device."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cupy import FakeArray, FakeCupy, FakeGraph, FakeKernel, FakeStream

pytestmark = pytest.mark.emulator  # the lane that has CuPy


@pytest.fixture
def cupy() -> Any:
    import cupy

    return cupy


def public(names: object) -> list[str]:
    return [name for name in vars(names) if not name.startswith("_") and name not in ("cupy", "streams")]


def test_modules(cupy: Any) -> None:
    fake = FakeCupy()
    for name in public(fake.cuda):
        assert hasattr(cupy.cuda, name), name
    for module in ("runtime", "driver", "nvrtc"):
        for name in public(getattr(fake.cuda, module)):
            assert hasattr(getattr(cupy.cuda, module), name), f"{module}.{name}"
    for name in ("ndarray", "empty", "array", "copyto", "from_dlpack", "RawModule"):
        assert hasattr(cupy, name), name


def test_classes(cupy: Any) -> None:
    for name in public(FakeStream):
        assert hasattr(cupy.cuda.Stream, name), name
    for name in public(FakeGraph):
        assert hasattr(cupy.cuda.Graph, name), name
    for name in (*public(FakeKernel), "kernel"):
        assert hasattr(cupy.RawKernel, name), name
    for name in public(FakeArray):
        assert hasattr(cupy.ndarray, name) or hasattr(cupy.cuda.MemoryPointer, name), name
    assert hasattr(cupy.cuda.MemoryPool, "malloc")


def test_launches_take_as_many_arguments(cupy: Any) -> None:
    """Cython writes a function's parameters into the first line of its documentation."""
    driver = cupy.cuda.driver
    for function, parameters in (
        (driver.launchKernel, 11),
        (driver.launchCooperativeKernel, 10),
        (driver.occupancyMaxActiveBlocksPerMultiprocessor, 3),
    ):
        assert function.__doc__.count(",") + 1 == parameters
