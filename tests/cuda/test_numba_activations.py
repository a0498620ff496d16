"""The activations as Numba CUDA has them: compiled on a GPU, and their formulas as Numba's vectorized functions.

Those are compiled for the CPU, in the emulator's lane; what the simulator runs are NumPy's functions instead.
"""

from __future__ import annotations

import activation_checks
import numpy as np
import pytest

TYPES = ["float32", "float64"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_on_a_gpu(dtype: str) -> None:
    from numba import cuda

    a, b = activation_checks.pairs(dtype)
    y = cuda.device_array(len(activation_checks.NAMES) * a.size, dtype)
    kernel, _ = activation_checks.numba_kernel(dtype)
    cuda.jit(kernel)[1, 1](cuda.to_device(a), cuda.to_device(b), y)
    activation_checks.check(a, b, y.copy_to_host().reshape(-1, a.size))


@pytest.mark.emulator
@pytest.mark.parametrize("dtype", TYPES)
def test_formulas(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from gpulstm_kernels.cuda.device import numba_cell
    from gpulstm_kernels.cuda.device.numba_kernel import element

    summed = element(np.dtype(dtype)).summed
    for name, implementation in numba_cell._ACTIVATIONS.items():
        monkeypatch.setattr(activation_checks, name.__name__, numba.vectorize(implementation(summed)))
    a, b = activation_checks.pairs(dtype)
    with np.errstate(all="ignore"):
        found = numba_cell._with_constants(activation_checks.results, summed)(a, b)
    assert {value.dtype for value in found} == {a.dtype}
    activation_checks.check(a, b, np.stack(found))
