"""The lanes catch what they are for: each planted bug is found by the lane named here, and no lane cries wolf."""

from __future__ import annotations

import pytest

from . import lanes
from .planted import SHAPES

pytestmark = pytest.mark.emulator

# the lane that must catch it, and what it says
CAUGHT_BY = {
    "missing_block_barrier": ("thread", "data race"),
    "missing_barrier_before_reuse": ("thread", "data race"),
    "missing_warp_barrier": ("thread", "data race"),
    "missing_copy_wait": ("plain", ""),
    "outside_shared_memory": ("address", "heap-buffer-overflow"),
    "outside_global_memory": ("address", "heap-buffer-overflow"),
    "misaligned_access": ("address", "misaligned address"),
    "divergent_barrier": ("plain", "deadlock: 63 threads wait at a block barrier"),
    "uneven_named_barrier": ("plain", "deadlock"),
    "uninitialised_shared_memory": ("plain", ""),
    "race_between_blocks": ("thread", "data race"),
    "missing_grid_barrier": ("thread", "data race"),
    "lost_arrival": ("plain", "polls memory that none will write"),
    "missing_lane": ("plain", "deadlock: 0 threads wait at a block barrier, 31 in a warp"),
}


def planted(name: str, bug: bool, sanitizer: str, seed: int = 1) -> tuple[int, str]:
    done = lanes.run(sanitizer, ["-m", "emulator.planted", name, str(bug).lower(), sanitizer, str(seed)])
    return done.returncode, done.stdout + done.stderr


def test_every_bug_has_a_lane() -> None:
    assert CAUGHT_BY.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_a_planted_bug_is_caught(name: str) -> None:
    sanitizer, says = CAUGHT_BY[name]
    code, output = planted(name, True, sanitizer)
    assert code != 0, output
    assert says in output
    if sanitizer == "plain":
        assert code == (4 if says else 3), output


@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
@pytest.mark.parametrize("name", SHAPES)
def test_without_its_bug_a_kernel_passes(name: str, sanitizer: str) -> None:
    code, output = planted(name, False, sanitizer)
    assert code == 0, output
