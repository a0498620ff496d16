"""Every threshold of the CPU backend, with what it is and what it was measured on.

A threshold changes how fast a call is, and no result by more than the order of some sums. Code reads :data:`current`
at each call; tests use :func:`replaced`. What decides which instructions are generated (the width and height of tiles,
unrolling, independent sums) is no threshold and stays beside the code that generates them: :mod:`.codegen.tile`,
:mod:`.codegen.dots`, :mod:`.codegen.narrow`, :mod:`.codegen.amx`, :mod:`.packing.cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .codegen.features import L2_BYTES, REGISTERS

_NEVER = 1 << 62


def _compiled(value: Any) -> Any:
    """A value that kernels were compiled with: it cannot be replaced while the process runs."""
    return field(default=value, metadata={"compiled": True})


@dataclass(frozen=True)
class Tuning:
    """Work is counted in multiply-adds, rows are rows of a batch; "a thread pays" compares with one thread fewer."""

    # --- layer.py: how one call is walked ---

    packs_from: int = 16
    """Rows of input (steps · batch) from which packing the weights pays. Not measured."""
    block_rows: int = 48
    """Rows of a panel of gates that stay in the L1 cache from bias to cell. Not measured."""
    fused_from: int = 4 if REGISTERS > 16 else _NEVER
    """Rows of its own that a thread has in a step from which their input is projected step by step. Never in the low
    tiles of 16 registers: rows of several steps fill them better. Not measured."""
    fused_to: int = 4 << 20
    """Bytes of input weights that may be read again at every step. Not measured."""
    chunk_rows: int = 192
    """Rows of input that one pass projects: enough to use a panel again, few enough to stay in the cache. Not
    measured."""
    backward_rows: int = 512
    """Rows whose gates' gradients are held until products have used them: one pass of those (:attr:`outer_depth`).
    Against all rows at once, training took 4 to 40 % less (1,1,512: 1.5 -> 0.95 ms; 256,32,128: 18.4 -> 16.6 ms)."""
    layer_per_thread: int = 4_000_000
    """Multiply-adds of a layer for which a further thread pays. Not measured."""
    read_cost: int = 8
    """Multiply-adds in the time that it takes to read one weight. Not measured."""
    widened_from: int = 16
    """Rows of a step from which bfloat16 is multiplied as float32 where it has no product of its own: to widen a weight
    at every use cost up to a quarter there, more than to read it in half the bytes saves."""
    split_from: int = 6
    """Rows that a thread has from which threads split the batch rather than share the weights. Two rows of 128 units
    took 295 us shared and 425 us split, on two threads."""
    always_shared_from: int = 1 << 19 if L2_BYTES >= 1 << 20 else 1 << 21
    """Bytes of recurrent weights from which threads share them whatever the rows: a share stays in an L2 cache of 1 MB.
    One of half a megabyte would hold no share of these, and threads that do not wait for each other are faster."""
    shared_to: int = 32
    """Forward, with fewer rows a thread than this, they share weights from :attr:`shared_from` bytes on whatever the
    cache: all rows together fill tiles better, and use a weight more often once it was read. 1.05 to 1.2 times
    as fast."""
    shared_from: int = 1 << 19
    """See :attr:`shared_to`."""

    # --- gemm.py: matrix products ---

    depth: int = _compiled(512)
    """Steps along K that one pass takes: a panel of them stays in the L2 cache. Not measured."""
    outer_depth: int = _compiled(512)
    """The same where both operands are packed: a thread holds its share of one of them whole. Not measured."""
    gemm_block_rows: int = _compiled(96)
    """Rows of A that stay in the L2 cache while all panels of B pass. Not measured."""
    gemm_per_thread: int = 2_000_000
    """Multiply-adds of a product for which a further thread pays. Not measured."""

    # --- philox.py ---

    noise_per_thread: int = 1 << 15
    """Random numbers for which a further thread pays. Not measured."""

    # --- walks: one step, and streams ---

    step_per_thread: int = 1 << 20
    """Weights that a single step reads for which waking a thread pays. Not measured."""
    stream_per_thread: int = 1 << 16
    """The same for a thread that is awake and polls for a stream's steps. With it (1,1,128) took 4.0 us instead of 5.9
    and (1,1,512) 48 us instead of 93."""
    stream_interval: int = 500_000
    """Nanoseconds from step to step up to which a thread is asked to poll for the next one. Not measured."""
    stream_forgets: int = 1000
    """Steps after which one that had to wait for another thread no longer counts. Not measured."""

    # --- packing ---

    pack_per_thread: int = 100_000
    """Elements to pack for which a further thread pays. Not measured."""
    pack_cost: int = _compiled(8)
    """Multiply-adds in the time that it takes to move one element, or more. Not measured."""
    digest_per_thread: int = 1 << 18
    """Bytes to digest for which a further thread pays. Not measured."""
    digest_segment: int = 1 << 17
    """Bytes that a thread digests in a row. Not measured."""
    cache_entries: int = 256
    """Packed weights that the cache holds at most. Not measured."""
    cache_bytes: int = 1 << 30
    """Their bytes, at most. Not measured."""

    # --- crew: threads that work together ---

    spins: int = _compiled(1 << 14)
    """Polls, some two hundred microseconds, after which a thread that waits sleeps from time to time. Not measured."""
    signals_work: int = _compiled(1 << 24)
    """Multiply-adds from one look at the clock to the next: less than a hundredth of a second on most machines."""
    signals_interval: int = _compiled(100)
    """Milliseconds from one time that handlers of signals are run to the next: it takes Python's lock."""
    oversubscribed_part: float = _compiled(0.3)
    """The part of a call's time that threads may wait for each other before the cores count as oversubscribed. Not
    measured."""
    alone_seconds: float = 0.1
    """How long calls then run on one thread; doubled as long as the cores stay so. Not measured."""
    alone_seconds_at_most: float = 3.2
    """See :attr:`alone_seconds`."""


current = Tuning()


@contextmanager
def replaced(**values: Any) -> Iterator[Tuning]:
    """For tests, from one thread at a time: other values for all threads of the process.

    Raises:
        ValueError: kernels were compiled with that value.
        TypeError: there is no such threshold.
    """
    global current
    for part in fields(Tuning):
        if part.name in values and part.metadata.get("compiled"):
            raise ValueError(f"tuning: {part.name} is compiled into kernels and cannot be replaced")
    before = current
    current = replace(before, **values)
    try:
        yield current
    finally:
        current = before
