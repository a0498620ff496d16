"""How many CPU threads the kernels use: all cores of the process, or ``GPULSTM_NUM_THREADS``, or what is set here.

Never more than the cores that the process may use: those that it is bound to, less where its control group has a quota.
"""

from __future__ import annotations


def get_num_threads() -> int:
    """How many threads a call may use."""
    from gpulstm_kernels.cpu.crew.thread_pool import crew

    return crew.size


def set_num_threads(count: int) -> None:
    """Use at most ``count`` threads from the next call on, and no more than there are cores, which is logged once.

    Raises:
        ValueError: ``count`` is not a whole number above 0.
    """
    from gpulstm_kernels.cpu.crew.cores import limited
    from gpulstm_kernels.cpu.crew.thread_pool import crew

    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count: expected a whole number above 0, got {count!r}")
    crew.resize(limited(count, "count"))
