"""Packed weights are kept until what they were packed from changes, in whatever element."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest

import gpulstm
from gpulstm_kernels.cpu import packing


def packed(how: str, weight: np.ndarray, keep: bool = True) -> np.ndarray:
    return packing.rows(weight, 1, 16, keep) if how == "rows" else packing.columns(weight, keep=keep)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("how", ["rows", "columns"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_change_of_one_bit_anywhere_is_seen(
    dtype: str, how: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(packing, "_SEGMENT", 4096)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((37, 101)).astype(dtype)  # several segments, the last one with a rest
    content = weight.reshape(-1).view(np.uint8)
    with problems.threads(threads):
        before = packed(how, weight)
        assert packed(how, weight) is before
        for place in [0, content.size - 1, *rng.integers(0, content.size, 60)]:
            content[place] ^= 1 << rng.integers(8)
            after = packed(how, weight)
            assert after is not before
            np.testing.assert_array_equal(after, packed(how, weight, keep=False))
            before = after


@pytest.mark.parametrize("kind", ["uint16", "int8"])
def test_narrow_weights_of_any_size_are_digested(kind: str) -> None:
    for rows, columns in ((1, 1), (3, 7), (5, 301)):
        weight = np.arange(rows * columns).reshape(rows, columns).astype(kind)
        before = packing.rows(weight, 1, 16)
        assert packing.rows(weight, 1, 16) is before
        weight[-1, -1] ^= 1
        assert packing.rows(weight, 1, 16) is not before


def test_exchanged_elements_are_seen() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype("f4")
    for a, b in ((0, 1), (0, 16), (0, 256), (5, 4095)):  # of one lane and chain too
        before = packing.rows(weight, 1, 16)
        flat = weight.reshape(-1)
        flat[a], flat[b] = flat[b], flat[a]
        assert packing.rows(weight, 1, 16) is not before


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = packing._Cache()
    monkeypatch.setattr(packing, "_cache", cache)
    monkeypatch.setattr(packing, "_MOST_ENTRIES", 3)
    weights = [np.full((16, 16), k, np.float32) for k in range(5)]
    kept = [packing.rows(weight, 1, 16) for weight in weights]
    assert packing.rows(weights[4], 1, 16) is kept[4]
    assert packing.rows(weights[0], 1, 16) is not kept[0]
    monkeypatch.setattr(packing, "_MOST_BYTES", 2000)
    for weight in weights:
        packing.rows(weight, 1, 16)
    assert cache._bytes == sum(array.nbytes for _, array in cache._entries.values()) <= 2000


@pytest.mark.parametrize("change", ["in place", "another array"])
def test_a_layer_computes_with_what_its_weights_are_now(change: str) -> None:
    layer = gpulstm.LSTM(33, 70, bidirectional=True, seed=0)
    x = np.random.default_rng(0).standard_normal((5, 7, 33)).astype("f4")

    def outputs() -> list[Any]:
        (y, state), pullback = layer.vjp(x)
        dx, _, _ = pullback(y)
        return [y, *state, dx]

    first = outputs()
    for name, value in list(layer.params.items()):
        if change == "in place":
            value *= 1.5
        else:
            layer.params[name] = value * np.float32(1.5)
    changed = outputs()
    fresh = gpulstm.LSTM(33, 70, bidirectional=True, seed=1)
    fresh.load_state_dict(layer.params)
    layer = fresh
    for found, expected, old in zip(changed, outputs(), first, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, old)
