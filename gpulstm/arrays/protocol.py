"""What layers, losses and optimizers need of a library of arrays, whichever device it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .random import CounterGenerator

Array = Any  # of the library's own type: NumPy's, or that of the GPU's runtime


class Arrays(Protocol):
    """A library of arrays: :mod:`gpulstm.arrays.numpy`, and :mod:`gpulstm.arrays.cuda` for a GPU.

    On a GPU everything is enqueued on the caller's current stream, and only :meth:`to_host` waits for it.
    """

    # memory: every buffer that a kernel fills comes from here, so that tests can poison it

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised C-contiguous array."""

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A C-contiguous array of zeros."""

    def copy(self, array: Array) -> Array:
        """A C-contiguous copy."""

    def contiguous(self, array: Array) -> Array:
        """``array`` itself where kernels can read it in place: C-contiguous and aligned; else a copy."""

    def copy_into(self, target: Array, value: Array) -> None:
        """Copy ``value``, an array of this library, into ``target``."""

    def concatenate(self, parts: Sequence[Array]) -> Array:
        """``parts`` one after another along their first axis."""

    # to and from the host

    def to_array(self, value: Any, name: str) -> Array:
        """``value`` as an array of this library without a copy: one already, or any that DLPack can hand over.

        Raises:
            TypeError: it is neither, or lies on another device; the message calls it ``name``.
        """

    def from_host(self, array: np.ndarray) -> Array:
        """A copy of a NumPy array as one of this library."""

    def to_host(self, array: Array) -> np.ndarray:
        """An array of this library as NumPy's."""

    def assign(self, target: Array, value: np.ndarray) -> None:
        """Copy the NumPy array ``value`` into ``target``."""

    def lengths(self, value: np.ndarray) -> Array:
        """Checked lengths (B,) as kernels take them."""

    def resets(self, value: np.ndarray) -> Array:
        """Checked resets (T, B) as kernels take them."""

    def indices(self, value: np.ndarray) -> Array:
        """Checked indices of any integer dtype as :meth:`take` and its inverses take them."""

    def numbers(self, value: Array, dtype: Any) -> Array:
        """An array of bools as ones and zeros of ``dtype``."""

    def stack(self, parts: Sequence[Array]) -> Array:
        """(N, T, B, W) of ``parts`` (T, B, W or 1), of which those of one value a row are repeated."""

    def spread(self, target: Array, part: Array) -> None:
        """Copy ``part`` (T, B, W or 1) into ``target`` (T, B, W)."""

    # arithmetic

    def add(self, a: Array, b: Array) -> Array:
        """``a + b``, of one shape and dtype."""

    def sum_features(self, values: Array) -> Array:
        """(T, B, 1), the sums over the last axis of (T, B, W), in one order always."""

    def gemm(self, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
        """``a @ b`` of two matrices of one dtype, one of them maybe read transposed: (M, K) by (K, N) gives (M, N)."""

    def add_bias(self, y: Array, bias: Array) -> None:
        """Add ``bias`` (N,) to every row of ``y`` (M, N) in place."""

    def sum_rows(self, values: Array) -> Array:
        """The sum of the rows of (M, N)."""

    def take(self, rows: Array, ids: Array) -> Array:
        """``rows[ids]``: (M, N) by ids (...) gives (..., N)."""

    def scatter_rows(self, values: Array, ids: Array, count: int) -> Array:
        """Zeros (count, N) but for row ``ids[n]``, which is ``values[n]``; each id once at most."""

    def sum_by_id(self, values: Array, ids: Array, count: int) -> Array:
        """(count, N): row r is the sum of the rows of ``values`` (M, N) whose id is r, in their order."""

    def clear_padding(self, array: Array, valid: Array) -> Array:
        """``array`` (T, B, features) with zeros past the :meth:`lengths` called ``valid``: padding may hold NaN."""

    # random numbers

    def generator(self, rng: Any, name: str = "rng") -> Any:
        """What :meth:`dropout_mask` draws from: ``rng`` itself, or a generator seeded with it.

        Raises:
            TypeError, ValueError: as :meth:`check_rng`.
        """

    def check_rng(self, rng: Any, name: str = "rng") -> None:
        """Check what :meth:`generator` takes, also where nothing is drawn from it.

        Raises:
            TypeError: ``rng`` is neither a generator nor an int nor None; the message calls it ``name``.
            ValueError: it is a negative int.
        """

    def dropout_mask(self, rng: Any, shape: tuple[int, ...], p: float) -> Array:
        """A mask drawn from :meth:`generator`, false (or 0) with probability ``p``."""

    def drop(self, value: Array, mask: Array, p: float) -> Array:
        """``value`` with zeros where ``mask`` is false, divided by 1 - ``p`` elsewhere."""

    def counter(self, rng: Any) -> CounterGenerator:
        """What :meth:`draw_noise` draws from: the next two words of :meth:`generator` of ``rng``, on the device."""

    def draw_noise(
        self, target: Array, source: CounterGenerator, stream: int, below: int, hit: float, miss: float, once: bool
    ) -> None:
        """Fill ``target`` (T, B, H) as :func:`gpulstm.arrays.random.noise` does; ``once``: all steps as the first."""
