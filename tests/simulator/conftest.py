"""Numba's simulator stands in for a device: it must be chosen before Numba is imported, so for a whole process.

``NUMBA_ENABLE_CUDASIM=1 pytest -m simulator tests/simulator``
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def simulator() -> None:
    """Fail at once where these tests would look for a device."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        pytest.fail("the simulator's tests need a process of their own, with NUMBA_ENABLE_CUDASIM=1", pytrace=False)


@pytest.fixture
def runtime() -> Iterator[Any]:
    """The Numba runtime over NumPy arrays, which is the process's while a test lasts."""
    from simulator.host_runtime import HostRuntime

    from gpulstm_kernels.cuda.device import process

    with process.use(HostRuntime()):
        yield process.current_numba()
