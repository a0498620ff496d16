"""The activations in Numba's simulator, where they are NumPy's own, of scalars. It warns of extreme numbers."""

from __future__ import annotations

import activation_checks
import numpy as np
import pytest

pytestmark = [
    pytest.mark.simulator,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
TYPES = ["float32", "float64"]


@pytest.mark.parametrize("dtype", TYPES)
def test_values(dtype: str) -> None:
    from numba import cuda

    a, b = activation_checks.pairs(dtype)
    y = np.full((len(activation_checks.NAMES), a.size), np.nan, dtype)
    kernel, _ = activation_checks.numba_kernel(dtype)
    cuda.jit(kernel)[1, 1](a, b, y.reshape(-1))
    expected = np.stack(activation_checks.results(a, b))
    np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps)  # of arrays NumPy computes in vectors


@pytest.mark.parametrize("dtype", TYPES)
def test_scalars_keep_their_type(dtype: str) -> None:
    from numba import cuda

    _, of_scalars = activation_checks.numba_kernel(dtype)
    scalar, found = np.dtype(dtype).type, []

    @cuda.jit
    def kernel():
        found.extend(map(type, of_scalars(scalar(0.75), scalar(0.25))))  # select gives the constant

    kernel[1, 1]()
    assert found == [scalar] * len(activation_checks.NAMES)
