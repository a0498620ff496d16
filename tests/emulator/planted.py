"""Runs one kernel of planted.cu in a process of its own: ``python -m emulator.planted NAME BUG SANITIZER SEED``.

Exits with 0 if the kernel gave what it should, with 3 if it gave something else, with 4 if the emulator reported a
fault; a sanitizer that finds one ends the process itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gpulstm_kernels.cuda.device.kernel import Kernel

from .runtime import EmulatedRuntime

# name: blocks, threads, bytes of shared memory, cooperative, arrays beyond x and y
SHAPES: dict[str, tuple[int, int, int, bool, int]] = {
    "missing_block_barrier": (1, 64, 0, False, 0),
    "missing_barrier_before_reuse": (1, 64, 0, False, 0),
    "missing_warp_barrier": (1, 32, 0, False, 0),
    "missing_copy_wait": (1, 64, 0, False, 0),
    "outside_shared_memory": (1, 64, 256, False, 0),
    "outside_global_memory": (1, 64, 0, False, 0),
    "misaligned_access": (1, 16, 0, False, 0),
    "divergent_barrier": (1, 64, 0, False, 0),
    "uneven_named_barrier": (1, 64, 0, False, 0),
    "uninitialised_shared_memory": (1, 64, 0, False, 0),
    "race_between_blocks": (2, 32, 0, False, 0),
    "missing_grid_barrier": (2, 32, 0, True, 2),
    "lost_arrival": (2, 32, 0, True, 1),
    "missing_lane": (1, 32, 0, False, 0),
}
REVERSED = ("missing_block_barrier", "missing_barrier_before_reuse", "missing_warp_barrier", "missing_copy_wait")


def main(name: str, bug: str, sanitizer: str, seed: str) -> int:
    """Launch it and look at what it gave."""
    blocks, threads, shared, cooperative, more = SHAPES[name]
    runtime = EmulatedRuntime(seed=int(seed), sanitizer=sanitizer.replace("plain", ""))
    count = 32 if threads == 32 and blocks == 1 else 64
    x = np.arange(count, dtype=np.float32)
    y = runtime.empty((count,), np.float32)
    extra = [runtime.empty((count,), np.float32)] * (more - 1) + [runtime.zeros((1,), np.uint32)] * min(more, 1)
    kernel = Kernel(str(Path(__file__).with_name("planted")), name, (bug == "true",))
    arguments = (runtime.to_device(x), y, *extra)
    try:
        runtime.launch(kernel, (blocks, 1, 1), (threads, 1, 1), arguments, shared, cooperative)
    except RuntimeError as error:
        print(error)
        return 4
    expected = x[::-1] if name in REVERSED else x
    return 0 if np.array_equal(runtime.to_host(y), expected) else 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
