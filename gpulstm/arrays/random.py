"""Random numbers: the one module that makes generators from seeds.

On the CPU they are NumPy's. On a GPU dropout draws its masks by counter, so that a launch that is captured once can
draw other masks each time. The noise of cells is drawn by counter everywhere, with the same bits: :func:`noise`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["CounterGenerator", "check_rng", "generator", "keyed", "noise", "philox", "seed_words"]

PARTS = 1 << 24  # into which noise divides [0, 1)


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """The generator that ``rng`` stands for: itself, one seeded with an int, or a fresh one for None.

    Raises:
        TypeError, ValueError: as :func:`check_rng`; ``name`` is for the message.
    """
    check_rng(rng, name)
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def check_rng(rng: Any, name: str = "rng") -> None:
    """Check what :func:`generator` takes, also where nothing is drawn from it.

    Raises:
        TypeError: ``rng`` is neither a ``numpy.random.Generator`` nor an int nor None.
        ValueError: it is a negative int.
    """
    if rng is None or isinstance(rng, np.random.Generator):
        return
    if not isinstance(rng, (int, np.integer)) or isinstance(rng, bool):
        raise TypeError(f"{name}: expected a numpy.random.Generator, an int seed or None, got {type(rng).__name__}")
    if rng < 0:
        raise ValueError(f"{name}: expected a seed >= 0, got {rng}")


def keyed(*seeds: int) -> np.random.Generator:
    """A generator seeded with several ints, such as a run's seed and the number of an epoch."""
    return np.random.default_rng(seeds)


class CounterGenerator:
    """Random numbers by counter: two words of seed (uint32) on the device, and how many masks were drawn with them.

    New words bring new masks to the same launches, so a CUDA graph draws others at each replay. On the CPU it is for
    :func:`noise` alone.
    """

    def __init__(self, words: Any) -> None:
        self.words = words
        self.draws = 0


def seed_words(rng: np.random.Generator) -> np.ndarray:
    """The seed of a :class:`CounterGenerator`."""
    return rng.integers(0, 2**32, 2, np.uint32)


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Four words of 32 bits, as uint64, for each ``counter`` of four: Philox-4x32-10 (Salmon et al., Parallel random
    numbers: as easy as 1, 2, 3, SC 2011). Counters are whole numbers or arrays of one shape, as words of 32 bits."""
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    word, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for turn in range(10):
        first, second = ((k + turn * step) % 2**32 for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        x, y = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (y >> half) ^ b ^ np.uint64(first), y & word
        c, d = (x >> half) ^ d ^ np.uint64(second), x & word
    return a, b, c, d


def noise(values: np.ndarray, words: np.ndarray, stream: int, below: int, hit: float, miss: float) -> None:
    """Fill ``values`` (steps, rows, units) with ``hit``, at each place with probability below / PARTS, else ``miss``.

    What is drawn at a place follows from the seed's ``words``, from ``stream``, one of 2**31 that are independent, and
    from the step, row and unit: not from the sizes, so that a longer or wider batch begins with the same.
    """
    steps, rows, units = values.shape
    quads = np.arange(-(-units // 4))
    at = np.broadcast_arrays(quads, stream, np.arange(rows)[:, None], np.arange(steps)[:, None, None])
    drawn = np.stack(philox((at[0], at[1], at[2], at[3]), (int(words[0]), int(words[1]))), axis=-1)
    hits = drawn.reshape(steps, rows, -1)[:, :, :units] >> np.uint64(8) < np.uint64(below)
    values[...] = np.where(hits, values.dtype.type(hit), values.dtype.type(miss))
