"""Why kernels cannot run through CuPy: each thing that may be missing is named, with what to install."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from fake_cupy import CUDARuntimeError, FakeCupy, installed

from gpulstm_kernels.cuda.device import blas, cupy_runtime


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    with installed(monkeypatch) as fake:
        yield fake


def refuse(error: Exception) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


@pytest.fixture
def headers(cupy: FakeCupy, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A toolkit that CuPy knows, and no packages of NVIDIA's."""
    monkeypatch.setattr(cupy_runtime.importlib.util, "find_spec", lambda name: None)
    cupy.cuda.get_cuda_path = lambda: str(tmp_path)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_fp16.h").touch()
    return tmp_path


def test_nothing_speaks_against_it(cupy: FakeCupy, headers: Any) -> None:
    assert cupy_runtime.why_not() is None
    assert cupy_runtime.include_folders() == (str(headers / "include"),)


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("runtime.getDeviceCount", lambda: 0, "no CUDA device"),
        ("runtime.getDeviceCount", refuse(CUDARuntimeError("cudaErrorNoDevice")), "no CUDA device.*cudaErrorNoDevice"),
        ("nvrtc.getVersion", refuse(RuntimeError("libnvrtc.so.13")), r"NVRTC.*libnvrtc.so.13.*gpulstm\[cuda12\]"),
        ("get_cuda_path", lambda: None, "headers"),
    ],
)
def test_what_is_missing_is_named(cupy: FakeCupy, headers: Any, attribute: str, value: Any, expected: str) -> None:
    *path, name = attribute.split(".")
    owner = cupy.cuda
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, name, value)
    assert (reason := cupy_runtime.why_not()) is not None
    assert re.search(expected, reason)


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "CuPy could not be imported" in (cupy_runtime.why_not() or "")


def test_no_cublas(headers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "find", refuse(OSError("no cuBLAS was found")))
    assert cupy_runtime.why_not() == "no cuBLAS was found"


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (lambda: 12040, "the driver speaks CUDA 12.4, but CuPy was made for 13.2"),
        (lambda: 13000, "CuPy finds no CUDA device, or no driver for it"),
        (lambda: 0, "CuPy finds no CUDA device, or no driver for it"),
        (refuse(CUDARuntimeError("none")), "CuPy finds no CUDA device, or no driver for it"),
    ],
)
def test_a_driver_older_than_cupy(cupy: FakeCupy, headers: Any, driver: Any, expected: str) -> None:
    cupy.cuda.runtime.getDeviceCount = refuse(CUDARuntimeError("cudaErrorInsufficientDriver"))
    cupy.cuda.runtime.driverGetVersion = driver
    assert (cupy_runtime.why_not() or "").startswith(expected)


def test_headers_of_the_version_that_cupy_was_made_for(
    cupy: FakeCupy, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("cu13", "cuda_runtime"):
        (tmp_path / folder / "include").mkdir(parents=True)
        (tmp_path / folder / "include" / "cuda_fp16.h").touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(cupy_runtime.importlib.util, "find_spec", lambda name: spec)
    for version, folder in ((13020, "cu13"), (12090, "cuda_runtime")):
        cupy.cuda.runtime.runtimeGetVersion = lambda version=version: version
        cupy_runtime.include_folders.cache_clear()
        assert cupy_runtime.include_folders() == (str(tmp_path / folder / "include"),)
