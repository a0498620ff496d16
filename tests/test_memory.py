"""Buffers: aligned, reused when the last view is gone, never handed out twice, bounded, and poisonable."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import gpulstm
from gpulstm_kernels import memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_idle() -> None:
    gc.collect()
    memory.release()


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@pytest.mark.parametrize("size", [1 << 12, (1 << 18) - 8, 1 << 18, 3 * MIB + 40])
def test_large_buffers_are_aligned(size: int) -> None:
    buffers = [memory.empty((size // 8,), np.float64) for _ in range(5)]
    assert [address(b) % memory.ALIGNMENT for b in buffers] == [0] * 5
    assert len({address(b) for b in buffers}) == 5


def test_a_block_is_reused_once_its_last_view_is_gone() -> None:
    buffer = memory.empty((MIB,), np.float32)
    place = address(buffer)
    view = buffer.reshape(4, -1)[1:]
    del buffer
    other = memory.empty((MIB,), np.float32)
    assert address(other) != place
    del view
    assert address(memory.empty((MIB,), np.float32)) == place


def test_idle_memory_is_bounded_by_the_most_ever_used() -> None:
    for size in range(1, 40):
        memory.empty((size * MIB,), np.uint8)
    held = sum(block.size for blocks in memory._idle.blocks.values() for block in blocks)
    assert held == memory._idle.idle <= memory._idle.most_used
    gpulstm.release_memory()
    assert memory._idle.idle == 0
    assert not memory._idle.blocks


def test_a_buffer_that_there_is_no_memory_for_is_not_counted() -> None:
    before = memory._idle.used
    with pytest.raises(MemoryError):
        memory.empty((1 << 60,), np.uint8)
    gc.collect()  # nothing is printed of a lease that came to nothing
    assert memory._idle.used == before


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(200):
            buffer = memory.empty((70_000,), np.float64)
            buffer.fill(number)
            if not (buffer == number).all():
                wrong.append(number)

    before = memory._idle.used
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert memory._idle.used == before


@pytest.mark.parametrize("shape", [(3,), (1000,), (300, 400)])
def test_poison(shape: tuple[int, ...]) -> None:
    with memory.poison():
        assert np.isnan(memory.empty(shape, np.float32)).all()
        assert (memory.zeros(shape, np.float32) == 0).all()
    memory.empty(shape, np.float32).fill(0)


def test_poison_of_two_threads_that_overlap_ends_with_both() -> None:
    first, second = memory.poison(), memory.poison()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert np.isnan(memory.empty((3,), np.float32)).all()
    second.__exit__(None, None, None)
    assert not memory._poisoned
