"""Dynamic scheduling of steps that come one after another: threads claim their parts as they come to them.

The claims of a step are a cache line for each thread that may come: how many parts of its share are taken, beside the
number of the step. All are byte addresses.
"""

from __future__ import annotations

from ..codegen.compilation import inline
from ..codegen.features import CACHE_LINE
from .atomics import SPINS, exchange, pause, publish, read
from .team import share

_MOST_PARTS = 1 << 16  # of one step


@inline
def next_step(number, last, counter, posted):
    """Wait until the number at a byte address is not ``last``, and return it.

    Returns 0 instead if the one at ``counter`` is above ``posted``, or after some two hundred microseconds.
    """
    for _ in range(SPINS):
        if read(number) != last:
            return read(number)
        if read(counter) > posted:
            break
        pause()
    return 0


@inline
def open_claims(claims, step, size):
    """Let ``size`` threads claim the parts of ``step``; ``claims``: byte address of a cache line for each of them."""
    for rank in range(size):
        publish(claims + CACHE_LINE * rank, step * _MOST_PARTS)


@inline
def claim(claims, step, count, rank, size):
    """A part of ``step`` below ``count`` that no other thread has, or -1 if there is none.

    A thread first takes those of its own share, from step to step forth and back: what it read last is still in its
    cache. Then it takes those of the others.
    """
    for k in range(size):
        owner = (rank + k) % size
        first, last = share(count, owner, size)
        place = claims + CACHE_LINE * owner
        value = read(place)
        while value // _MOST_PARTS == step and value % _MOST_PARTS < last - first:
            if exchange(place, value, value + 1):
                taken = value % _MOST_PARTS
                return first + taken if step % 2 else last - 1 - taken
            value = read(place)
    return -1
