"""Arrays of other libraries, through DLPack, and NumPy's own in every form that they can lie in memory."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gpulstm

LAYER = gpulstm.LSTM(6, 5, 2, bidirectional=True, seed=0)
X = np.random.default_rng(0).standard_normal((7, 3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def answer() -> Any:
    """What the layer says to ``X``; not as the file is read, which every worker does and would compile a kernel for."""
    return LAYER(X)


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _unaligned(x: np.ndarray) -> np.ndarray:
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


def _wide(x: np.ndarray) -> np.ndarray:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


class _Speaker:
    """An array of a library that only speaks DLPack."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


GUESTS: dict[str, Any] = {
    "torch": torch.from_numpy,
    "torch, transposed": lambda x: torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1))).transpose(0, 1),
    "jax": jnp.asarray,
    "speaks DLPack only": _Speaker,
    "read-only": _read_only,
    "read-only behind DLPack": lambda x: _Speaker(_read_only(x)),
    "Fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "negative strides": lambda x: np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
    "every other element": _wide,
    "unaligned": _unaligned,
    "broadcast": lambda x: np.broadcast_to(x, x.shape),
    "memory map's class": lambda x: x.view(np.memmap),
}


@pytest.mark.parametrize("name", GUESTS)
def test_same_bits_in_every_form(name: str, answer: Any) -> None:
    guest, (out, (h_end, c_end)) = GUESTS[name], answer
    y, (h, c) = LAYER(guest(X), (guest(h_end), guest(c_end)))
    expected, (h_expected, c_expected) = LAYER(X, (h_end, c_end))
    for found, value in ((y, expected), (h, h_expected), (c, c_expected)):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, value)
    (y, _), pullback = LAYER.vjp(guest(X), lengths=np.array([7, 1, 4]))
    dx, _, grads = pullback(guest(out))
    (_, _), pullback = LAYER.vjp(X, lengths=np.array([7, 1, 4]))
    dx_expected, _, grads_expected = pullback(out)
    np.testing.assert_array_equal(dx, dx_expected)
    for key, value in grads_expected.items():
        np.testing.assert_array_equal(grads[key], value)


def test_what_goes_out_goes_to_others(answer: Any) -> None:
    """Outputs are NumPy arrays, which every library takes without a copy."""
    y, _ = LAYER(X)
    tensor = torch.from_dlpack(y)
    assert tensor.data_ptr() == y.ctypes.data
    np.testing.assert_array_equal(np.asarray(jnp.from_dlpack(y)), answer[0])


def test_no_copy_of_a_tensor_comes_in() -> None:
    tensor = torch.from_numpy(X.copy())
    assert gpulstm.nn.Dropout(0.5)(tensor).ctypes.data == tensor.data_ptr()


def test_parameters_from_guests(answer: Any) -> None:
    layer = gpulstm.LSTM(6, 5, 2, bidirectional=True, seed=1)
    layer.load_state_dict({name: jnp.asarray(value) for name, value in LAYER.params.items()})
    np.testing.assert_array_equal(layer(X)[0], answer[0])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(">f4"), "x: expected dtype float32, got >f4"),
        (torch.from_numpy(X).requires_grad_(), "x: a Tensor that DLPack cannot hand over"),
        (torch.from_numpy(X).to("meta"), "x: a Tensor that DLPack cannot hand over"),
        (torch.from_numpy(X).to(torch.bfloat16), "x: "),
        (torch.from_numpy(X).to(torch.complex64), "x: expected dtype float32, got complex64"),
        (X.tolist(), "x: expected an array, got list"),
        (np.ma.masked_array(X), "x: expected an array, got a masked one"),
        (memoryview(X), "x: expected an array, got memoryview"),
    ],
)
def test_guests_that_are_not_taken(x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LAYER(x)


def test_another_device_is_refused() -> None:
    """As a CUDA tensor answers: its device is 2, and it gives nothing to a CPU."""

    class OnAGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("device mismatch: the tensor is on a GPU")

    with pytest.raises(TypeError, match="x: a OnAGpu that DLPack cannot hand over"):
        LAYER(OnAGpu())
