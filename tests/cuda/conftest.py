"""The device that kernels are tested on: the emulator (``-m emulator``), or a GPU through CuPy (``-m gpu``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from gpulstm import dispatch
from gpulstm_kernels.cuda.device import process


@pytest.fixture(
    params=[pytest.param("emulator", marks=pytest.mark.emulator), pytest.param("cupy", marks=pytest.mark.gpu)]
)
def runtime(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The runtime, in use by the whole library while a test lasts."""
    if request.param == "cupy":
        yield process.current()
        return
    from emulator.runtime import EmulatedRuntime

    # how tests/emulator/test_sanitizers.py runs these tests again
    sanitizer, seed = os.environ.get("EMULATOR_SANITIZER", ""), int(os.environ.get("EMULATOR_SEED", "0"))
    with process.use(EmulatedRuntime(seed=seed, sanitizer=sanitizer)) as chosen:
        dispatch._why_not.cache_clear()
        dispatch._that_run.cache_clear()
        dispatch._automatic.cache_clear()
        yield chosen
    dispatch._why_not.cache_clear()
    dispatch._that_run.cache_clear()
    dispatch._automatic.cache_clear()
