"""Random numbers: the one module that makes generators from seeds.

On the CPU they are NumPy's. On a GPU dropout draws its masks by counter, so that a launch that is captured once can
draw other masks each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["CounterGenerator", "check_rng", "generator", "keyed", "seed_words"]


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

    New words bring new masks to the same launches, so a CUDA graph draws others at each replay.
    """

    def __init__(self, words: Any) -> None:
        self.words = words
        self.draws = 0


def seed_words(rng: np.random.Generator) -> np.ndarray:
    """The seed of a :class:`CounterGenerator`."""
    return rng.integers(0, 2**32, 2, np.uint32)
