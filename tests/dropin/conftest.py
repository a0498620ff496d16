"""What tests of any cell compute with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from gpulstm import use_backend


@pytest.fixture(params=["reference", pytest.param("automatic", marks=pytest.mark.slow)])  # which may compile kernels
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.param) if request.param == "reference" else nullcontext():
        yield
