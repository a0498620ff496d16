"""Noise by counter, on the threads of the recurrent kernels: Philox-4x32-10, as ``gpulstm.arrays.random`` says.

What a value is follows from its place and the seed alone, so bits do not depend on how threads share the rows.
"""

from __future__ import annotations

import numpy as np

from . import tuning
from .codegen.compilation import kernel
from .crew.team import is_aborted, share
from .crew.thread_pool import crew

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_BITS = np.uint64(8)  # of a word that are not used, so that 24 are
_WORK = 100  # multiply-adds that take as long as four numbers


@kernel
def _draw(values, words, stream, below, hit, miss, rank, size, barrier):
    steps, rows, units = values.shape
    first, last = share(steps * rows, rank, size)
    key_0, key_1, stream_word, limit = np.uint64(words[0]), np.uint64(words[1]), np.uint64(stream), np.uint64(below)
    on, off = values.dtype.type(hit), values.dtype.type(miss)
    for place in range(first, last):
        if is_aborted(barrier, rank, units // 4 * _WORK):
            return
        step, row = place // rows, place % rows
        for quad in range((units + 3) // 4):
            a, b, c, d = np.uint64(quad), stream_word, np.uint64(row), np.uint64(step)
            k_0, k_1 = key_0, key_1
            for _ in range(10):
                x, y = _FACTORS[0] * a, _FACTORS[1] * c
                a, b, c, d = (y >> _HALF) ^ b ^ k_0, y & _WORD, (x >> _HALF) ^ d ^ k_1, x & _WORD
                k_0, k_1 = (k_0 + _STEPS[0]) & _WORD, (k_1 + _STEPS[1]) & _WORD
            unit = quad * 4
            values[step, row, unit] = on if a >> _BITS < limit else off
            if unit + 3 < units:
                values[step, row, unit + 1] = on if b >> _BITS < limit else off
                values[step, row, unit + 2] = on if c >> _BITS < limit else off
                values[step, row, unit + 3] = on if d >> _BITS < limit else off
            else:
                if unit + 1 < units:
                    values[step, row, unit + 1] = on if b >> _BITS < limit else off
                if unit + 2 < units:
                    values[step, row, unit + 2] = on if c >> _BITS < limit else off


def draw(values: np.ndarray, words: np.ndarray, stream: int, below: int, hit: float, miss: float) -> None:
    """Fill ``values`` (steps, rows, units), C-contiguous: see :func:`gpulstm.arrays.random.noise`."""
    at_most = max(1, min(crew.size, values.size // tuning.current.noise_per_thread))
    crew.run(_draw, values.dtype, (values, words, stream, below, hit, miss), at_most)
